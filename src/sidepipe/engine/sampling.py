"""Running an `ImageSampler` with Lightning: to shards in stages, to an array in the API."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from sidepipe.base.images import Images
from sidepipe.base.settings import Precision
from sidepipe.engine import ranks
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.progress import (
    SpawnedProcess,
    progress_bar,
    progress_callbacks,
    progress_settings,
)
from sidepipe.engine.shard_writer import ShardWriter
from sidepipe.engine.shards import check_disk, missing_shards, shard_ranges
from sidepipe.engine.stage import Runtime
from sidepipe.engine.thread_callback import Threads

log = logging.getLogger(__name__)


class _ShardBatches:
    """Batches of image indices within shards; rank r of w takes every w-th shard from r.

    All shards but the last have the same batches; finished shards do not change them.
    """

    def __init__(
        self,
        module: ImageSampler,
        shards: list[tuple[int, range]],
        shard_size: int,
        targets: np.ndarray,
        runtime: Runtime,
        images: Images | None = None,
        first: int = 0,
    ) -> None:
        self.module, self.shards, self.shard_size = module, shards, shard_size
        self.targets, self.runtime, self.images, self.first = targets, runtime, images, first

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer = self.module.trainer
        mine = self.shards[trainer.global_rank :: trainer.world_size]
        count = sum(len(indices) for _, indices in mine)
        batch_size = self.module.prepare(count, self.shard_size, self.runtime)
        for shard, indices in mine:
            for start in range(0, len(indices), batch_size):
                part = indices[start : start + batch_size]
                batch = {
                    "indices": torch.tensor(part) + self.first,
                    "targets": torch.tensor(self.targets[part.start : part.stop]),
                    "shard": shard,
                    "ends_shard": part.stop == indices.stop,
                }
                if self.images is not None:
                    batch["images"] = torch.tensor(self.images[part.start : part.stop])
                yield batch


def sample_to_shards(
    sampler: ImageSampler,
    folder: Path,
    num_images: int,
    shard_size: int,
    precision: Precision,
    runtime: Runtime,
    targets: np.ndarray | None = None,
) -> None:
    """Writes the images of `num_images` starts to `folder`; skips whole shards.

    A shard holds every candidate of its starts, one start after another.

    targets: int64 (num_images,), the label of each image for the surrogate, or the number of its
    prompt; None for zeros. Raises OSError where the disk is too full for the missing images, and
    Preempted after a signal, with the whole shards written.
    """
    channels, height, width = sampler.denoiser.image_shape
    shape, dtype = (height, width, channels), sampler.denoiser.image_dtype
    ranges = shard_ranges(num_images, shard_size)
    each = sampler.candidates
    shards = missing_shards(folder, each * num_images, each * shard_size, shape, dtype)
    missing = [(shard, ranges[shard]) for shard in shards]
    left = sum(len(indices) for _, indices in missing)
    if left == 0:
        return
    if left < num_images:
        log.info("%d of %d images exist; making the rest", num_images - left, num_images)
    check_disk(folder, each * left * math.prod(shape) * np.dtype(dtype).itemsize)
    if targets is None:
        targets = np.zeros(num_images, np.int64)
    batches = _ShardBatches(sampler, missing, len(ranges[0]), targets, runtime)
    ranks.together(_predict, batches, folder, precision, num_images, num_images - left)


def _predict(
    batches: _ShardBatches, folder: Path, precision: Precision, num_images: int, first: int
) -> None:
    """The part of `sample_to_shards` that each process runs. first: number of existing images."""
    seconds = batches.runtime.progress_seconds
    progress = progress_callbacks(folder, num_images, seconds=seconds, unit="image", first=first)
    writing = [SpawnedProcess(folder), ShardWriter(folder), *progress]
    trainer = _trainer(batches.runtime, precision, writing)
    trainer.predict(batches.module, batches, return_predictions=False)


def sample_to_array(
    sampler: ImageSampler,
    num_images: int,
    shard_size: int,
    precision: Precision,
    runtime: Runtime,
    images: Images | None = None,
    first: int = 0,
    targets: np.ndarray | None = None,
) -> Images:
    """The images that `sample_to_shards` writes, in memory and on one device.

    images: to start from. first: the number of the first image, which decides its noise. targets:
    as of `sample_to_shards`.
    """
    ranges = shard_ranges(num_images, shard_size)
    if targets is None:
        targets = np.zeros(num_images, np.int64)
    batches = _ShardBatches(
        sampler, list(enumerate(ranges)), len(ranges[0]), targets, runtime, images, first
    )
    trainer = _trainer(runtime, precision, progress_bar())
    parts: Any = trainer.predict(sampler, batches)
    return np.concatenate([part.numpy() for part in parts])


def _trainer(runtime: Runtime, precision: Precision, callbacks: Sequence[Any]) -> L.Trainer:
    return runtime.trainer(
        # Inference mode would forbid the gradient of the classifier.
        inference_mode=False,
        precision=precision if precision.endswith("mixed") else "32-true",
        callbacks=[Threads(runtime), *callbacks],
        logger=False,
        enable_checkpointing=False,
        **progress_settings(),
    )
