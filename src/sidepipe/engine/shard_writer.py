"""Writes the predictions of a trainer as shards, in the background of the next batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from sidepipe.base import interruption
from sidepipe.base.interruption import Preempted
from sidepipe.engine.shards import BackgroundShards, write_steps


class ShardWriter(BasePredictionWriter):
    """Collects the batches of a shard and writes it after the last one.

    Raises Preempted after the batch in which a signal arrives.
    """

    shards: BackgroundShards

    def __init__(self, folder: Path) -> None:
        super().__init__("batch")
        self.folder = folder
        self.parts: list[Callable[[], np.ndarray]] = []
        self.steps: list[np.ndarray] = []

    def on_predict_start(self, *args: Any) -> None:
        self.shards = BackgroundShards(self.folder)  # not in __init__: a thread cannot be pickled

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        *args: int,
    ) -> None:
        self.parts.append(_on_host(prediction))
        if pl_module.steps_taken is not None:
            self.steps.append(pl_module.steps_taken.cpu().numpy())
        if batch["ends_shard"]:
            if self.steps:  # before the images: a whole shard has both
                write_steps(self.folder, batch["shard"], np.concatenate(self.steps))
                self.steps = []
            self.shards.write(batch["shard"], self.parts)
            self.parts = []
        if interruption.requested():
            raise Preempted

    def on_predict_end(self, *args: Any) -> None:
        self.shards.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # Writes the whole shards; `exception` is the error to raise.
        if hasattr(self, "shards"):
            self.shards.thread.shutdown(wait=True)


def _on_host(images: Tensor) -> Callable[[], np.ndarray]:
    """A function that waits for the images, while a GPU computes the next batch."""
    if not images.is_cuda:
        return images.cpu().numpy
    host = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    host.copy_(images, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait
