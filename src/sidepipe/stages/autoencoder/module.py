"""The Lightning module of an autoencoder: its loss, and its error on other images."""

from typing import Any

import lightning as L
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sidepipe.base.images import to_model
from sidepipe.engine.training import adamw_with_warmup, require_finite, step_generator


class AutoencoderModule(L.LightningModule):
    """Minimizes the squared error of decoded samples of the posterior, plus kl_weight times KL.

    network: a diffusers AutoencoderKL. The error is a mean over pixels, KL(posterior || N(0, 1)) a
    mean over the numbers of a code (Kingma & Welling, 2014, eq. 10). Raises RuntimeError naming the
    step when a loss is not finite.
    """

    def __init__(
        self,
        network: Any,
        *,
        kl_weight: float,
        lr: float,
        weight_decay: float,
        lr_warmup_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.network, self.kl_weight, self.seed = network, kl_weight, seed
        self.lr, self.weight_decay, self.lr_warmup_steps = lr, weight_decay, lr_warmup_steps

    def losses(
        self,
        images: UInt8[Tensor, "n h w c"],
        generator: torch.Generator,
        share: tuple[int, int] = (0, 1),
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Squared error and KL; share: rank and number of ranks."""
        x_0, (rank, world) = to_model(images), share
        posterior = self.network.encode(x_0).latent_dist
        # The noise is that of the global batch, so that a run on more devices takes the same steps.
        shape = (len(x_0) * world, *posterior.mean.shape[1:])
        eps = torch.randn(shape, generator=generator, device=x_0.device)
        mine = eps[rank * len(x_0) : (rank + 1) * len(x_0)]
        decoded = self.network.decode(posterior.mean + posterior.std * mine).sample
        mean, log_var = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        return (decoded.float() - x_0).square().mean(), kl

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        generator = step_generator(self.seed, self.global_step, self.device)
        share = (self.global_rank, self.trainer.world_size)
        error, kl = self.losses(batch[0], generator, share)
        loss = error + self.kl_weight * kl
        require_finite(loss, "autoencoder", self.global_step)
        self.log_dict({"loss": loss, "kl": kl}, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The RMS error in [0, 1] units of reconstructions from the posterior's mean."""
        x_0 = to_model(batch[0])
        decoded = self.network.decode(self.network.encode(x_0).latent_dist.mode()).sample
        each = ((decoded.float() - x_0) / 2).square().flatten(1).mean(1).sqrt()
        self.log("val/rms", each.mean(), batch_size=len(x_0), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return adamw_with_warmup(self.network, self.lr, self.weight_decay, self.lr_warmup_steps)
