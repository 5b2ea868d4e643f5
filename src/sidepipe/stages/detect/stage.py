"""Stage `detect`: which prompts make the model replay a training image, and how early that shows.

Detection looks at the model alone; training images only serve to say which prompts are memorized.
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
from sidepipe.memorization.roc import require_enough
from sidepipe.models.text.prompts import read_prompts
from sidepipe.stages.data.stage import Data, load_captions, load_ids
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.detect.base import Detect
from sidepipe.stages.detect.scores import SIGNALS, Variant, variants
from sidepipe.stages.dpm.stage import DPM, load_subset
from sidepipe.stages.dpm.text import PretrainedTextDPM, TrainTextDPM, load_placed_model

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.features.encoders import Encoder
    from sidepipe.models.text.model import TextModel
    from sidepipe.stages.detect.replays import Truth

log = logging.getLogger(__name__)

PROMPTS, OBSERVED = "prompts.csv", "observed.safetensors"
PART = 16  # prompts a file: what a killed run loses at most
TRIED = 8  # prompts of which one must make a difference
RATE = "raise detect.false_positive_rate"
FEW = f"bring more of them, or {RATE}"


@dataclass(frozen=True, kw_only=True)
class DetectPrompts(Detect):
    """Signals of memorization for prompts, and how well they tell which are memorized.

    prompts: a file of `models.text.prompts`, None for the data's captions: all planted ones,
    num_train_prompts of other training pairs and num_heldout_prompts of unseen ones, half of them
    for calibration. calibration_prompts: another file, of prompts that nothing was trained on.
    truth_images: a folder with training images of the first file's prompts. All three lie under
    `runtime.data_root`. generations, steps: the numbers of images and of first steps to compare;
    decision: the two whose mean || D_t || decides. attention_layer: for the entropy, from 1 on;
    None for the mean of all.

    features: an encoder. label_threshold: gamma from which an image is a copy; None for the one
    that label_false_positive_rate of real unseen images reach. copied_share: of a prompt's images,
    at least that many copies make it memorized. false_positive_rate: of calibration prompts.
    """

    prompts: str | None
    calibration_prompts: str | None
    truth_images: str | None
    num_train_prompts: int
    num_heldout_prompts: int
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
    false_positive_rate: float
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
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
        for name in ("label_false_positive_rate", "false_positive_rate"):
            rate = getattr(self, name)
            require(0 < rate < 1, f"detect.{name}", "in (0, 1)", rate)
        self._check_prompts()
        require(0 < self.copied_share <= 1, "detect.copied_share", "in (0, 1]", self.copied_share)
        require(0 <= self.seed < 2**32, "detect.seed", "in [0, 2**32)", self.seed)

    def _check_prompts(self) -> None:
        least = min(self.num_train_prompts, self.num_heldout_prompts)
        require(least >= 0, "detect.num_train_prompts and num_heldout_prompts", ">= 0", least)
        if self.prompts is None:
            half = self.num_heldout_prompts // 2
            what, remedy = (
                "calibration prompts, half of num_heldout_prompts",
                f"raise it, or {RATE}",
            )
            require_enough(half, self.false_positive_rate, what, remedy)
        both = (self.prompts is None) == (self.calibration_prompts is None)
        rule = "set with detect.prompts, or null with it"
        require(both, "detect.calibration_prompts", rule, self.calibration_prompts)
        fits = self.prompts is not None or self.truth_images is None
        require(fits, "detect.truth_images", "null without detect.prompts", self.truth_images)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm")

    @classmethod
    def require_in(cls, upstream: Mapping[str, Stage]) -> None:
        """Raises ValueError unless the stage detect of `upstream` is one of prompts."""
        found = upstream["detect"]
        kind, remedy = type(found).__name__, "choose detect=prompts"
        require(isinstance(found, cls), "detect", "of prompts", kind, remedy)

    def unused(self) -> tuple[str, ...]:
        of_data = ("num_train_prompts", "num_heldout_prompts")
        of_files = ("calibration_prompts", "truth_images")
        return of_files if self.prompts is None else of_data

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

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        from sidepipe.stages.detect.replays import usable_label_rate

        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        train, unseen = dpm.split(data, runtime)
        if self.prompts is None:
            self._require_calibration(self._of_data(data, train, unseen))
        if len(train) and self.label_threshold is None:
            usable_label_rate(self.label_false_positive_rate, len(unseen))
            dpm.require_few_copies(data, unseen, [self.label_false_positive_rate], runtime)

    def check_sources(self, runtime: Runtime) -> None:
        for path in self._files(runtime).values():
            read_prompts(path)
        if self.truth_images is not None and not self._placed(self.truth_images, runtime).is_dir():
            raise FileNotFoundError(f"detect.truth_images names no folder: {self.truth_images}")

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        old, paths = summary["files"], self._files(runtime)
        changed = [n for n, p in paths.items() if p.is_file() and sha256_of(p) != old[n]]
        if not changed:
            return None
        return f"{' and '.join(changed)} changed since; remedy: delete the artifact's folder"

    def _files(self, runtime: Runtime) -> dict[str, Path]:
        names = {"prompts": self.prompts, "calibration_prompts": self.calibration_prompts}
        return {n: self._placed(file, runtime) for n, file in names.items() if file is not None}

    @staticmethod
    def _placed(file: str, runtime: Runtime) -> Path:
        return Path(runtime.data_root).expanduser() / Path(file).expanduser()

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.models.text.trajectory import prompt_timesteps
        from sidepipe.stages.detect import results as r
        from sidepipe.stages.detect import tables
        from sidepipe.stages.detect.prompts import cut_off

        files = {name: sha256_of(path) for name, path in self._files(job.runtime).items()}
        table = self._prompts(job)
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
        """All that are compared, and the one that decides."""
        every = variants(self.signals, self.generations, self.steps, self.num_inference_steps)
        wanted = ("norm", self.decision["generations"], self.decision["steps"])
        decides = (v for v in every if (v.signal, v.generations, v.steps) == wanted)
        return every, next(decides)

    def _try(self, model: TextModel, captions: list[str], truth: Truth | None) -> None:
        """Raises ValueError, before anything is sampled, where what follows cannot work."""
        import torch

        from sidepipe.stages.detect.observe import require_guidance

        require_guidance(model, captions, self.seed, self.num_inference_steps)
        if truth is not None:
            empty = torch.zeros(1, *model.latent_shape, device=model.device)
            truth.compare([0], model.decode(empty)[None].cpu().numpy())

    def _prompts(self, job: Job) -> pd.DataFrame:
        """A row for each prompt; ValueError where too few calibrate."""
        from sidepipe.stages.detect.prompts import of_files

        if self.prompts is None:
            table = self._of_data(job.inputs["data"], *load_subset(job.inputs["dpm"]))
        else:
            table = of_files(*(read_prompts(path) for path in self._files(job.runtime).values()))
        self._require_calibration(table)
        log.info("prompts by role: %s", table["role"].value_counts().to_dict())
        return table

    def _of_data(self, data: Path, train: np.ndarray, unseen: np.ndarray) -> pd.DataFrame:
        from sidepipe.stages.detect.prompts import of_data

        return of_data(
            load_captions(data),
            load_ids(data),
            train,
            unseen,
            num_train=self.num_train_prompts,
            num_heldout=self.num_heldout_prompts,
            seed=self.seed,
        )

    def _require_calibration(self, table: pd.DataFrame) -> None:
        count = int(np.sum(table["role"] == "calibration"))
        require_enough(count, self.false_positive_rate, "calibration prompts", FEW)

    def _truth(self, job: Job, table: pd.DataFrame) -> Truth | None:
        """How images are judged; None where no training image is at hand."""
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
        prompts = read_prompts(self._files(job.runtime)["prompts"])
        files = own_files(table, prompts, self._placed(self.truth_images, job.runtime))
        return own_truth(encoder, files, self.label_threshold, device)

    def _observe(
        self,
        folder: Path,
        model: TextModel,
        captions: list[str],
        truth: Truth | None,
        runtime: Runtime,
    ) -> Arrays:
        """Everything that is kept of every prompt, by name."""
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
    """A row for each prompt, by its number, which with the seed decides its images' noise.

    Columns: number, id, caption, role (planted, train, test, calibration), row of the data (-1 for
    none), repeats in training, word, cut (what the encoder left out), memorized (True, False, nan),
    copies among its images, nearest (row of the training image that it replays or comes closest
    to), d, flagged, and each signal's score.
    """
    from sidepipe.stages.detect import tables

    return tables.read(folder / PROMPTS)


def load_thresholds(folder: Path) -> dict[str, Any]:
    """What later stages decide by.

    tau: of d, the mean || D_t || of `generations` images and `steps` first steps.
    median_first_step: of calibration prompts' single images. labels: threshold, metric and so on
    of copies; {} where no training image was at hand.
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
    """What the signals are read from, by prompt and generation; norm is || D_t || of every step."""
    return load_file(folder / OBSERVED)


def load_gallery(
    folder: Path,
) -> tuple[UInt8[np.ndarray, "g k h w c"], UInt8[np.ndarray, "g h w c"] | None, pd.DataFrame]:
    """Of the highest-ranked prompts: images, the training image nearest to them, and their rows."""
    from sidepipe.stages.detect import tables

    path = folder / "gallery_train.npy"
    train = np.load(path) if path.exists() else None
    rows = tables.ranked(tables.read(folder / "gallery.csv")).reset_index(drop=True)
    return np.load(folder / "gallery.npy"), train, rows
