"""Stage `tune`: trials on a small budget choose how an attack guides, aims and refines.

Each combination of a grid is tried on a few images. The stage chooses the one with the most near
duplicates among its images, and an attack with `extract.tuned` uses it for all its images.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sidepipe.base.files import write_json
from sidepipe.base.images import Images
from sidepipe.base.settings import check_field_types, require, require_known
from sidepipe.engine.kinds import check_features
from sidepipe.engine.shards import load_shards, missing_shards
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.near import NearDuplicates
from sidepipe.models.rows import rows_of
from sidepipe.stages.attack.attack import GUIDANCE, REFINE, SPENT, Attack
from sidepipe.stages.attack.guidance import AttackGuidance
from sidepipe.stages.generate.stage import load_denoiser

log = logging.getLogger(__name__)

# Shards per trial: so many processes share it, and a killed one resumes at the next of them.
SHARDS = 4


@dataclass(frozen=True, kw_only=True)
class Tune(Stage):
    """Trials of one attack, and their choice.

    attack: its settings, as the stage extract has them. grid: values to try by setting, those of
    the strategy of refinement within `refine`; all combinations are tried, for plain samples only
    those of refinement. num_images: per trial.
    near_duplicates: the images that count as repeated. score: the best trial has the highest
    "rate", the share of images with a near duplicate among them, or the most "groups" of near
    duplicates, a number that decreases when different images merge; or it refines at the highest t
    that keeps different images "apart".
    """

    name: ClassVar[str] = "tune"
    version: ClassVar[int] = 2
    needed_by: ClassVar[str] = "extract.tuned=true, as in attacks=tuned"
    takes: ClassVar[Mapping[str, str]] = {"attack": "extract"}
    parallel: ClassVar[bool] = True
    pictures: ClassVar[str] = "trials/*/preview.png"
    attack: dict[str, Any]
    grid: dict[str, Any]
    num_images: int
    near_duplicates: NearDuplicates
    score: Literal["rate", "groups", "apart"]

    @classmethod
    def work(cls, settings: Mapping[str, Any]) -> float:
        trials = math.prod(map(len, settings["grid"].values()))
        return trials * super().work({**settings["attack"], **settings})

    def __post_init__(self) -> None:
        require(self.num_images >= 2, "tune.num_images", ">= 2", self.num_images)
        require(bool(self.grid), "tune.grid", "settings with values to try", self.grid)
        known = [*GUIDANCE, *(f"{REFINE}{name}" for name in self._attack.refine.known_settings())]
        for name, values in self._grid.items():
            require_known("tune.grid", name, known)
            several = isinstance(values, list | tuple) and len(values) > 0
            require(several, f"tune.grid.{name}", "a list of values to try", values)

    @property
    def _grid(self) -> dict[str, Any]:
        """The grid with the settings of `refine` by the names of `Attack.with_tried`."""
        of_refine = self.grid.get("refine", {})
        rule = "values to try by setting, as {t: [30, 60]}"
        require(isinstance(of_refine, Mapping), "tune.grid.refine", rule, of_refine)
        guidance = {name: values for name, values in self.grid.items() if name != "refine"}
        return {**guidance, **{f"{REFINE}{name}": values for name, values in of_refine.items()}}

    @property
    def _tried(self) -> dict[str, list[Any]]:
        """The grid without the settings of guidance for plain samples, and of other strategies."""
        own = self._attack.tried_settings()
        names = own if self._attack.surrogate.guides else [n for n in own if n not in GUIDANCE]
        return {name: values for name, values in self._grid.items() if name in names}

    @property
    def points(self) -> list[dict[str, Any]]:
        """All combinations of the values to try; the last setting changes fastest."""
        tried = self._tried
        return [
            dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())
        ]

    @cached_property
    def _attack(self) -> Attack:
        """The attack with its own settings."""
        names = {field.name for field in fields(Attack)}
        own = {name: value for name, value in self.attack.items() if name in names}
        return Attack(**check_field_types("extract", Attack, own))

    @property
    def _is_needed(self) -> bool:
        return self.attack["tuned"] and self._attack.can_be_tuned

    @cached_property
    def _trials(self) -> list[Attack]:
        """A small attack for each point of the grid."""
        size = math.ceil(self.num_images / SHARDS)
        small = replace(self._attack, num_images=self.num_images, shard_size=size)
        return [small.with_tried(self._fitting(point)) for point in self.points]

    def _fitting(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a point in the types of the attack's settings."""
        fitting = {}
        for name, value in point.items():
            kind = AttackGuidance if name in GUIDANCE else type(self._attack.refine)
            where, _, setting = f"tune.grid.{name}".rpartition(".")
            fitting[name] = check_field_types(where, kind, {setting: value})[setting]
        return fitting

    def inputs(self) -> tuple[str, ...]:
        """The inputs of the attack; none for an attack that is not tuned."""
        return self._attack.inputs() if self._is_needed else ()

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of the trials, which have neither the attack's size nor replaced values."""
        trials = self._trials
        return {
            "attack_version": trials[0].version,
            "trials": [trial.key_settings(asdict(trial)) for trial in trials],
            "near_duplicates": settings["near_duplicates"],
            "score": settings["score"],
        }

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if self._is_needed:
            own = self._attack.tried_settings()
            for name in (name for name in self._grid if name.startswith(REFINE)):
                require_known("tune.grid", name, own)
            rule = "with settings of refine where extract.surrogate is 'none'"
            remedy = "+tune.grid.refine.t=[30,60,100], or extract.tuned=false"
            require(bool(self._tried), "tune.grid", rule, list(self.grid), remedy)
            rule = "rate or groups where tune.grid has no refine.t"
            has_level = self.score != "apart" or f"{REFINE}t" in self._tried
            require(has_level, "tune.score", rule, self.score, remedy)
            for trial in self._trials:
                trial.check(upstream, runtime)
            check_features(upstream, "near_duplicates.features", self.near_duplicates.features)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if self._is_needed:
            self.near_duplicates.encoder.check()
            for trial in self._trials:
                trial.check_parts(upstream, runtime)

    def num_bytes(self, upstream: Mapping[str, Stage]) -> int:
        return sum(trial.num_bytes(upstream) for trial in self._trials)

    def run(self, job: Job) -> dict[str, Any]:
        import pandas as pd

        from sidepipe.stages.tune.score import best

        trials, rows = self._trials, []
        for i, trial in enumerate(trials):
            place = job.folder / "trials" / f"{i:03d}"
            count, size = trial.num_images, trial.shard_size
            is_whole = not missing_shards(place, count, size, (None, None, None))
            if not (place / "trial.json").exists() or not is_whole:
                write_json(place / "trial.json", self._try(trial, replace(job, folder=place)))
            rows.append(json.loads((place / "trial.json").read_text()))
            tried = {name: rows[i][name] for name in self._tried}
            log.info("trial %d of %d, %s: score %.4f", i + 1, len(trials), tried, rows[i]["score"])
        pd.DataFrame(rows).to_csv(job.folder / "trials.csv", index_label="trial")
        row = rows[best(rows)]
        if len(rows) > 1 and len({other["score"] for other in rows}) == 1:
            log.warning("all trials score %.4f, so the first one is chosen", row["score"])
        chosen = {name: row[name] for name in self._tried}
        log.info("trials chose, without the training set: %s", chosen)
        spent = {name: sum(row[name] for row in rows) for name in SPENT}
        choice = {"chosen": chosen, "score": row["score"], "num_trials": len(rows), **spent}
        write_json(job.folder / "choice.json", choice)
        return choice

    def _try(self, trial: Attack, job: Job) -> dict[str, Any]:
        """The tried settings, their score and cost; the images are in the job's folder."""
        job.folder.mkdir(parents=True, exist_ok=True)
        spent = trial.run(job)
        tried = {name: trial.tried_settings()[name] for name in self._tried}
        judged = {"score": self._score(trial, job), "judged_by": self.score}
        return {**tried, **judged, **{name: spent[name] for name in SPENT}}

    def _score(self, trial: Attack, job: Job) -> float:
        from sidepipe.stages.tune.score import SCORES, level_apart

        images, encoder = load_shards(job.folder), self.near_duplicates.encoder
        features = encoder.encode(images, device=job.runtime.torch_device())
        metric, threshold = encoder.metric, self.near_duplicates.threshold
        if self.score != "apart":
            return SCORES[self.score](features, metric, threshold)
        denoiser = load_denoiser(job.inputs["dpm"], trial.precision, by_class=True)
        device, t = job.runtime.torch_device(), trial.tried_settings()[f"{REFINE}t"]
        rows = rows_of(denoiser, images, device)
        x_0 = (rows / 127.5 - 1 if rows.dtype == np.uint8 else rows).reshape(len(images), -1)
        different = x_0[np.unique(near_duplicate_groups(features, metric, threshold))]
        return level_apart(different, t, float(denoiser.alphas_cumprod[t]))


def load_choice(folder: Path) -> dict[str, Any]:
    """`chosen`, the settings of the best trial, and the cost of all trials together."""
    return json.loads((folder / "choice.json").read_text())


def load_trials(folder: Path) -> list[tuple[dict[str, Any], Images]]:
    """The tried settings of each trial, with its score and cost, and its images."""
    places = sorted((folder / "trials").iterdir())
    return [(json.loads((p / "trial.json").read_text()), load_shards(p)) for p in places]
