"""Stage `extract`: N_G samples, each guided toward a surrogate label (SIDE, part 2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from sidepipe.base.settings import build, require
from sidepipe.engine.shards import load_shards
from sidepipe.engine.stage import Job, NoMaterial, Runtime, Stage
from sidepipe.stages.extract.guided import Aim, GuidedSampling
from sidepipe.stages.generate.stage import load as load_synthetic
from sidepipe.stages.label.stage import Label, load_images, load_sizes, load_stage
from sidepipe.stages.label.stage import load as load_labels
from sidepipe.stages.label.stage import load_cohesion as load_label_cohesion
from sidepipe.stages.tune.stage import SPENT, load_choice

if TYPE_CHECKING:
    from sidepipe.features.encoders import Encoder
    from sidepipe.stages.extract.rounds import Seen

log = logging.getLogger(__name__)

# In an artifact or a round's folder, what a gradient costs.
COST = "gradient_cost.json"

_INPUTS = {
    "posterior": ("dpm", "generate", "label"),
    "classifier": ("dpm", "generate", "label", "classifier"),
    "lora": ("dpm", "generate", "label", "lora"),
}
_GUIDANCE = (
    *("guidance_scale", "guidance_schedule", "max_guidance_norm", "guide_through"),
    *("t_min", "t_max", "targets", "target_fraction", "posterior_neighbors"),
)
_ROUNDS = ("rounds", "stop_rounds", "features", "duplicate_threshold")


@dataclass(frozen=True, kw_only=True)
class Extract(GuidedSampling):
    """One attack: guided samples, or plain ones through the same code.

    targets: "uniform" over the labels, "top_cohesion", the target_fraction most cohesive of them,
    or "weighted", by cohesion rank and cluster size. tuned: whether what the stage tune chose takes
    the place of these settings; of plain samples their refinement can be tuned. rounds: how
    many times the attack adds its images to the synthetic ones and labels all again; later rounds
    aim at clusters that no image has reached; 1 for all at once. stop_rounds: whether
    to sample plainly once a round makes fewer new groups of near duplicates for its network
    evaluations than plain sampling. features: an encoder, and duplicate_threshold: gamma of two
    images that it takes for near duplicates, by which rounds are judged.
    """

    version: ClassVar[int] = 4
    is_attack: ClassVar[bool] = True
    targets: Literal["uniform", "top_cohesion", "weighted"]
    target_fraction: float
    tuned: bool
    rounds: int
    stop_rounds: bool
    features: dict[str, Any]
    duplicate_threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.target_fraction
        require(0 < share <= 1, "extract.target_fraction", "in (0, 1]", share)
        rule = f"in [1, extract.num_images = {self.num_images}]"
        require(1 <= self.rounds <= self.num_images, "extract.rounds", rule, self.rounds)
        closed_form = self.rounds == 1 or self.surrogate in ("posterior", "none")
        rule, remedy = f"1 for a trained {self.surrogate}", "surrogate=posterior needs no training"
        require(closed_form, "extract.rounds", rule, self.rounds, remedy)

    @cached_property
    def _encoder(self) -> Encoder:
        return build(self.features)

    @property
    def is_tuned(self) -> bool:
        """Whether the stage tune chooses; of plain sampling without refinement there is nothing."""
        return self.tuned and (self.surrogate != "none" or self.refine_steps > 0)

    @property
    def _in_rounds(self) -> bool:
        return self.rounds > 1 and self.surrogate != "none"

    def inputs(self) -> tuple[str, ...]:
        reads = super().inputs() if self.surrogate == "none" else _INPUTS[self.surrogate]
        return (*reads, "tune") if self.is_tuned else reads

    def unused(self) -> tuple[str, ...]:
        # What was chosen by trials is known by the key of tune.
        unused = (*super().unused(), "tuned")
        if not self._in_rounds:
            unused = (*unused, *_ROUNDS)
        if self.surrogate == "none":
            unused = (*unused, *_GUIDANCE)
        if self.targets != "top_cohesion":
            unused = (*unused, "target_fraction")
        if self.surrogate != "posterior":
            unused = (*unused, "posterior_neighbors")
        return unused

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        used = super().key_settings(settings)
        # From when trials were a setting here: who guides as ever keeps the key.
        return used if self.surrogate == "none" else {**used, "tuning": None}

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if self._in_rounds:
            label = upstream["label"]
            assert isinstance(label, Label)
            rule, remedy = "1 where label.assign=original", "rounds add to synthetic images"
            require(label.assign != "original", "extract.rounds", rule, self.rounds, remedy)
        if not self.is_tuned:  # else tune has checked every setting that it may choose
            super().check(upstream, runtime)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if self._in_rounds:
            self._encoder.check()
        if not self.is_tuned:
            super().check_parts(upstream, runtime)

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.stages.extract.cost import with_evaluations

        if self.is_tuned:
            return self._run_as_chosen(job, load_choice(job.inputs["tune"]))
        if self.surrogate == "none":
            np.save(job.folder / "targets.npy", np.full(self.num_images, -1, np.int64))
            return with_evaluations(self.sample(job), 0.0)
        if self._in_rounds:
            return self._run_in_rounds(job)
        targets, num_targets = self._draw_targets(job.inputs["label"])
        np.save(job.folder / "targets.npy", targets)
        images = load_images(job.inputs["label"], job.inputs["generate"])
        aim = Aim(images, job.inputs["label"], targets, num_targets)
        spent = self.sample_guided(job, aim, job.folder / COST)
        return {**spent, "num_targets": num_targets}

    def _run_as_chosen(self, job: Job, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Samples with the settings that tune chose; the cost of its trials counts."""
        chosen = choice["chosen"]
        log.info("guided as chosen by trials: %s", chosen)
        summary = replace(self, **chosen, tuned=False).run(job)
        return {
            **summary,
            **{name: summary[name] + choice[name] for name in SPENT},
            "tuned": chosen,
        }

    def _run_in_rounds(self, job: Job) -> dict[str, Any]:
        """Rounds of guided images, and of plain ones from where guidance no longer pays.

        A run that goes on takes a finished round's labels, images and cost as they are.
        """
        import pandas as pd

        from sidepipe.stages.extract.rounds import Seen, per_thousand, spans_of_rounds, summary_of

        spans, shard_size = spans_of_rounds(self.num_images, self.rounds, self.shard_size)
        synthetic, device = load_synthetic(job.inputs["generate"]), job.runtime.torch_device()
        seen = Seen(self._encoder, self.duplicate_threshold, device, synthetic)
        plain_rate = seen.plain_rate(len(spans[0]), self.num_inference_steps + self.refine_steps)
        rows, targets, cohesion, guided = [], [], [], True
        for number, span in enumerate(spans):
            part = replace(self, num_images=span.stop, shard_size=shard_size)
            place = job.folder / "rounds" / f"{number:02d}"
            place.mkdir(parents=True, exist_ok=True)
            aim = part._aim(job, place, number, seen) if guided else None
            row = part._sample_round(job, aim, place, span.start)
            if aim is not None:
                seen.aim(load_labels(aim.label), aim.targets[span.start :])
            found = seen.add(load(job.folder)[span.start : span.stop])
            rate = per_thousand(found, row["network_evaluations"])
            rows.append({"round": number, **row, "new_groups": found, "new_groups_per_1000": rate})
            log.info("round %(round)d: %(new_groups_per_1000).2f new groups", rows[-1])
            if aim is None:
                targets.append(np.full(len(span), -1))
            else:
                # Numbered on, or one label would stand for a cluster of every round.
                targets.append(aim.targets[span.start :] + sum(map(len, cohesion)))
                cohesion.append(load_label_cohesion(aim.label))
            guided = aim is not None and (rate >= plain_rate or not self.stop_rounds)
        pd.DataFrame(rows).to_csv(job.folder / "rounds.csv", index=False)
        np.save(job.folder / "targets.npy", np.concatenate(targets))
        np.save(job.folder / "cohesion.npy", np.concatenate(cohesion))
        return summary_of(rows, plain_rate)

    def _aim(self, job: Job, place: Path, number: int, seen: Seen) -> Aim | None:
        """What a round aims at; None where earlier rounds have reached every label there is."""
        label = job.inputs["label"] if number == 0 else place
        if number > 0 and not (place / COST).exists():
            try:
                load_stage(job.inputs["label"]).label(seen.images, place, job.runtime)
            except NoMaterial as error:
                log.info("round %d has no label to aim at: %s", number, error)
                return None
        excluded = seen.reached_labels(load_labels(label))
        if len(excluded) == len(load_sizes(label)):
            return None
        targets, num_targets = self._draw_targets(label, excluded)
        return Aim(seen.images, label, targets, num_targets)

    def _sample_round(self, job: Job, aim: Aim | None, place: Path, first: int) -> dict[str, Any]:
        """Writes the shards of a round, which begins at image `first`; what it was and cost."""
        from sidepipe.stages.extract.cost import with_evaluations

        if aim is None:
            spent = self.sample(job, first=first)
            return {"guided": False, "targets": 0, **with_evaluations(spent, 0.0)}
        spent = self.sample_guided(job, aim, place / COST, first)
        return {"guided": True, "targets": aim.num_targets, **spent}

    def _draw_targets(
        self, label: Path, excluded: Sequence[int] | Int64[np.ndarray, "e"] = ()
    ) -> tuple[Int64[np.ndarray, "n"], int]:
        """Each image's label, none of the excluded, and how many could have been drawn."""
        from sidepipe.stages.extract.targets import (
            allowed_targets,
            draw_targets,
            draw_weighted_targets,
            target_weights,
        )

        cohesion = load_label_cohesion(label)
        allowed = allowed_targets(self.targets, self.target_fraction, cohesion, excluded)
        if self.targets != "weighted":
            return draw_targets(allowed, self.num_images, self.seed), len(allowed)
        weights = target_weights(cohesion, load_sizes(label))
        weights[list(excluded)] = 0
        weights /= weights.sum()
        return draw_weighted_targets(weights, self.num_images, self.seed), len(allowed)


def load(folder: Path) -> UInt8[np.ndarray, "n h w c"]:
    """The extracted images, in index order."""
    return load_shards(folder)


def load_targets(folder: Path) -> Int64[np.ndarray, "n"]:
    """Each image's target label, -1 without a surrogate; labels of later rounds are numbered on."""
    return np.load(folder / "targets.npy")


def load_gradient_seconds(folder: Path) -> float | None:
    """How long a gradient took, in forwards of the model; None without one, and for rounds."""
    path = folder / COST
    return json.loads(path.read_text())["gradient_seconds"] if path.exists() else None


def load_cohesion(folder: Path, label: Path) -> Float64[np.ndarray, "k"]:
    """Cohesion of every label that could be a target, in all rounds; label: what the first read."""
    path = folder / "cohesion.npy"
    return np.load(path) if path.exists() else load_label_cohesion(label)
