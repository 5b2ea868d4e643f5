"""Stage `dpm`: the diffusion model under attack, and its training and held-out images."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sidepipe.base.files import write_json
from sidepipe.base.settings import require
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.checkpoint import read_parts
from sidepipe.models.schedules import schedule_from
from sidepipe.stages.data.stage import Data, load_canaries, load_partitions
from sidepipe.stages.data.subset import split
from sidepipe.stages.dpm.duplicates import (
    PAIRS,
    OnDuplicates,
    not_duplicated,
    require_allowed,
    require_few_copies,
    without_duplicates,
)

log = logging.getLogger(__name__)

CLASSES = "classes.json"
BASE = "base"  # the folder, next to `model`, of the model that `model` was fine-tuned from


@dataclass(frozen=True, kw_only=True)
class DPM(Stage):
    """A model with the split of its data into training and held-out images.

    num_train_images: size of the training subset, None for every image of the pool.
    train_partitions: the pool, e.g. [train]; None for all. subset_seed: of the one permutation.
    on_duplicates: the setting of data. "error" and "keep" make the same artifact. takes_canaries:
    whether it trains on canaries of the data as often as they ask.
    """

    name: ClassVar[str] = "dpm"
    version: ClassVar[int] = 2
    takes: ClassVar[Mapping[str, str]] = {"on_duplicates": "data.on_duplicates"}
    required: ClassVar[Mapping[str, tuple[str, str]]] = {
        "path": ("a folder written by save_pretrained, or a hub id", "/my/checkpoint")
    }
    parallel: ClassVar[bool] = True
    checks_ahead: ClassVar[bool] = True
    takes_canaries: ClassVar[bool] = False
    checkpoints: ClassVar[str] = "model/*"
    pictures: ClassVar[str] = "previews/*.png"
    num_train_images: int | None
    train_partitions: list | None
    subset_seed: int
    on_duplicates: OnDuplicates = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.num_train_images
        require(count is None or count >= 1, "dpm.num_train_images", ">= 1 or null", count)
        require(self.subset_seed >= 0, "dpm.subset_seed", ">= 0", self.subset_seed)

    def inputs(self) -> tuple[str, ...]:
        return ("data",)

    def unused(self) -> tuple[str, ...]:
        return super().unused() if self.on_duplicates == "drop" else ("on_duplicates",)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        if data.canaries is not None:
            rule = "a model of pixels trained here, as data.canaries are trained on"
            remedy = "choose dpm=words8, dpm=tiny or another trained one, or data.canaries=null"
            require(self.takes_canaries, "dpm", rule, type(self).__name__, remedy)

    @property
    def has_base(self) -> bool:
        """Whether the artifact has the model that this one was fine-tuned from."""
        return False

    def scheduler(self) -> Any | None:
        """The model's noise schedule; None where it is not on this machine yet."""
        raise NotImplementedError

    def num_classes(self) -> int | None:
        """Classes of a class-conditional model; None for others, and for a hub id."""
        return None

    def require_network(self, stage: str) -> None:
        """Raises ValueError where there is no network, which `stage` needs."""

    def check_prompts(
        self, stage: str, *, by_token: bool = False, by_attention: bool = False
    ) -> None:
        """Raises ValueError where a stage cannot compare prompts with the empty one.

        by_token: nor differentiate by tokens. by_attention: nor read the UNet's cross-attention.
        """

    def prompt_tokens(self) -> int | None:
        """Tokens of a prompt, without its start and end, that the model takes; None if unknown."""
        return None

    def has_null_class(self) -> bool:
        """Whether one class of a class-conditional model stands for none."""
        return False

    def check_images(self, data: Stage) -> None:
        """Raises ValueError where samples of the model cannot be compared with the data."""

    def check_timesteps(
        self,
        stage: str,
        num_inference_steps: int,
        timestep_spacing: str | None = None,
        timesteps: Mapping[str, int] | None = None,
    ) -> None:
        """Raises ValueError where a stage sets timesteps that the model does not have.

        timesteps: single ones by the name of their setting.
        """
        from sidepipe.diffusion.sampler import require_x_0

        if (scheduler := self.scheduler()) is None:
            return
        schedule, single = schedule_from(scheduler), timesteps or {}
        alphas_cumprod = schedule.alphas_cumprod
        steps = len(alphas_cumprod)
        name, rule = f"{stage}.num_inference_steps", f"<= {steps}, the timesteps of the model"
        require(num_inference_steps <= steps, name, rule, num_inference_steps)
        for name, t in single.items():
            require(t < steps, name, f"< {steps}, the timesteps of the model", t)
        sampled = schedule.step_rule.timesteps(steps, num_inference_steps, timestep_spacing)
        require_x_0(schedule.prediction_type, alphas_cumprod, [*sampled, *single.values()])

    def split(self, data: Path, runtime: Runtime) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training and of the held-out images, as in the artifact.

        The first call searches for the duplicates that are dropped. Raises ValueError where the
        data do not allow the split.
        """
        train, others = self._all(data)
        if self.on_duplicates == "drop":
            return train, not_duplicated(data, train, others, runtime)
        return train, others

    def _all(self, data: Path) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training images and of all others, with those that duplicate them.

        Canaries are training images besides these, and their controls are held out.
        """
        partitions, canaries = load_partitions(data), load_canaries(data)
        rest = np.delete(np.arange(len(partitions)), canaries.index.to_numpy())
        count, pool = self.num_train_images, self.train_partitions
        parts = [rest[part] for part in split(partitions[rest], count, pool, self.subset_seed)]
        trained = (canaries["repeats"] > 0).to_numpy(bool)
        more = (canaries.index.to_numpy()[some] for some in (trained, ~trained))
        train, others = (np.concatenate(pair) for pair in zip(parts, more, strict=True))
        return train, others

    def require_few_copies(
        self, data: Path, unseen: np.ndarray, rates: Sequence[float], runtime: Runtime
    ) -> None:
        """Raises ValueError where kept copies in the rows `unseen` would hide every hit."""
        if self.on_duplicates == "keep":
            require_few_copies(data, *self._all(data), unseen, rates, runtime)

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        self._check_partitions(data)
        self.split(data, runtime)

    def check_artifact(self, folder: Path, summary: Mapping[str, Any]) -> None:
        found, num_heldout = summary["duplicates"], summary["num_heldout_images"]
        require_allowed(found, self.on_duplicates, num_heldout, folder / PAIRS)

    def _write_split(self, job: Job) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Rows of the training and of the held-out images, and their part of the summary."""
        data = job.inputs["data"]
        train, heldout = self._all(data)
        heldout, found = without_duplicates(
            job.folder, data, train, heldout, self.on_duplicates, job.runtime
        )
        np.save(job.folder / "subset.npy", train)
        np.save(job.folder / "heldout.npy", heldout)
        numbers = {"num_train_images": len(train), "num_heldout_images": len(heldout)}
        return train, heldout, {**numbers, "duplicates": found}

    def _check_partitions(self, data: Path) -> None:
        counts = Counter(load_partitions(data).tolist())
        if self.train_partitions is None and len(counts) > 1:
            self._take_all(", ".join(f"{name} ({count:,})" for name, count in counts.items()))

    def _take_all(self, partitions: str) -> None:
        """Warns, or raises ValueError, where all of several partitions are the pool by default."""
        log.warning(
            "the training images are drawn from every partition, %s: "
            "'dpm.train_partitions=[train]' would hold the others out",
            partitions,
        )


def load(folder: Path, part: str = "model") -> dict[str, Any]:
    """The parts of a model without text, by name: unet (its averaged weights), scheduler, ...

    part: `BASE` for the model that it was fine-tuned from.
    """
    return read_parts(folder / part)


def write_classes(folder: Path, null_class: int, names: Sequence[str] = ()) -> None:
    """Keeps which class stands for none, and the names of the others."""
    write_json(folder / CLASSES, {"null_class": null_class, "names": list(names)})


def load_null_class(folder: Path) -> int | None:
    """The class that stands for none; None where the artifact does not name it."""
    path = folder / CLASSES
    return json.loads(path.read_text())["null_class"] if path.exists() else None


def load_subset(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images, and of all others, the best held-out images first."""
    return np.load(folder / "subset.npy"), load_unseen(folder)


def load_unseen(folder: Path) -> np.ndarray:
    """Indices of all images but the training images, the best held-out ones first."""
    return np.load(folder / "heldout.npy")
