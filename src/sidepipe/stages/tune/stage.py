"""Stage `tune`: how an attack guides, aims and refines, chosen by trials on a small budget.

Every combination of a grid is tried on a few images, and the one whose images repeat themselves
most is chosen. An attack with `extract.tuned` then spends the rest of its budget on it.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from hydra.utils import get_class
from jaxtyping import UInt8

from sidepipe.base.files import write_json
from sidepipe.base.settings import build, check_field_types, require, require_known
from sidepipe.engine.shards import load_shards, missing_shards
from sidepipe.engine.stage import Job, Runtime, Stage

if TYPE_CHECKING:
    from sidepipe.features.encoders import Encoder

log = logging.getLogger(__name__)

# What may be tried: how to guide and to refine. How finely is sampled is the attack's to say.
GUIDANCE = (
    *("guidance_scale", "guidance_schedule", "max_guidance_norm"),
    *("t_min", "t_max", "targets", "target_fraction"),
)
REFINEMENT = ("refine_steps", "refine_t")
# What a summary says of an attack's cost.
SPENT = ("unet_forwards", "surrogate_gradients", "network_evaluations")
# Of a trial: so many processes share it, and a killed one goes on with the next of them.
SHARDS = 4


@dataclass(frozen=True, kw_only=True)
class Tune(Stage):
    """Trials of one attack and what they chose.

    attack: its settings, as the stage extract has them. grid: setting -> values to try, all
    combinations of them; of plain samples those of their refinement alone. num_images: of each
    trial. features: an encoder, and duplicate_threshold: gamma of two images that it takes for near
    duplicates. score: the best trial has most of "rate", the share of images with a near duplicate
    among them, or "groups" of near duplicates, which are fewer where images merge that are merely
    alike.
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
    features: dict[str, Any]
    duplicate_threshold: float
    score: Literal["rate", "groups"]

    def __post_init__(self) -> None:
        require(self.num_images >= 2, "tune.num_images", ">= 2", self.num_images)
        require(bool(self.grid), "tune.grid", "settings with values to try", self.grid)
        for name, values in self.grid.items():
            require_known("tune.grid", name, (*GUIDANCE, *REFINEMENT))
            several = isinstance(values, list | tuple) and len(values) > 0
            require(several, f"tune.grid.{name}", "a list of values to try", values)

    @property
    def _tried(self) -> dict[str, list[Any]]:
        """The grid, of plain samples without what they do not use."""
        plain = self.attack["surrogate"] == "none"
        return {name: v for name, v in self.grid.items() if name in REFINEMENT or not plain}

    @property
    def points(self) -> list[dict[str, Any]]:
        """All combinations of what is tried, the last setting changing fastest."""
        tried = self._tried
        return [
            dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())
        ]

    @cached_property
    def _encoder(self) -> Encoder:
        return build(self.features)

    def _attack(self, **changes: Any) -> Any:
        """The attack with some settings changed; how it is built is the config's to say."""
        settings = {**self.attack, **changes}
        kind = get_class(settings.pop("_target_"))
        return kind(**check_field_types("tune.grid", kind, settings))

    @cached_property
    def _trials(self) -> list[Any]:
        """A small attack for each point of the grid, at once and with nothing left to tune."""
        size = math.ceil(self.num_images / SHARDS)
        small = {"num_images": self.num_images, "shard_size": size, "rounds": 1, "tuned": False}
        return [self._attack(**small, **point) for point in self.points]

    def inputs(self) -> tuple[str, ...]:
        """What the attack reads; nothing for one that is not tuned, which does not read this."""
        return self._attack(tuned=False).inputs() if self._attack().is_tuned else ()

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What the trials depend on: neither the attack's size nor what the grid sets instead."""
        trials = self._trials
        return {
            "attack_version": trials[0].version,
            "trials": [trial.key_settings(asdict(trial)) for trial in trials],
            "features": settings["features"],
            "duplicate_threshold": settings["duplicate_threshold"],
            "score": settings["score"],
        }

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if self._attack().is_tuned:
            rule = f"with one of {list(REFINEMENT)} where extract.surrogate is 'none'"
            remedy = "+tune.grid.refine_t=[30,60,100], or extract.tuned=false"
            require(bool(self._tried), "tune.grid", rule, list(self.grid), remedy)
            for trial in self._trials:
                trial.check(upstream, runtime)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if self._attack().is_tuned:
            self._encoder.check()
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
            log.warning(
                "all trials score %.4f, so nothing chooses: the first is taken", row["score"]
            )
        chosen = {name: row[name] for name in self._tried}
        log.info("chosen without the training set: %s", chosen)
        spent = {name: sum(row[name] for row in rows) for name in SPENT}
        choice = {"chosen": chosen, "score": row["score"], "num_trials": len(rows), **spent}
        write_json(job.folder / "choice.json", choice)
        return choice

    def _try(self, trial: Any, job: Job) -> dict[str, Any]:
        """What was tried, its score and cost; its images are in the job's folder."""
        from sidepipe.stages.tune.score import SCORES

        job.folder.mkdir(parents=True, exist_ok=True)
        spent = trial.run(job)
        features = self._encoder.encode(load_shards(job.folder), device=job.runtime.torch_device())
        score = SCORES[self.score](features, self._encoder.metric, self.duplicate_threshold)
        tried = {name: getattr(trial, name) for name in self._tried}
        judged = {"score": score, "judged_by": self.score}
        return {**tried, **judged, **{name: spent[name] for name in SPENT}}


def load_choice(folder: Path) -> dict[str, Any]:
    """`chosen`, the settings of the best trial, and what all trials together cost."""
    return json.loads((folder / "choice.json").read_text())


def load_trials(folder: Path) -> list[tuple[dict[str, Any], UInt8[np.ndarray, "n h w c"]]]:
    """Of every trial what was tried, its blind score and cost, and its images."""
    places = sorted((folder / "trials").iterdir())
    return [(json.loads((p / "trial.json").read_text()), load_shards(p)) for p in places]
