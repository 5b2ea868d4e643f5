"""When a training saves itself, and how, so that a killed or interrupted one loses nothing."""

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
    """Writes `path` every so many steps, after the last, and when asked to stop, and then stops.

    Of a validated step it does so after validation: a checkpoint never skips a validation, and the
    other checkpoint callbacks' state in it is of its step.
    """

    def __init__(self, path: Path, every_steps: int, validate_every_steps: int) -> None:
        self.path = path
        self.every_steps, self.validate_every_steps = every_steps, validate_every_steps
        self.stops = False

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if self.stops:  # not at once after saving: what the saved step logged is then in its file
            raise Preempted

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step % self.validate_every_steps != 0:
            self._save(trainer)

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: Any) -> None:
        step = trainer.global_step
        # Of several processes only some may have got the signal, or some a step earlier.
        self.stops = trainer.strategy.reduce_boolean_decision(interruption.requested(), all=False)
        if self.stops or step % self.every_steps == 0 or step == trainer.max_steps:
            trainer.save_checkpoint(self.path)


class CheckpointByRename(TorchCheckpointIO):
    """Writes beside the target; Lightning's own way leads through /tmp, often another disk, from
    where a file is copied, and a run killed while copying has no checkpoint left."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        # Through a file object: with a name alone torch's errors have no number.
        with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def require_whole(path: Path) -> None:
    """Raises ValueError unless the checkpoint is as torch wrote it, by the CRC-32 of its records.

    torch itself reads flipped bits without an error.
    """
    try:
        with ZipFile(path) as records:
            damaged = records.testzip()
    except BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged ({path.stat().st_size} bytes, {damaged}); remedy: restore it, or "
            "delete the .ckpt files of its folder, and the same command trains from the first step"
        )
