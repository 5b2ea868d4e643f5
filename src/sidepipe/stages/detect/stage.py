"""Stage `detect`: which prompts make the model replay a training image, and how early that shows.

Detection uses the model alone; training images only decide which prompts are memorized.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from safetensors.numpy import load_file, save_file

from sidepipe.base.files import sha256_of, write_json
from sidepipe.base.settings import Precision, build, require, require_known
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.text.prompts import read_prompts
from sidepipe.stages.data.stage import Data
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.detect.scores import SIGNALS, Variant, variants
from sidepipe.stages.detect.source import PromptSource, placed
from sidepipe.stages.dpm.pretrained_text import PretrainedTextDPM
from sidepipe.stages.dpm.stage import DPM, load_subset
from sidepipe.stages.dpm.text import TrainTextDPM, load_placed_model

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.features.encoders import Encoder
    from sidepipe.models.text.model import TextModel
    from sidepipe.stages.detect.replays import Truth

log = logging.getLogger(__name__)

PROMPTS, OBSERVED = "prompts.csv", "observed.safetensors"
PART = 16  # prompts per file: a killed run loses at most one file
TRIED = 8  # prompts, of which at least one must change the prediction


@dataclass(frozen=True, kw_only=True)
class DetectPrompts(PromptSource):
    """Signals of memorization for prompts, and how well they separate memorized ones.

    generations, steps: the numbers of images and of first steps to compare. decision: the two
    numbers whose mean || D_t || decides. attention_layer: for the entropy, from 1; None for the
    mean of all layers. features: an encoder. label_threshold: gamma from which an image is a copy;
    None for the gamma that label_false_positive_rate of real unseen images reach. copied_share:
    the share of a prompt's images from which copies make it memorized.
    """

    num_generations: int
    num_inference_steps: int
    guidance_scale: float
    signals: list
    generations: list
    steps: list
    decision: dict[str, Any]
    attention_layer: int | None
    features: dict[str, Any]
    label_threshold: float | None
    label_false_positive_rate: float
    copied_share: float
    precision: Precision

    def __post_init__(self) -> None:
        super().__post_init__()
        require("norm" in self.signals, "detect.signals", "with norm among them", self.signals)
        for signal in self.signals:
            require_known("detect.signals", signal, SIGNALS)
        for name, most in (("generations", "num_generations"), ("steps", "num_inference_steps")):
            values, limit = getattr(self, name), getattr(self, most)
            rule = f"whole numbers in [1, detect.{most} = {limit}]"
            ok = len(values) > 0 and all(type(v) is int and 1 <= v <= limit for v in values)
            require(ok, f"detect.{name}", rule, values)
            chosen = self.decision.get(name)
            require(chosen in values, f"detect.decision.{name}", f"one of {values}", chosen)
        rate = self.label_false_positive_rate
        require(0 < rate < 1, "detect.label_false_positive_rate", "in (0, 1)", rate)
        require(0 < self.copied_share <= 1, "detect.copied_share", "in (0, 1]", self.copied_share)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm")

    @classmethod
    def require_in(cls, upstream: Mapping[str, Stage]) -> None:
        """Raises ValueError unless the stage detect of `upstream` is one of prompts."""
        found = upstream["detect"]
        kind, remedy = type(found).__name__, "choose detect=prompts"
        require(isinstance(found, cls), "detect", "of prompts", kind, remedy)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm, data = upstream["dpm"], upstream["data"]
        assert isinstance(data, Data)
        conditional = isinstance(dpm, TrainTextDPM | PretrainedTextDPM)
        remedy = "choose dpm=words8 or dpm=stable_diffusion, or detect=labels"
        require(conditional, "dpm", "a text-conditional model", type(dpm).__name__, remedy)
        if self.prompts is None:
            remedy = "choose data=captioned or data=planted, or set detect.prompts to a file"
            require(data.has_captions, "data", "images with captions", "none", remedy)
        if data.is_empty and self.truth_images is not None:
            rule = "set for detect.truth_images, as there are no held-out images"
            require(self.label_threshold is not None, "detect.label_threshold", rule, None)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        from sidepipe.stages.detect.replays import require_reachable

        encoder: Encoder = build(self.features)
        encoder.check()
        if self.label_threshold is not None:
            require_reachable(self.label_threshold, encoder.metric)
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.check_timesteps(self.name, self.num_inference_steps)
        dpm.check_prompts(self.name, by_attention="entropy" in self.signals)

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        from sidepipe.stages.detect.replays import usable_label_rate

        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        train, unseen = dpm.split(data, runtime)
        if self.prompts is None:
            self.of_data(data, train, unseen)
        if len(train) and self.label_threshold is None:
            usable_label_rate(self.label_false_positive_rate, len(unseen))
            dpm.require_few_copies(data, unseen, [self.label_false_positive_rate], runtime)

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.models.text.trajectory import prompt_timesteps
        from sidepipe.models.text.words import cut_off
        from sidepipe.stages.detect import results as r
        from sidepipe.stages.detect import tables

        files = {name: sha256_of(path) for name, path in self.files(job.runtime).items()}
        table = self.table(job)
        truth = self._truth(job, table)
        model = load_placed_model(job.inputs["dpm"], self.precision, job.runtime)
        captions = table["caption"].tolist()
        self._try(model, captions[:TRIED], truth)
        table = table.assign(cut=cut_off(model, captions))
        seen = self._observe(job.folder / "parts", model, captions, truth, job.runtime)
        table = tables.labeled(table, seen, truth, self.copied_share)
        table, results = r.scored(table, seen, *self._variants(), self.false_positive_rate)
        timesteps = prompt_timesteps(model, self.num_inference_steps)
        rate = self.false_positive_rate
        results |= {
            "labels": {} if truth is None else {**truth.about, "copied_share": self.copied_share},
            "false_positive_rate": rate,
            "calibration_norms": r.calibration_norms(seen["norm"], table, timesteps, rate),
        }
        tables.save(job.folder / PROMPTS, table)
        tables.save_gallery(
            job.folder, table, seen.pop("pictures"), load_images(job.inputs["data"])
        )
        save_file(seen, job.folder / OBSERVED)
        write_json(job.folder / "results.json", results)
        shutil.rmtree(job.folder / "parts")
        return {**r.headline(results), "files": files}

    def _variants(self) -> tuple[list[Variant], Variant]:
        """All variants to compare, and the one that decides."""
        every = variants(self.signals, self.generations, self.steps, self.num_inference_steps)
        wanted = ("norm", self.decision["generations"], self.decision["steps"])
        decides = (v for v in every if (v.signal, v.generations, v.steps) == wanted)
        return every, next(decides)

    def _try(self, model: TextModel, captions: list[str], truth: Truth | None) -> None:
        """Raises ValueError, before anything is sampled, where prompts or copies cannot matter."""
        import torch

        from sidepipe.stages.detect.observe import require_guidance

        require_guidance(model, captions, self.seed, self.num_inference_steps)
        if truth is not None:
            empty = torch.zeros(1, *model.latent_shape, device=model.device)
            truth.compare([0], model.decode(empty)[None].cpu().numpy())

    def _truth(self, job: Job, table: pd.DataFrame) -> Truth | None:
        """The rule for copies; None without training images."""
        from sidepipe.stages.detect.prompts import own_files
        from sidepipe.stages.detect.replays import own_truth, training_truth

        encoder, device = build(self.features), job.runtime.torch_device()
        train, unseen = load_subset(job.inputs["dpm"])
        if len(train):
            return training_truth(
                encoder,
                load_images(job.inputs["data"]),
                train,
                unseen,
                rate=self.label_false_positive_rate,
                threshold=self.label_threshold,
                device=device,
            )
        if self.truth_images is None or self.label_threshold is None:
            return None
        prompts = read_prompts(self.files(job.runtime)["prompts"])
        files = own_files(table, prompts, placed(self.truth_images, job.runtime))
        return own_truth(encoder, files, self.label_threshold, device)

    def _observe(
        self,
        folder: Path,
        model: TextModel,
        captions: list[str],
        truth: Truth | None,
        runtime: Runtime,
    ) -> Arrays:
        """Values of every prompt and its images, by name."""
        from sidepipe.models.text.memory import images_at_once
        from sidepipe.stages.detect import tables
        from sidepipe.stages.detect.observe import Watch, halving, observe

        watch = Watch(
            num_generations=self.num_generations,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            signals=self.signals,
            attention_layer=self.attention_layer,
            seed=self.seed,
        )
        size = images_at_once(model, runtime.sampling_batch_size)
        in_batches, in_smaller = halving(size), halving(size)

        def make(some: range) -> Arrays:
            chosen = captions[some.start : some.stop]
            found, images = observe(model, chosen, some, watch, in_batches, in_smaller)
            found |= {"pictures": tables.pictures(images)}
            return found if truth is None else {**found, **truth.compare(some, images)}

        return in_parts(folder, len(captions), PART, make, "prompt", runtime.progress_seconds)


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_prompts(folder: Path) -> pd.DataFrame:
    """A row per prompt, by its number, which with the seed decides the noise of its images.

    Columns: number, id, caption, role (planted, train, test, calibration), row of the data (-1 for
    none), repeats in training, word, cut (the text that the encoder truncates), memorized (True,
    False, nan), copies among its images, nearest (row of the training image that it replays, or of
    the closest one), d, flagged, and the score of each signal.
    """
    from sidepipe.stages.detect import tables

    return tables.read(folder / PROMPTS)


def load_thresholds(folder: Path) -> dict[str, Any]:
    """The thresholds for later stages.

    tau: of d, the mean || D_t || of `generations` images and `steps` first steps.
    median_first_step: of single images of calibration prompts. labels: threshold, metric and so on
    of copies; {} without training images.
    """
    results = load(folder)
    decision = results["decision"]
    return {
        "tau": decision["threshold"],
        "generations": decision["generations"],
        "steps": decision["steps"],
        "median_first_step": results["calibration_norms"]["median"][0],
        "labels": results["labels"],
    }


def load_observed(folder: Path) -> dict[str, np.ndarray]:
    """Values for the signals, by prompt and generation; norm is || D_t || of every step."""
    return load_file(folder / OBSERVED)


def load_gallery(
    folder: Path,
) -> tuple[UInt8[np.ndarray, "g k h w c"], UInt8[np.ndarray, "g h w c"] | None, pd.DataFrame]:
    """The highest-ranked prompts: images, the nearest training image of each, and their rows."""
    from sidepipe.stages.detect import tables

    path = folder / "gallery_train.npy"
    train = np.load(path) if path.exists() else None
    rows = tables.ranked(tables.read(folder / "gallery.csv")).reset_index(drop=True)
    return np.load(folder / "gallery.npy"), train, rows
