"""Stage `clock`: when a training starts to memorize, by three measures at its kept checkpoints.

For the owner of the training images: the loss on held-out images against that on training images,
the hits of plain samples, and the hits of the same samples after refinement.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.files import write_json, write_table
from sidepipe.base.settings import PRECISIONS, Precision, build, require, require_known
from sidepipe.diffusion.cycles import fixed_point
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.features.choice import descriptor_input
from sidepipe.memorization.thresholds import usable_rates
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.descriptor.stage import load_encoder
from sidepipe.stages.dpm.stage import DPM
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.stages.generate.stage import load_denoiser
from sidepipe.stages.reference.stage import load as load_reference

if TYPE_CHECKING:
    from sidepipe.diffusion.denoiser import Denoiser
    from sidepipe.features.encoders import Encoder
    from sidepipe.memorization.real import RealImages

MEASURES = {"loss": "the loss gap", "plain": "plain sampling", "refined": "refinement"}


@dataclass(frozen=True, kw_only=True)
class Clock(Stage):
    """The onset of memorization in a training: a step for each of three measures.

    features, false_positive_rates: evaluate's; the first rate gives the threshold of a hit.
    num_images: samples per checkpoint. num_inference_steps: evaluations of the sampler per image,
    at trailing timesteps. refine_steps, refine_t: of the refinement of the same samples.
    loss_images: training images, and held-out images, whose loss is measured. loss_draws: noise
    levels per image, spread evenly.
    """

    name: ClassVar[str] = "clock"
    needed_by: ClassVar[str] = "clock=onsets"
    reported: ClassVar[bool] = True
    takes: ClassVar[Mapping[str, str]] = {
        "features": "evaluate.features",
        "false_positive_rates": "evaluate.false_positive_rates",
    }
    features: dict[str, Any]
    false_positive_rates: list
    num_images: int
    num_inference_steps: int
    refine_steps: int
    refine_t: int
    loss_images: int
    loss_draws: int
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        for field in ("num_images", "num_inference_steps", "refine_steps", "loss_draws"):
            require(getattr(self, field) >= 1, f"clock.{field}", ">= 1", getattr(self, field))
        require(self.loss_images >= 2, "clock.loss_images", ">= 2", self.loss_images)
        require(self.refine_t >= 0, "clock.refine_t", ">= 0", self.refine_t)
        require_known("clock.precision", self.precision, PRECISIONS)
        require(0 <= self.seed < 2**32, "clock.seed", "in [0, 2**32)", self.seed)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm", *descriptor_input(self.features), "reference")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        every = dpm.keep_every_steps if isinstance(dpm, TrainDPM) else None
        remedy = "clock=onsets reads checkpoints that a training keeps: dpm.keep_every_steps=100"
        require(bool(every), "dpm.keep_every_steps", "set", every, remedy)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        single = {"clock.refine_t": self.refine_t}
        dpm.check_timesteps(self.name, self.num_inference_steps, "trailing", single)

    def run(self, job: Job) -> dict[str, Any]:
        import pandas as pd

        from sidepipe.memorization.clock import level_of, onset
        from sidepipe.stages.dpm.kept import kept

        found = kept(job.inputs["dpm"])
        steps, parts = list(found), [f"{p.parent.name}/{p.name}" for p in found.values()]
        encoder = load_encoder(job.inputs, build(self.features))
        real = load_reference(job.inputs["reference"])

        def one(rows: range) -> Arrays:
            measured = [self._at(job, parts[i], encoder, real, len(steps)) for i in rows]
            return {name: np.array([row[name] for row in measured]) for name in measured[0]}

        table = pd.DataFrame(
            {"step": steps, **in_parts(job.folder / "parts", len(steps), 1, one, "checkpoint")}
        )
        write_table(job.folder / "clock.csv", table)
        certain = {name: table[f"{name}_memorizes"].tolist() for name in MEASURES}
        results = {
            "num_train_images": len(real.train.rows),
            "looks": len(steps),
            "last_step": steps[-1],
            "level": level_of(len(steps)),
            "evaluations": self._evaluations(real),
            "onsets": {name: onset(steps, sure) for name, sure in certain.items()},
        }
        write_json(job.folder / "results.json", results)
        shutil.rmtree(job.folder / "parts")
        return results

    def _evaluations(self, real: RealImages) -> dict[str, int]:
        """Network evaluations per checkpoint, by measure; refined samples start from plain ones."""
        images = sum(min(self.loss_images, len(s.rows)) for s in (real.train, real.unseen))
        plain = self.num_images * self.num_inference_steps
        refined = plain + self.num_images * self.refine_steps
        return {"loss": images * self.loss_draws, "plain": plain, "refined": refined}

    def _at(
        self, job: Job, part: str, encoder: Encoder, real: RealImages, looks: int
    ) -> dict[str, float]:
        """The measures of one checkpoint."""
        from sidepipe.memorization.clock import look, loss_gap

        denoiser = load_denoiser(job.inputs["dpm"], self.precision, part=part)
        rate = usable_rates(self.false_positive_rates, len(real.unseen.rows))[0]
        found: dict[str, float] = {}
        for name, images in self._samples(denoiser, job.runtime).items():
            queries = encoder.encode(images, device=job.runtime.torch_device())
            at = look(queries, real, encoder.metric, rate, looks)
            found |= {f"{name}_{key}": value for key, value in vars(at).items()}
        losses = [self._losses(job, denoiser, s.rows) for s in (real.train, real.unseen)]
        gap, low = loss_gap(*losses, looks=looks)
        found |= {"loss_train": float(losses[0].mean()), "loss_gap": gap, "loss_low": low}
        return found | {"loss_memorizes": low > 0}

    def _samples(self, denoiser: Denoiser, runtime: Runtime) -> dict[str, np.ndarray]:
        """Plain samples, and the same ones after refinement."""
        from sidepipe.engine.image_sampler import ImageSampler
        from sidepipe.engine.sampling import sample_to_array

        timesteps = denoiser.timesteps(self.num_inference_steps, "trailing")
        alike: dict[str, Any] = {"seed": self.seed, "stream": "clock", "eta": 0.0}
        plain = ImageSampler(denoiser, timesteps=timesteps, **alike)
        refined = ImageSampler(
            denoiser,
            timesteps=[],
            chains=[fixed_point(self.refine_t, self.refine_steps)],
            **alike,
        )
        images = sample_to_array(plain, self.num_images, self.num_images, self.precision, runtime)
        moved = sample_to_array(
            refined, self.num_images, self.num_images, self.precision, runtime, images
        )
        return {"plain": images, "refined": moved}

    def _losses(self, job: Job, denoiser: Denoiser, rows: np.ndarray) -> np.ndarray:
        from sidepipe.models.losses import image_losses

        images = load_images(job.inputs["data"])[rows[: self.loss_images]]
        denoiser = denoiser.to(job.runtime.torch_device())
        return image_losses(denoiser, images, draws=self.loss_draws, seed=self.seed)

    def describe(self, folder: Path, title: str) -> str:
        return f"{title}: {folder / 'clock.csv'}\n{in_words(load(folder))}"


def in_words(results: Mapping[str, Any]) -> str:
    """The onsets of results.json in one sentence."""
    onsets = {MEASURES[name]: step for name, step in results["onsets"].items()}
    at = [f"at step {step:,} by {name}" for name, step in onsets.items() if step]
    missed = [name for name, step in onsets.items() if not step]
    images = f"{results['num_train_images']:,} training images"
    absent = f"found by {_listed(missed, 'or')}" if missed else ""
    if at:
        found = f"Memorization of {images} sets in {_listed(at, 'and')}"
        found += f", and is not {absent}" if missed else ""
    else:
        found = f"No memorization of {images} was {absent}"
    return f"{found} ({results['looks']} looks up to step {results['last_step']:,})."


def _listed(words: Sequence[str], last: str) -> str:
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())
