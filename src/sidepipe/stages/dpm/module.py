"""The Lightning module of a diffusion model: its loss, validation and averaged weights."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F

from sidepipe.base.images import save_grid, to_uint8
from sidepipe.diffusion.finite import Seen, require_finite_eps, watched
from sidepipe.diffusion.mitigation import ambient, noise_weights, shifted
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim, sampling_timesteps
from sidepipe.diffusion.schedule import (
    EpsFn,
    clip_x_0,
    eps_from_prediction,
    eps_of,
    training_target,
)
from sidepipe.engine.training import (
    Noised,
    adamw_with_warmup,
    as_x_0,
    noised,
    require_finite,
    step_generator,
)

PREVIEW_IMAGES, PREVIEW_STEPS = 64, 50
Batch = UInt8[Tensor, "n h w c"] | Float[Tensor, "n c h w"]


class DenoisingModule(L.LightningModule):
    """Minimizes |target - network(x_t, t)|^2 over uniform t (DDPM, eq. 14).

    unet: a diffusers UNet2DModel. alphas_cumprod: (T,). prediction_type: "epsilon",
    "v_prediction" or "sample". lr_warmup_steps: linear from 0. clip_range: of pred_x_0 in previews,
    which `decode` turns into uint8 images. Batches are of uint8 images, or of x_0 itself.
    random_shift: most pixels by which images move at random. loss_weighting: arguments of
    `noise_weights`, None for none. Both in training alone.
    Raises RuntimeError naming the step when a loss is not finite.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor,
        prediction_type: str,
        *,
        lr: float,
        weight_decay: float,
        lr_warmup_steps: int,
        random_flip: bool,
        seed: int,
        preview_folder: Path,
        image_shape: tuple[int, int, int],
        clip_range: float | None = 1.0,
        decode: Callable[[Tensor], Tensor] = to_uint8,
        random_shift: int = 0,
        loss_weighting: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.prediction_type = unet, prediction_type
        self.lr, self.weight_decay, self.lr_warmup_steps = lr, weight_decay, lr_warmup_steps
        self.random_flip, self.seed = random_flip, seed
        self.preview_folder, self.image_shape = preview_folder, image_shape
        self.clip_range, self.decode = clip_range, decode
        self.random_shift, self.loss_weighting = random_shift, loss_weighting
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def loss(
        self,
        images: Batch,
        generator: torch.Generator,
        share: tuple[int, int] = (0, 1),
    ) -> Float[Tensor, "n"]:
        """The squared error of each image at a random t; share: rank and number of ranks."""
        x = self.noised(images, generator, share)
        return self.squared_error(x, self.unet(x.x_t, x.t).sample)

    def noised(self, images: Batch, generator: torch.Generator, share: tuple[int, int]) -> Noised:
        """The images at uniform t; in training, mirrored and moved at random."""
        if self.random_shift and self.training:
            images = self._moved(as_x_0(images), generator, share)
        flip = self.random_flip and self.training
        return noised(images, self.alphas_cumprod, generator, share, flip)

    def _moved(self, x_0: Tensor, generator: torch.Generator, share: tuple[int, int]) -> Tensor:
        (rank, world), n, most = share, len(x_0), self.random_shift
        shape, device = (n * world, 2), x_0.device
        drawn = torch.randint(-most, most + 1, shape, generator=generator, device=device)
        down, right = drawn[rank * n : (rank + 1) * n].T
        return shifted(x_0, down, right)

    def squared_error(self, x: Noised, prediction: Tensor) -> Float[Tensor, "n"]:
        """|target - prediction|^2 of each image, its mean over pixels."""
        target = training_target(self.prediction_type, x.x_0, x.eps, x.t, self.alphas_cumprod)
        error = F.mse_loss(prediction.float(), target, reduction="none").flatten(1).mean(1)
        if self.loss_weighting is None or not self.training:
            return error
        return noise_weights(x.t, **self.loss_weighting) * error

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        generator = step_generator(self.seed, self.global_step, self.device)
        share = (self.global_rank, self.trainer.world_size)
        loss = self.loss(*batch, generator=generator, share=share).mean()
        require_finite(loss, "dpm", self.global_step)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss on training and held-out images with the same noise; their gap is memorization."""
        # Lightning has put the EMA weights in place. The batch's number replaces the step's.
        generator = step_generator(self.seed, batch_idx, self.device)
        name = ("val/loss_train", "val/loss_heldout")[dataloader_idx]
        loss = self.loss(*batch, generator=generator).mean()
        self.log(name, loss, add_dataloader_idx=False, batch_size=len(batch[0]), sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        # The EMA callback's hooks run before the module's: its weights are in place at the start,
        # and removed at the end.
        if self.trainer.is_global_zero:
            self.preview_folder.mkdir(exist_ok=True)
            save_grid(self.preview_folder / f"step_{self.global_step:07d}.png", self.preview())

    def preview(self) -> np.ndarray:
        """Samples of the current weights, uint8 NHWC."""
        return self.decode(self.sampled().cpu()).numpy()

    @torch.no_grad()
    def sampled(self) -> Float[Tensor, "n c h w"]:
        """x_0 of samples of the current weights by DDIM."""
        steps = len(self.alphas_cumprod)
        timesteps = sampling_timesteps(steps, min(PREVIEW_STEPS, steps), "leading")
        noise = image_noise(
            self.seed, "generate", range(PREVIEW_IMAGES), self.image_shape, self.device
        )
        seen: Seen = []
        eps_fn = self.eps_fn(PREVIEW_IMAGES, seen)
        x_0 = ddim(eps_fn, noise(), timesteps, self.alphas_cumprod)
        require_finite_eps(seen, f"dpm at step {self.global_step}", range(PREVIEW_IMAGES))
        return x_0

    def eps_fn(self, count: int, seen: Seen) -> EpsFn:
        """eps of `count` samples of the current weights, clipped; seen: see `watched`."""
        conditions = self.sample_conditions(count)
        eps_fn = eps_of(self.unet, self.prediction_type, self.alphas_cumprod, **conditions)
        eps_fn = watched(eps_fn, "the sample's prediction", seen)
        return clip_x_0(eps_fn, self.alphas_cumprod, self.clip_range)

    def sample_conditions(self, count: int) -> dict[str, Tensor]:
        """The arguments of the network for `count` samples, besides x_t and t."""
        return {}

    def configure_optimizers(self) -> Any:
        return adamw_with_warmup(self, self.lr, self.weight_decay, self.lr_warmup_steps)


class ClassModule(DenoisingModule):
    """Minimizes |target - network(x_t, t, y)|^2 for the classes y of the images.

    null_class: takes the place of some classes, for classifier-free guidance (Ho & Salimans, 2022);
    class_dropout: the share of them.
    """

    def __init__(self, *args: Any, null_class: int, class_dropout: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.null_class, self.class_dropout = null_class, class_dropout

    def loss(
        self,
        images: UInt8[Tensor, "n h w c"],
        classes: Int64[Tensor, "n"],
        generator: torch.Generator,
        share: tuple[int, int] = (0, 1),
    ) -> Float[Tensor, "n"]:
        """The squared error of each image for its class, in training for some without it."""
        x = self.noised(images, generator, share)
        if self.training:
            rank, world = share
            count = len(classes)
            drawn = torch.rand(count * world, generator=generator, device=self.device)
            drop = drawn[rank * count : (rank + 1) * count] < self.class_dropout
            classes = torch.where(drop, self.null_class, classes)
        return self.squared_error(x, self.unet(x.x_t, x.t, class_labels=classes).sample)

    def sample_conditions(self, count: int) -> dict[str, Tensor]:
        """The classes in turn."""
        numbers = torch.arange(count, device=self.device)
        return {"class_labels": numbers % self.null_class}


class AmbientModule(DenoisingModule):
    """Minimizes the loss of ambient training. Batches have the fixed noise of each image too.

    ambient_t: timestep above which training uses one noisy version of each image alone.
    """

    def __init__(self, *args: Any, ambient_t: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ambient_t = ambient_t

    def loss(
        self,
        images: Batch,
        fixed: Float[Tensor, "n c h w"],
        generator: torch.Generator,
        share: tuple[int, int] = (0, 1),
    ) -> Float[Tensor, "n"]:
        """The squared error of each image, in training by `ambient`."""
        if not self.training:
            return super().loss(images, generator, share)
        x, ab = self.noised(images, generator, share), self.alphas_cumprod
        x_t, factor = ambient(x.x_0, fixed, x.eps, x.t, self.ambient_t, ab)
        prediction = self.unet(x_t, x.t).sample.float()
        eps = eps_from_prediction(self.prediction_type, prediction, x_t, x.t, ab)
        return (x.eps - factor * eps).square().flatten(1).mean(1).float()


class EMA(WeightAveraging):
    """Moving average of the weights: from its first step, average += (1 - decay) (w - average).

    It replaces the weights in validation and in checkpoints. Lightning's own EMAWeightAveraging
    holds a closure, which cannot be sent to spawned processes.
    """

    def __init__(self, decay: float, start_step: int) -> None:
        average = partial(_toward, share=1 - decay)
        super().__init__(use_buffers=False, avg_fn=average)
        self.start_step = start_step

    @property
    def network(self) -> Any:
        """The network with the averaged weights, outside validation."""
        assert self._average_model is not None
        return self._average_model.module.unet

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= self.start_step


def _toward(average: Tensor, w: Tensor, num_averaged: Any, share: float) -> Tensor:
    return torch.lerp(average, w, share)
