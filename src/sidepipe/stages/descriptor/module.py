"""Training the copy descriptor: two edited copies of every image, some of them mixtures.

A step's numbers are drawn for the global batch and then sliced by rank, and every rank compares its
views with those of all ranks, so that a run on more devices takes the same steps.
"""

from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from sidepipe.base.images import to_model
from sidepipe.engine.training import adamw_with_warmup, require_finite, step_generator
from sidepipe.features.copydet import CopyNet
from sidepipe.stages.descriptor.augment import draws, edited, mixed
from sidepipe.stages.descriptor.losses import koleo, matches, nt_xent


class DescriptorModule(L.LightningModule):
    """Minimizes NT-Xent plus entropy_weight times KoLeo (SSCD, eq. 4).

    temperature: of the cosines. Raises RuntimeError naming the step when a loss is not finite.
    """

    def __init__(
        self,
        network: CopyNet,
        *,
        temperature: float,
        entropy_weight: float,
        lr: float,
        weight_decay: float,
        lr_warmup_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.temperature, self.entropy_weight = temperature, entropy_weight
        self.lr, self.weight_decay, self.lr_warmup_steps = lr, weight_decay, lr_warmup_steps
        self.seed = seed

    def views(
        self,
        images: UInt8[Tensor, "n h w c"],
        generator: torch.Generator,
        share: tuple[int, int] = (0, 1),
    ) -> tuple[Float[Tensor, "v 3 h w"], Int64[Tensor, "v 2"]]:
        """Two views of every image of rank share[0] of share[1], and the images in each view."""
        x_0, (rank, world) = to_model(images), share
        mine = slice(rank * len(x_0), (rank + 1) * len(x_0))
        shape = (len(x_0) * world, *x_0.shape[1:])
        views, ids = [], []
        for _ in range(2):
            u = draws(generator, len(x_0), share)
            eps = torch.randn(shape, generator=generator, device=x_0.device)[mine]
            # The copies are data: mixed precision is for the network.
            with torch.autocast(x_0.device.type, enabled=False):
                view, held = mixed(edited(x_0, u, eps), u)
            views.append(view.expand(-1, 3, -1, -1))
            ids.append(held + rank * len(x_0))
        return torch.cat(views), torch.cat(ids)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        generator = step_generator(self.seed, self.global_step, self.device)
        share = (self.global_rank, self.trainer.world_size)
        views, ids = self.views(batch[0], generator, share)
        z = self.network(views)
        if self.trainer.world_size > 1:
            z, ids = self._of_all_ranks(z), self._of_all_ranks(ids)
        contrast, entropy = self._losses(z, ids)
        loss = contrast + self.entropy_weight * entropy
        require_finite(loss, "descriptor", self.global_step)
        self.log_dict({"loss": loss, "contrast": contrast, "entropy": entropy}, prog_bar=True)
        return loss

    def _of_all_ranks(self, rows: Tensor) -> Tensor:
        """Every rank's rows, through which gradients flow back to all ranks."""
        gathered: Any = self.all_gather(rows, sync_grads=rows.is_floating_point())
        return gathered.flatten(0, 1)

    def _losses(self, z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            similarity, match = z.float() @ z.float().T, matches(ids)
            return nt_xent(similarity, match, self.temperature), koleo(similarity, match)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Both losses on images that are not trained on, edited alike at every validation."""
        views, ids = self.views(batch[0], step_generator(self.seed, batch_idx, self.device))
        contrast, entropy = self._losses(self.network(views), ids)
        options: dict[str, Any] = {"batch_size": len(batch[0]), "sync_dist": True}
        self.log_dict({"val/contrast": contrast, "val/entropy": entropy}, **options)

    def configure_optimizers(self) -> Any:
        return adamw_with_warmup(self.network, self.lr, self.weight_decay, self.lr_warmup_steps)
