"""Sampling many images through Lightning's `Trainer.predict`, in shards, guided or not.

Used by generate (no surrogate) and extract. Each image's noise comes from (seed, stream, index),
so images depend on batch size and number of devices only by floating-point rounding.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn

from sidepipe.diffusion.guidance import guided
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim, sampling_timesteps
from sidepipe.diffusion.schedule import clip_x_0, eps_of
from sidepipe.images import to_uint8
from sidepipe.progress import SpawnedProcess, progress_callbacks, progress_settings
from sidepipe.shards import check_disk, missing_shards, shard_ranges, write_shard
from sidepipe.stage import Runtime

log = logging.getLogger(__name__)

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Where a surrogate steers: lambda, and the timesteps t_min <= t <= t_max."""

    guidance_scale: float
    t_min: int
    t_max: int | None


class ImageSampler(L.LightningModule):
    """Predicts uint8 NHWC images for batches of image indices and their target labels.

    unet: predicts eps, v or x_0 from (x_t, t). alphas_cumprod: (T,). surrogate: a module with
    `grad_log_prob(x_t, t, y)`, or None for plain sampling. image_shape: (c, h, w).
    """

    alphas_cumprod: Tensor
    surrogate: Any

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor,
        prediction_type: str,
        image_shape: tuple[int, int, int],
        *,
        seed: int,
        stream: str,
        timesteps: Sequence[int],
        eta: float,
        surrogate: nn.Module | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.surrogate = unet.eval(), surrogate
        self.prediction_type, self.image_shape = prediction_type, image_shape
        self.seed, self.stream = seed, stream
        self.timesteps, self.eta, self.guidance = list(timesteps), eta, guidance
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    @torch.no_grad()
    def predict_step(self, batch: dict[str, Tensor]) -> UInt8[Tensor, "n h w c"]:
        noise_fn = image_noise(
            self.seed, self.stream, batch["indices"].tolist(), self.image_shape, self.device
        )
        eps_fn = eps_of(self.unet, self.prediction_type, self.alphas_cumprod)
        if self.surrogate is not None and self.guidance is not None:
            eps_fn = guided(
                eps_fn,
                self.surrogate.grad_log_prob,
                batch["targets"],
                self.guidance.guidance_scale,
                self.alphas_cumprod,
                self.guidance.t_min,
                self.guidance.t_max,
            )
        eps_fn = clip_x_0(eps_fn, self.alphas_cumprod)
        x_0 = ddim(eps_fn, noise_fn(), self.timesteps, self.alphas_cumprod, self.eta, noise_fn)
        return to_uint8(x_0)


class _ShardBatches:
    """Batches of image indices, none across two shards; rank r of w takes every w-th shard.

    A batch never depends on which shards are already there, so a resumed run computes the same
    bytes as an uninterrupted one.
    """

    def __init__(
        self,
        module: L.LightningModule,
        shards: list[tuple[int, range]],
        batch_size: int,
        targets: np.ndarray,
    ) -> None:
        self.module, self.shards = module, shards
        self.batch_size, self.targets = batch_size, targets

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer = self.module.trainer
        for shard, indices in self.shards[trainer.global_rank :: trainer.world_size]:
            for start in range(0, len(indices), self.batch_size):
                part = indices[start : start + self.batch_size]
                yield {
                    "indices": torch.tensor(part),
                    "targets": torch.tensor(self.targets[part.start : part.stop]),
                    "shard": shard,
                    "ends_shard": part.stop == indices.stop,
                }


class _ShardWriter(BasePredictionWriter):
    """Gathers a shard's batches and writes it when its last is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__("batch")
        self.folder = folder
        self.images: list[np.ndarray] = []

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        *args: int,
    ) -> None:
        self.images.append(prediction.cpu().numpy())
        if batch["ends_shard"]:
            write_shard(self.folder, batch["shard"], np.concatenate(self.images))
            self.images.clear()


def sample_to_shards(
    sampler: ImageSampler,
    folder: Path,
    num_images: int,
    shard_size: int,
    precision: Precision,
    runtime: Runtime,
    targets: np.ndarray | None = None,
) -> None:
    """Writes `num_images` sampled images into `folder`, skipping shards that are whole.

    targets: int64 (num_images,), each image's label for the surrogate; zeros when None.
    Raises OSError when the disk is too full for what is missing.
    """
    ranges = shard_ranges(num_images, shard_size)
    missing = [(shard, ranges[shard]) for shard in missing_shards(folder, num_images, shard_size)]
    left = sum(len(indices) for _, indices in missing)
    if left == 0:
        return
    if left < num_images:
        log.info("%d of %d images are there; making the rest", num_images - left, num_images)
    check_disk(folder, left * int(np.prod(sampler.image_shape)))
    if targets is None:
        targets = np.zeros(num_images, np.int64)
    progress = progress_callbacks(
        folder, num_images, seconds=runtime.progress_seconds, unit="image", first=num_images - left
    )
    trainer = L.Trainer(
        # The classifier's gradient is taken inside predict; inference mode would forbid it.
        inference_mode=False,
        precision=precision,
        callbacks=[
            SpawnedProcess(folder, runtime.num_threads),
            _ShardWriter(folder),
            *progress,
        ],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        **progress_settings(),
        **runtime.trainer_settings(),
    )
    batches = _ShardBatches(sampler, missing, runtime.sampling_batch_size, targets)
    trainer.predict(sampler, batches, return_predictions=False)


def network_timesteps(
    num_train_timesteps: int, num_inference_steps: int, spacing: str, guidance: Guidance | None
) -> tuple[list[int], int]:
    """The timesteps of a sampling run, and how many of them evaluate the surrogate."""
    timesteps = sampling_timesteps(num_train_timesteps, num_inference_steps, spacing)
    if guidance is None or guidance.guidance_scale == 0:
        return timesteps, 0
    t_max = num_train_timesteps if guidance.t_max is None else guidance.t_max
    return timesteps, sum(guidance.t_min <= t <= t_max for t in timesteps)
