"""When and how a training writes its checkpoint, so that a killed run can resume."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sidepipe.base import interruption
from sidepipe.base.files import whole_file
from sidepipe.base.interruption import Preempted


class SaveLast(Checkpoint):
    """Writes `path` every `every_steps`, after the last step, and at a request to stop.

    The last step is `max_steps`, or the one after which another callback stops the training.

    At a validated step it writes after validation, so that resuming skips no validation and the
    state of the other checkpoint callbacks belongs to the same step.
    """

    def __init__(self, path: Path, every_steps: int, validate_every_steps: int) -> None:
        self.path = path
        self.every_steps, self.validate_every_steps = every_steps, validate_every_steps
        self.stops = False

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if self.stops:  # one batch later, when the metrics of the saved step are in their file
            raise Preempted

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step % self.validate_every_steps != 0:
            self._save(trainer)

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: Any) -> None:
        step = trainer.global_step
        # Only some of several processes may have received the signal, or some a step earlier.
        self.stops = trainer.strategy.reduce_boolean_decision(interruption.requested(), all=False)
        is_last = trainer.should_stop or step == trainer.max_steps
        if self.stops or is_last or step % self.every_steps == 0:
            trainer.save_checkpoint(self.path)


class CheckpointByRename(TorchCheckpointIO):
    """Writes next to the target and renames.

    Lightning copies the file from /tmp, and a run killed during the copy has no checkpoint left.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        # A file object, because torch's errors for a file name have no error number.
        with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def require_whole(path: Path) -> None:
    """Raises ValueError unless the CRC-32 of every record of the checkpoint is right.

    torch reads flipped bits without an error.
    """
    try:
        with ZipFile(path) as records:
            damaged = records.testzip()
    except BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged ({path.stat().st_size} bytes, {damaged}); remedy: restore it, or "
            "delete the .ckpt files of its folder to train from the first step"
        )
