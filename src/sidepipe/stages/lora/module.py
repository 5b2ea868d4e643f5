"""Training of LoRA and labels on labeled synthetic images, with the loss of the model."""

from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from sidepipe.diffusion.schedule import training_target
from sidepipe.engine.training import (
    Noised,
    adamw_with_warmup,
    noised,
    require_finite,
    step_generator,
)
from sidepipe.models.lora import trained_weights
from sidepipe.stages.lora.adapters import LabeledDenoiser


class LabeledDenoisingModule(L.LightningModule):
    """Minimizes |target - network(x_t, t, y)|^2 over uniform t (DDPM, eq. 14; SIDE, large models).

    denoiser: its network is trained, except frozen weights, which checkpoints leave out.
    num_labels: K'. Raises RuntimeError naming the step when a loss is not finite.
    """

    def __init__(
        self,
        denoiser: LabeledDenoiser,
        num_labels: int,
        *,
        lr: float,
        weight_decay: float,
        lr_warmup_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.denoiser, self.num_labels, self.seed = denoiser, num_labels, seed
        self.lr, self.weight_decay, self.lr_warmup_steps = lr, weight_decay, lr_warmup_steps
        self.strict_loading = False

    def squared_error(self, x: Noised, y: Int64[Tensor, "n"]) -> Float[Tensor, "n"]:
        """|target - network(x_t, t, y)|^2 of each image for its label y, the mean over pixels."""
        kind, alphas_cumprod = self.denoiser.prediction_type, self.denoiser.alphas_cumprod
        target = training_target(kind, x.x_0, x.eps, x.t, alphas_cumprod)
        prediction = self.denoiser.network(x.x_t, x.t, y).float()
        return F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x_0, y = batch
        generator = step_generator(self.seed, self.global_step, self.device)
        share = (self.global_rank, self.trainer.world_size)
        x = noised(x_0, self.denoiser.alphas_cumprod, generator, share)
        loss = self.squared_error(x, y).mean()
        require_finite(loss, "lora", self.global_step)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss with each image's label and with another label: the gap is the use of labels."""
        for name, loss in self.losses(batch, batch_idx).items():
            self.log(f"val/{name}", loss, batch_size=len(batch[0]), sync_dist=True)

    @torch.no_grad()
    def losses(self, batch: list[Tensor], number: int) -> dict[str, Tensor]:
        """The losses of the validation batch of this number, with the same noise every time."""
        x_0, y = batch
        generator = step_generator(self.seed, number, self.device)
        x = noised(x_0, self.denoiser.alphas_cumprod, generator)
        other = (y + 1) % self.num_labels
        loss, loss_other = (self.squared_error(x, labels).mean() for labels in (y, other))
        return {"loss": loss, "loss_other_label": loss_other}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = trained_weights(self)

    def configure_optimizers(self) -> Any:
        return adamw_with_warmup(self, self.lr, self.weight_decay, self.lr_warmup_steps)
