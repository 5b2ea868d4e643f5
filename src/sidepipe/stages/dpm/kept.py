"""Checkpoints of the averaged weights that a training keeps, each a model of its own.

`checkpoints/step_0001000` has the parts of `model`, with the averaged weights after that step, so
that `dpm=pretrained dpm.path=...` and `sidepipe.load` take it. The manifest has their hashes.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from sidepipe.stages.dpm.module import EMA

FOLDER, NETWORK = "checkpoints", "unet"


class KeepWeights(Callback):
    """Writes the averaged network to `folder` after each of `steps`.

    A run that resumes before such a step writes the same weights again.
    """

    def __init__(self, folder: Path, steps: Sequence[int], ema: EMA) -> None:
        self.folder, self.steps, self.ema = folder / FOLDER, frozenset(steps), ema

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        step = trainer.global_step
        if step not in self.steps or not trainer.is_global_zero:
            return
        self.ema.network.save_pretrained(self.folder / f"step_{step:07d}" / NETWORK)


def complete(folder: Path) -> None:
    """Adds the other parts of `model` to each kept checkpoint of a dpm artifact."""
    for checkpoint in kept(folder).values():
        skipped = shutil.ignore_patterns(NETWORK)
        shutil.copytree(folder / "model", checkpoint, ignore=skipped, dirs_exist_ok=True)


def kept(folder: Path) -> dict[int, Path]:
    """The folders of the kept checkpoints of a dpm artifact by step, ascending."""
    found = sorted((folder / FOLDER).glob("step_*"))
    return {int(path.name.removeprefix("step_")): path for path in found}
