"""Stage `extract`: N_G samples, each guided toward a surrogate label (SIDE, part 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from sidepipe.base.images import Images
from sidepipe.base.settings import require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.kinds import check_features
from sidepipe.engine.shards import load_shards
from sidepipe.engine.stage import Job, NoMaterial, Runtime, Stage
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.attack.attack import COST, SPENT, Aim, Attack
from sidepipe.stages.attack.strategies import MIN_IMAGES, OtherImages
from sidepipe.stages.generate.stage import load as load_synthetic
from sidepipe.stages.label.stage import Label, load_sizes, load_stage
from sidepipe.stages.label.stage import load as load_labels
from sidepipe.stages.label.stage import load_cohesion as load_label_cohesion
from sidepipe.stages.tune.stage import load_choice

if TYPE_CHECKING:
    from sidepipe.stages.extract.rounds import Seen

log = logging.getLogger(__name__)

_ROUNDS = ("rounds", "stop_rounds", "near_duplicates")
_COVERED = ("rounds", "covered", "near_duplicates")


@dataclass(frozen=True, kw_only=True)
class Extract(Attack):
    """One attack: guided samples, or plain ones through the same code.

    tuned: whether the settings that the stage tune chose replace these; for plain samples only the
    refinement can be tuned. rounds: how many times the attack adds its images to the synthetic ones
    and labels all again; later rounds aim at clusters that no image has reached; 1 for all at once.
    stop_rounds: whether to sample plainly once a round makes fewer new groups of near duplicates
    per network evaluation than plain sampling. covered: for plain samples, which stop after the
    first of `rounds` in which an estimated share of further starts would repeat a known image; None
    for all images. near_duplicates: the images that rounds count as duplicates.
    """

    is_attack: ClassVar[bool] = True
    required: ClassVar[Mapping[str, tuple[str, str]]] = {
        "surrogate.folder": ("a folder of images that another tool made", "/my/generated")
    }
    tuned: bool
    rounds: int
    stop_rounds: bool
    covered: float | None = None
    near_duplicates: NearDuplicates

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"in [1, extract.num_images = {self.num_images}]"
        require(1 <= self.rounds <= self.num_images, "extract.rounds", rule, self.rounds)
        at_once = self.rounds == 1 or self.surrogate.in_rounds or not self.surrogate.guides
        rule = f"1 for a trained {self.surrogate.name}"
        remedy = "surrogate=posterior needs no training"
        require(at_once, "extract.rounds", rule, self.rounds, remedy)
        if self._in_rounds or self.tuned:
            self.refine.require_single("extract.refine", "rounds and trials count repeated images")
        if self.covered is not None:
            self._check_covered(self.covered)

    def _check_covered(self, covered: float) -> None:
        require(0 < covered < 1, "extract.covered", "in (0, 1), or null", covered)
        rule, plain = "null for other images than plain samples", self.surrogate.name == "none"
        require(plain, "extract.covered", rule, covered, "extract.surrogate=none")
        most = self.num_images // MIN_IMAGES
        rule = f"in [2, {most}] with extract.covered: sampling may stop after each, of >= 20 images"
        require(2 <= self.rounds <= most, "extract.rounds", rule, self.rounds)

    @property
    def is_tuned(self) -> bool:
        """Whether the stage tune chooses settings."""
        return self.tuned and self.can_be_tuned

    @property
    def _in_rounds(self) -> bool:
        return self.rounds > 1 and self.surrogate.guides

    def inputs(self) -> tuple[str, ...]:
        if not self.surrogate.samples:
            return ("dpm",)  # for the size and the channels of the data
        return (*super().inputs(), "tune") if self.is_tuned else super().inputs()

    def unused(self) -> tuple[str, ...]:
        # The key of tune covers the choice of the trials.
        if not self.surrogate.samples:
            return tuple(field.name for field in fields(self) if field.name != "surrogate")
        used = _ROUNDS if self._in_rounds else () if self.covered is None else _COVERED
        others = [name for name in (*_ROUNDS, "covered") if name not in used]
        return (*super().unused(), "tuned", *others)

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        used = super().key_settings(settings)
        if not isinstance(self.surrogate, OtherImages):
            return used
        # The content in place of the path: images that are moved are the same, changed ones not.
        own = {name: value for name, value in used["surrogate"].items() if name != "folder"}
        return {"surrogate": {**own, "content": self.surrogate.content}}

    def check_needed(self, upstream: Mapping[str, Stage]) -> None:
        if self.surrogate.samples:
            super().check_needed(upstream)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if not self.surrogate.samples:
            self.surrogate.check(upstream)
            return
        if self._in_rounds:
            check_features(upstream, "near_duplicates.features", self.near_duplicates.features)
            label = upstream["label"]
            assert isinstance(label, Label)
            rule, remedy = "1 where label.assign=original", "rounds add to synthetic images"
            require(label.assign != "original", "extract.rounds", rule, self.rounds, remedy)
        if not self.is_tuned:  # else tune has checked every setting that it may choose
            super().check(upstream, runtime)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if isinstance(self.surrogate, OtherImages):
            data: Any = upstream["data"]
            self.surrogate.require_sizes(data.size)
            return
        if self._in_rounds or self.covered is not None:
            self.near_duplicates.encoder.check()
        if not self.is_tuned:
            super().check_parts(upstream, runtime)

    def run(self, job: Job) -> dict[str, Any]:
        if isinstance(self.surrogate, OtherImages):
            data = Artifact(job.inputs["dpm"]).ancestor("data")
            assert data is not None
            return self.surrogate.write(job.folder, data.summary["shape"], self.shard_size)
        if self.is_tuned:
            return self._run_as_chosen(job, load_choice(job.inputs["tune"]))
        if self.covered is not None:
            from sidepipe.stages.extract.covered import sample_until_covered

            return sample_until_covered(self, self.covered, job)
        return self._run_in_rounds(job) if self._in_rounds else super().run(job)

    def _run_as_chosen(self, job: Job, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Samples with the settings that tune chose; the cost of its trials counts."""
        chosen = choice["chosen"]
        log.info("settings chosen by trials: %s", chosen)
        summary = replace(self.with_tried(chosen), tuned=False).run(job)
        spent = {name: summary[name] + choice[name] for name in SPENT}
        return {**summary, **spent, "tuned": chosen}

    def _run_in_rounds(self, job: Job) -> dict[str, Any]:
        """Rounds of guided images, then of plain ones once guidance finds less than they do.

        A resumed run reuses the labels, images and cost of finished rounds.
        """
        import pandas as pd

        from sidepipe.stages.extract.rounds import Seen, per_thousand, spans_of_rounds, summary_of

        spans, shard_size = spans_of_rounds(self.num_images, self.rounds, self.shard_size)
        synthetic, device = load_synthetic(job.inputs["generate"]), job.runtime.torch_device()
        seen = Seen(self.near_duplicates, device, synthetic)
        plain_rate = seen.plain_rate(len(spans[0]), self.evaluations)
        rows, targets, cohesion, guided = [], [], [], True
        for number, span in enumerate(spans):
            part = replace(self, num_images=span.stop, shard_size=shard_size)
            place = job.folder / "rounds" / f"{number:02d}"
            place.mkdir(parents=True, exist_ok=True)
            aim = part._aim(job, place, number, seen) if guided else None
            row = part._sample_round(job, aim, place, span.start)
            if aim is None:
                targets.append(np.full(len(span), -1))
            else:
                assert aim.label is not None  # `_aim` aims at labels
                assert aim.targets is not None
                own = aim.targets[span.start :]
                seen.aim(load_labels(aim.label), own)
                # Later labels get new numbers, so that no label means a cluster of each round.
                targets.append(own + sum(map(len, cohesion)))
                cohesion.append(load_label_cohesion(aim.label))
            found = seen.add(load(job.folder)[span.start : span.stop])
            rate = per_thousand(found, row["network_evaluations"])
            rows.append({"round": number, **row, "new_groups": found, "new_groups_per_1000": rate})
            log.info("round %(round)d: %(new_groups_per_1000).2f new groups", rows[-1])
            guided = aim is not None and (rate >= plain_rate or not self.stop_rounds)
        pd.DataFrame(rows).to_csv(job.folder / "rounds.csv", index=False)
        np.save(job.folder / "targets.npy", np.concatenate(targets))
        np.save(job.folder / "cohesion.npy", np.concatenate(cohesion))
        return summary_of(rows, plain_rate)

    def _aim(self, job: Job, place: Path, number: int, seen: Seen) -> Aim | None:
        """The aim of a round; None where earlier rounds have reached every label."""
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
        targets, num_targets = self.draw_targets(label, excluded)
        return Aim(seen.images, label, targets, num_targets)

    def _sample_round(self, job: Job, aim: Aim | None, place: Path, first: int) -> dict[str, Any]:
        """Writes the shards of a round from image `first` on; returns its kind and cost."""
        if aim is None:
            return {"guided": False, "targets": 0, **self.sample_plain(job, first)}
        spent = self.sample_guided(job, aim, place / COST, first)
        return {"guided": True, "targets": aim.num_targets, **spent}


def load(folder: Path) -> Images:
    """The extracted images, in index order."""
    return load_shards(folder)


def load_per_start(folder: Path) -> int:
    """How many images follow each other that come from one start of the attack."""
    return Artifact(folder).summary.get("candidates", 1)


def load_names(folder: Path) -> list[str] | None:
    """The file of each image of another tool, in index order; None for images of the model."""
    import pandas as pd

    if not (folder / "files.csv").exists():
        return None
    return pd.read_csv(folder / "files.csv", dtype=str, keep_default_na=False)["file"].tolist()


def load_targets(folder: Path) -> Int64[np.ndarray, "n"]:
    """Each start's target label, -1 without a surrogate; later rounds have higher labels."""
    return np.load(folder / "targets.npy")


def load_cohesion(folder: Path, label: Path) -> Float64[np.ndarray, "k"]:
    """Cohesion of each possible target, in all rounds; label: the input of the first round."""
    path = folder / "cohesion.npy"
    return np.load(path) if path.exists() else load_label_cohesion(label)
