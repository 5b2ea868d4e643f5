"""Stage `audit`: which training images the model returns to, next to held-out images.

For the owner of the images. Each goes through refinement, by itself and from noised copies, and is
at risk where it comes back. A small sample of the model turns this into a probability.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float64

from sidepipe.base.files import write_json, write_table
from sidepipe.base.images import grid
from sidepipe.base.settings import PRECISIONS, Precision, build, require, require_known
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.features.choice import descriptor_input
from sidepipe.memorization.thresholds import threshold_at_false_positive_rate, usable_rates
from sidepipe.stages.audit.chances import STEPS, with_probabilities
from sidepipe.stages.audit.groups import IDENTITY, sha256_of_groups, subjects_of, table_of
from sidepipe.stages.audit.material import Material
from sidepipe.stages.audit.move import mover, refined_samples
from sidepipe.stages.audit.single import evaluations, single_scores
from sidepipe.stages.audit.words import in_words
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_ids
from sidepipe.stages.descriptor.stage import load_encoder
from sidepipe.stages.dpm.exact import ExactDPM
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.stage import BASE, DPM
from sidepipe.stages.dpm.trained import TrainDPM, TrainedDPM
from sidepipe.stages.generate.stage import WITHOUT_CLASSES, load_denoiser
from sidepipe.stages.reference.stage import load as load_reference

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.diffusion.denoiser import Denoiser
    from sidepipe.memorization.audit import Move, Probe
    from sidepipe.memorization.real import Encoded, RealImages

PART = 500  # images per file: a killed run loses at most so many


@dataclass(frozen=True, kw_only=True)
class Audit(Stage):
    """Scores of training images and of as many held-out ones.

    features, false_positive_rates: evaluate's; the first rate gives the threshold within which an
    image has come back. num_images: training images, the first of the subset; None for all.
    refine_t, refine_steps: those of the attack that it foresees. levels: timesteps of the noise
    that copies of an image get. draws: of noise, per level. probes: evaluations of the score
    divergence at refine_t. contrast_t: timestep at which a fine-tuned model is compared with its
    base, if any. sampled: refined samples of the model that calibrate the probabilities of
    extraction; 0 for no probabilities. budget: images that the attacker generates. invmm_images: of
    each kind, whose InvMM is computed. gallery_images: shown in the report. groups: the subject of
    each image, such as a patient: a table with the columns file and group, "identity" for that of
    the data, or None where each image is its own subject.
    """

    name: ClassVar[str] = "audit"
    version: ClassVar[int] = 3
    needed_by: ClassVar[str] = "audit=returns"
    reported: ClassVar[bool] = True
    takes: ClassVar[Mapping[str, str]] = {
        "features": "evaluate.features",
        "false_positive_rates": "evaluate.false_positive_rates",
    }
    features: dict[str, Any]
    false_positive_rates: list
    num_images: int | None
    refine_t: int
    refine_steps: int
    levels: list
    draws: int
    probes: int
    contrast_t: int
    sampled: int
    budget: int
    invmm_images: int
    gallery_images: int
    groups: str | None
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        if self.num_images is not None:
            require(self.num_images >= 2, "audit.num_images", ">= 2 or null", self.num_images)
        for field in ("refine_steps", "draws", "probes", "budget"):
            require(getattr(self, field) >= 1, f"audit.{field}", ">= 1", getattr(self, field))
        for field in ("refine_t", "contrast_t", "sampled", "invmm_images", "gallery_images"):
            require(getattr(self, field) >= 0, f"audit.{field}", ">= 0", getattr(self, field))
        increasing = sorted(set(self.levels)) == list(self.levels)
        require(increasing, "audit.levels", "increasing timesteps", self.levels)
        require(all(t >= 0 for t in self.levels), "audit.levels", ">= 0", self.levels)
        if (file := table_of(self.groups)) is not None:
            rule = f"null, {IDENTITY} or a table of groups"
            require(file.is_file(), "audit.groups", rule, self.groups)
        require_known("audit.precision", self.precision, PRECISIONS)
        require(0 <= self.seed < 2**32, "audit.seed", "in [0, 2**32)", self.seed)

    def unused(self) -> tuple[str, ...]:
        return ("invmm_images",) if self.invmm_images == 0 else ()

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm", *descriptor_input(self.features), "reference")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.require_network(self.name)
        kind, remedy = type(dpm).__name__, "text models have detect=prompts instead"
        pixels = isinstance(dpm, TrainDPM | PretrainedDPM | ExactDPM)
        require(pixels, "dpm", "an unconditional model of images", kind, remedy)
        classes = dpm.num_classes()  # None also for a hub id, which is refused when it runs
        without = classes is None or dpm.has_null_class()
        require(without, "dpm", WITHOUT_CLASSES, f"{classes} classes", "leave out audit=returns")
        if isinstance(dpm, TrainedDPM):
            steps = dpm.noise_schedule["num_train_timesteps"]
            most = max([self.refine_t, self.contrast_t, *self.levels])
            rule = f"< diffusion.num_train_timesteps = {steps}"
            name = "audit.refine_t, audit.contrast_t and audit.levels"
            require(most < steps, name, rule, most)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        single = {"audit.refine_t": self.refine_t, "audit.contrast_t": self.contrast_t}
        levels = {f"audit.levels[{i}]": t for i, t in enumerate(self.levels)}
        dpm.check_timesteps(self.name, 1, None, {**single, **levels})

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        if sha256_of_groups(self.groups) == summary["groups"]:
            return None
        return f"{self.groups} changed; remedy: restore it, or delete the artifact's folder"

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.stages.audit import tables
        from sidepipe.stages.audit.inversion import survival
        from sidepipe.stages.audit.subjects import save_subjects

        subjects = subjects_of(self.groups, job.inputs["data"], job.inputs["dpm"])
        encoder = load_encoder(job.inputs, build(self.features))
        real = load_reference(job.inputs["reference"])
        rate = usable_rates(self.false_positive_rates, len(real.unseen.rows))[0]
        threshold = threshold_at_false_positive_rate(real.real_gamma, rate, encoder.metric)
        data, sets = load_images(job.inputs["data"]), self._sets(real)
        material = Material(data, sets, encoder, threshold)
        denoiser, metric = load_denoiser(job.inputs["dpm"], self.precision), encoder.metric
        found, ids = self._found(job, denoiser, material), load_ids(job.inputs["data"])
        table = tables.scores(sets, found, metric, threshold, self.levels, ids, subjects)
        table, chances = self._with_chances(job, denoiser, material, table)
        if self.invmm_images:
            table = self._inverted(job, material, table)
        write_table(job.folder / "audit.csv", table)
        about = None if subjects is None else save_subjects(job.folder, table, metric)
        refined = found["train"]["refined"]
        tables.save_gallery(job.folder, table, data, refined, metric, self.gallery_images)
        results = {
            "threshold": threshold,
            "false_positive_rate": rate,
            "metric": metric,
            "transform": encoder.transform,
            "evaluations_per_image": evaluations(self._probe, (job.inputs["dpm"] / BASE).is_dir()),
            "evaluations_of_sample": self.sampled * (STEPS + self.refine_steps),
            **tables.counts(table),
            "extraction": chances,
            "inference": tables.inference(table, self.seed),
            "subjects": about,
            "groups": sha256_of_groups(self.groups),
        }
        if self.invmm_images:
            results["invmm"] = survival(table)
        write_json(job.folder / "results.json", results)
        shutil.rmtree(job.folder / "parts")
        return results

    def _found(self, job: Job, denoiser: Denoiser, material: Material) -> dict[str, Arrays]:
        """The scores of the images of each set."""
        found, start, device, base = {}, 0, job.runtime.torch_device(), None
        move = mover(denoiser, self._probe, self.seed, self.precision, job.runtime)
        if (job.inputs["dpm"] / BASE).is_dir():
            base = load_denoiser(job.inputs["dpm"], self.precision, part=BASE).to(device)
        single = single_scores(denoiser, base, self._probe, self.contrast_t, self.seed)
        for name, images in material.sets.items():
            one = partial(self._part, material, images, move, start, job.runtime)
            parts = job.folder / "parts" / name
            found[name] = in_parts(parts, len(images.rows), PART, one, f"{name} image")
            denoiser.to(device)
            for score, of in single.items():
                found[name][score] = of(material.data[images.rows], first=start)
            start += len(images.rows)
        return found

    def _with_chances(
        self, job: Job, denoiser: Denoiser, material: Material, table: pd.DataFrame
    ) -> tuple[pd.DataFrame, dict[str, Any] | None]:
        """The table with probabilities of extraction, and the expected numbers; or as it is."""
        if not self.sampled:
            return table, None
        sample = refined_samples(denoiser, self._probe, self.seed, self.precision, job.runtime)
        encoder, device = material.encoder, job.runtime.torch_device()

        def encoded(numbers: range) -> Arrays:
            return {"features": encoder.encode(sample(numbers), device)}

        parts = job.folder / "parts" / "sample"
        drawn = in_parts(parts, self.sampled, PART, encoded, "refined sample")["features"]
        return with_probabilities(
            table,
            drawn,
            material.sets,
            encoder.metric,
            material.threshold,
            budget=self.budget,
            levels=self.levels,
            seed=self.seed,
        )

    def _inverted(self, job: Job, material: Material, table: pd.DataFrame) -> pd.DataFrame:
        from sidepipe.stages.audit.inversion import with_inversions

        parts, device = job.folder / "parts", job.runtime.torch_device()
        denoiser, count = load_denoiser(job.inputs["dpm"], "32-true"), self.invmm_images
        return with_inversions(table, count, denoiser, material, self.seed, parts, device)

    @property
    def _probe(self) -> Probe:
        from sidepipe.memorization.audit import Probe

        return Probe(self.refine_t, self.refine_steps, self.levels, self.draws, self.probes)

    def _sets(self, real: RealImages) -> dict[str, Encoded]:
        """Training images, and as many held-out ones, the best control first."""
        train = real.train.part(slice(self.num_images))
        return {"train": train, "heldout": real.unseen.part(slice(len(train.rows)))}

    def _part(
        self,
        material: Material,
        images: Encoded,
        move: Move,
        start: int,
        runtime: Runtime,
        rows: range,
    ) -> Arrays:
        from sidepipe.memorization.audit import returns

        own = slice(rows.start, rows.stop)
        return returns(
            material.data[images.rows[own]],
            images.features,
            own,
            move,
            material.encoder,
            self._probe,
            material.threshold,
            first=start + rows.start,
            device=runtime.torch_device(),
        )

    in_words = staticmethod(in_words)

    def describe(self, folder: Path, title: str) -> str:
        return f"{title}: {folder / 'audit.csv'}\n{self.in_words(load(folder))}"

    @classmethod
    def shown(cls, folder: Path) -> dict[str, list[Any]]:
        """Each training image of the gallery with its refined image."""
        return {"audit/returns": [grid(pair, columns=2) for pair in load_gallery(folder)[0]]}


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_scores(folder: Path) -> pd.DataFrame:
    """A row per image: training images first, then held-out ones."""
    from sidepipe.stages.audit import tables

    return tables.read(folder / "audit.csv")


def load_risk(folder: Path) -> dict[str, Float64[np.ndarray, "n"]]:
    """Each score of the training images by its column, higher for images at more risk."""
    from sidepipe.stages.audit import tables

    return tables.risk(load_scores(folder), load(folder)["metric"])


def load_gallery(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """uint8 (n, 2, h, w, c): a training image and its refined image, the closest first; rows."""
    from sidepipe.stages.audit import tables

    rows: Any = tables.read(folder / "gallery.csv").to_dict("records")
    return np.load(folder / "gallery.npy"), rows
