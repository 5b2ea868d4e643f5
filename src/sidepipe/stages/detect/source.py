"""The prompts that `detect` tests: captions of the data, or files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidepipe.base.files import sha256_of
from sidepipe.base.settings import require
from sidepipe.engine.stage import Job, Runtime
from sidepipe.memorization.roc import require_enough
from sidepipe.models.text.prompts import read_prompts
from sidepipe.stages.data.stage import load_canaries, load_captions, load_ids
from sidepipe.stages.detect.base import Detect
from sidepipe.stages.dpm.stage import load_subset

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

RATE = "raise detect.false_positive_rate"
FEW = f"bring more of them, or {RATE}"


@dataclass(frozen=True, kw_only=True)
class PromptSource(Detect):
    """The tested prompts, those of calibration, and where training images of them are.

    prompts: a file of `models.text.prompts`, None for the data's captions: all planted ones,
    num_train_prompts of other training pairs and num_heldout_prompts of unseen ones, half of them
    for calibration. calibration_prompts: a second file, of prompts outside the training set.
    truth_images: a folder with training images of the first file's prompts. All three lie under
    `runtime.data_root`. false_positive_rate: of calibration prompts.
    """

    prompts: str | None
    calibration_prompts: str | None
    truth_images: str | None
    num_train_prompts: int
    num_heldout_prompts: int
    false_positive_rate: float
    seed: int

    def __post_init__(self) -> None:
        rate, seed = self.false_positive_rate, self.seed
        require(0 < rate < 1, "detect.false_positive_rate", "in (0, 1)", rate)
        require(0 <= seed < 2**32, "detect.seed", "in [0, 2**32)", seed)
        least = min(self.num_train_prompts, self.num_heldout_prompts)
        require(least >= 0, "detect.num_train_prompts and num_heldout_prompts", ">= 0", least)
        if self.prompts is None:
            half = self.num_heldout_prompts // 2
            name = "calibration prompts, half of num_heldout_prompts"
            require_enough(half, rate, name, f"raise it, or {RATE}")
        both = (self.prompts is None) == (self.calibration_prompts is None)
        rule = "set with detect.prompts, or null with it"
        require(both, "detect.calibration_prompts", rule, self.calibration_prompts)
        fits = self.prompts is not None or self.truth_images is None
        require(fits, "detect.truth_images", "null without detect.prompts", self.truth_images)

    def unused(self) -> tuple[str, ...]:
        of_data = ("num_train_prompts", "num_heldout_prompts")
        of_files = ("calibration_prompts", "truth_images")
        return of_files if self.prompts is None else of_data

    def check_sources(self, runtime: Runtime) -> None:
        for path in self.files(runtime).values():
            read_prompts(path)
        if self.truth_images is not None and not placed(self.truth_images, runtime).is_dir():
            raise FileNotFoundError(f"detect.truth_images names no folder: {self.truth_images}")

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        old, paths = summary["files"], self.files(runtime)
        changed = [n for n, p in paths.items() if p.is_file() and sha256_of(p) != old[n]]
        if not changed:
            return None
        return f"{' and '.join(changed)} changed since; remedy: delete the artifact's folder"

    def files(self, runtime: Runtime) -> dict[str, Path]:
        """The files of prompts that are set, by setting."""
        names = {"prompts": self.prompts, "calibration_prompts": self.calibration_prompts}
        return {n: placed(file, runtime) for n, file in names.items() if file is not None}

    def table(self, job: Job) -> pd.DataFrame:
        """A row per prompt; ValueError for too few calibration prompts."""
        from sidepipe.stages.detect.prompts import of_files

        if self.prompts is None:
            table = self.of_data(job.inputs["data"], *load_subset(job.inputs["dpm"]))
        else:
            table = of_files(*(read_prompts(path) for path in self.files(job.runtime).values()))
            count = int(np.sum(table["role"] == "calibration"))
            require_enough(count, self.false_positive_rate, "calibration prompts", FEW)
        log.info("prompts by role: %s", table["role"].value_counts().to_dict())
        return table

    def of_data(self, data: Path, train: np.ndarray, unseen: np.ndarray) -> pd.DataFrame:
        """The table for captions of the data; ValueError for too few calibration prompts.

        train, unseen: rows of the split.
        """
        from sidepipe.stages.detect.prompts import of_data

        # Triggers are no prompts of the data: the stage canaries has them.
        canaries = load_canaries(data).index.to_numpy()
        train, unseen = (rows[~np.isin(rows, canaries)] for rows in (train, unseen))
        table = of_data(
            load_captions(data),
            load_ids(data),
            train,
            unseen,
            num_train=self.num_train_prompts,
            num_heldout=self.num_heldout_prompts,
            seed=self.seed,
        )
        calibrate = int(np.sum(table["role"] == "calibration"))
        different = calibrate + int(np.sum(table["role"] == "test"))
        why = (
            f"a held-out caption counts once, and not if a training pair has it: {len(unseen)} "
            f"held-out pairs give {different}, and half of these calibrate"
        )
        remedy = f"{FEW} ({why})"
        require_enough(calibrate, self.false_positive_rate, "calibration prompts", remedy)
        return table


def placed(file: str, runtime: Runtime) -> Path:
    """The path of a file that lies under `runtime.data_root`."""
    return Path(runtime.data_root).expanduser() / Path(file).expanduser()
