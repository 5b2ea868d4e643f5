"""Stage `mitigate`: a method against replays of training images, with its effect and cost.

Mitigation in training is another model, here with the method `none`; `mitigations` are the rows to
compare. Each row gets the prompts that `detect` finds memorized and as many that were never trained
on, with the noise that `detect` used.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.files import write_json
from sidepipe.base.settings import Precision, build, require
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_captions
from sidepipe.stages.detect.stage import DetectPrompts, load_prompts, load_thresholds
from sidepipe.stages.dpm.stage import DPM, load_subset
from sidepipe.stages.dpm.text import load_placed_model
from sidepipe.stages.mitigate import weights as weights  # registers methods
from sidepipe.stages.mitigate.strategies import Adversary, Method

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.models.text.model import TextModel
    from sidepipe.stages.mitigate.judging import Copies, Generated, Known
    from sidepipe.stages.mitigate.requests import Mitigated

log = logging.getLogger(__name__)

MASKS = "masks.safetensors"  # True for each weight that the method set to 0
MAX_HELDOUT = 512  # images for the denoising loss
# Settings that older artifacts do not have: these values give the same results.
ADDED = {
    "method": {"examples": [*weights.EXAMPLES], "relearn_steps": 0, "give_back": False},
    "adversary": {"num_starts": 1},
}


@dataclass(frozen=True, kw_only=True)
class Mitigate(Stage):
    """One method of mitigation and its measurement.

    method: one of `strategies`. num_prompts: the most prompts of either kind, drawn by seed; None
    for all that are memorized. num_generations: images per prompt, from the first noise of detect.
    copied_share: a prompt is memorized if at least this share of its images are copies. adversary:
    None, or an attack that recovers the images. clip: a CLIP model (folder or hub id) to measure
    alignment with, None for the captions' attributes.
    features: an encoder, that of detect.
    """

    name: ClassVar[str] = "mitigate"
    version: ClassVar[int] = 2
    checkpoints: ClassVar[str] = "model/*"
    needed_by: ClassVar[str] = "mitigations=compare"
    reported: ClassVar[bool] = True
    rows: ClassVar[str | None] = "mitigations"
    method: Method
    num_prompts: int | None
    num_generations: int
    copied_share: float
    adversary: Adversary | None
    clip: str | None
    features: dict[str, Any]
    num_inference_steps: int
    guidance_scale: float
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        if self.num_prompts is not None:
            require(self.num_prompts >= 1, "mitigate.num_prompts", ">= 1 or null", self.num_prompts)
        count = self.num_generations
        require(count >= 1, "mitigate.num_generations", ">= 1", count)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm", "detect")

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        used = super().key_settings(settings)
        for part, added in ADDED.items():
            own = used[part] or {}
            kept = {n: v for n, v in own.items() if n not in added or v != added[n]}
            used[part] = kept or None
        return used

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        DetectPrompts.require_in(upstream)
        self.method.check(upstream)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        from sidepipe.stages.mitigate.alignment import CLIPScore

        if self.clip is not None:
            CLIPScore(self.clip).check()
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.check_timesteps(self.name, self.num_inference_steps)
        by_token, by_attention = self.method.by_token, self.method.by_attention
        dpm.check_prompts(self.name, by_token=by_token, by_attention=by_attention)

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.stages.detect.groups import grouped
        from sidepipe.stages.mitigate.judging import kid_of
        from sidepipe.stages.mitigate.requests import generate, requests

        device, known = job.runtime.torch_device(), _known(job.inputs)
        thresholds = load_thresholds(job.inputs["detect"])
        table = grouped(load_prompts(job.inputs["detect"]), ["test"], self.num_prompts, self.seed)
        model = load_placed_model(job.inputs["dpm"], self.precision, job.runtime)
        mitigated = self._mitigated(model, known, job)
        table = table.assign(used=table["number"].isin(list(mitigated.used)))
        asked = requests(table["caption"].tolist(), table["number"].tolist(), self.num_generations)
        images, spent = generate(job.folder / "parts" / "images", mitigated, asked, job.runtime)
        images = images.reshape(len(table), self.num_generations, *images.shape[1:])
        table, alignment, ceiling = self._aligned(table, images, known, device)
        results: dict[str, Any] = {
            "method": self.method.name,
            "num_prompts": table["group"].value_counts().to_dict(),
            "num_generations": self.num_generations,
            "evaluations_per_image": float(spent.mean()),
            "alignment": alignment,
            "ceiling": ceiling,
            "heldout_loss": self._heldout_loss(mitigated.model, known, job.runtime),
            **dict.fromkeys(("memorized", "adversary", "by_image", "quality")),
            "made": mitigated.about,
        }
        if len(known.train) > 0:
            copies = self._copies(known, thresholds["labels"]["threshold"], device)
            table, found = self._compared(job, mitigated, table, images, copies)
            results |= found
            results["quality"] = kid_of(images[table["group"] == "other"], known, copies, self.seed)
        table.to_csv(job.folder / "prompts.csv", index=False)
        np.save(job.folder / "images.npy", images)
        write_json(job.folder / "results.json", results)
        shutil.rmtree(job.folder / "parts")
        return _headline(results)

    def _compared(
        self,
        job: Job,
        mitigated: Mitigated,
        table: pd.DataFrame,
        images: Generated,
        copies: Copies,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The table with copies of training images, and the results of the comparison."""
        from sidepipe.stages.mitigate.judging import by_image, copied
        from sidepipe.stages.mitigate.recovery import recovered

        again, adversary = job.folder / "parts" / "again", None
        if self.adversary is not None:
            table, adversary = recovered(
                again, mitigated, self.adversary, table, images, copies, job.runtime
            )
        table, memorized = copied(table, images, copies)
        found = {"adversary": adversary, "memorized": memorized, "by_image": by_image(table)}
        return table, found

    def _mitigated(self, model: TextModel, known: Known, job: Job) -> Mitigated:
        """The model with the method, of which masks and trained weights are saved."""
        from safetensors.torch import save_file

        from sidepipe.models.text.pipeline import save_model
        from sidepipe.stages.mitigate.requests import Mitigated

        plain = Mitigated(
            model=model,
            method=self.method,
            guidance_scale=self.guidance_scale,
            num_inference_steps=self.num_inference_steps,
            seed=self.seed,
            batch_size=job.runtime.sampling_batch_size,
        )
        mitigated = self.method.build(plain, known, job.inputs)
        if (masks := mitigated.masks) is not None:
            save_file({name: mask.cpu() for name, mask in masks.items()}, job.folder / MASKS)
        if self.method.trains:
            save_model(mitigated.model, job.folder / "model")
        return mitigated

    def _aligned(
        self, table: pd.DataFrame, images: Generated, known: Known, device: str
    ) -> tuple[pd.DataFrame, dict[str, Any], dict[str, float]]:
        """The table with each prompt's alignment, that of both groups, and its ceiling."""
        from sidepipe.memorization.rates import mean
        from sidepipe.stages.detect.groups import GROUPS
        from sidepipe.stages.mitigate.judging import Alignment, read_from

        replayed = table.loc[table["group"] == "memorized", ["row", "nearest"]].to_numpy().ravel()
        alignment = Alignment(self.clip, device)
        if self.clip is None:
            alignment = read_from(known, replayed.tolist(), device, self.seed)
        values = alignment.of(images, table["caption"].tolist(), known.attributes(table["row"]))
        about: dict[str, Any] = {"measure": alignment.measure}
        about |= {group: mean(values[table["group"] == group]) for group in GROUPS}
        return table.assign(alignment=values), about, alignment.ceiling

    def _copies(self, known: Known, threshold: float, device: str) -> Copies:
        from sidepipe.memorization.real import encode_rows
        from sidepipe.stages.mitigate.judging import Copies

        encoder = build(self.features)
        train = encode_rows(encoder, known.data, known.train, device)
        return Copies(known.data, train, encoder, threshold, self.copied_share, device)

    def _heldout_loss(
        self, model: TextModel, known: Known, runtime: Runtime
    ) -> dict[str, Any] | None:
        """The loss on held-out images; None for a method that keeps the weights."""
        from sidepipe.memorization.rates import mean
        from sidepipe.models.text.memory import images_at_once
        from sidepipe.stages.mitigate.quality import heldout_losses

        if self.method.keeps_weights or known.captions is None or len(known.unseen) == 0:
            return None
        captions = known.captions["caption"].tolist()
        rows = known.unseen[:MAX_HELDOUT]
        size = images_at_once(model, runtime.sampling_batch_size)
        return mean(heldout_losses(model, known.data, captions, rows, self.seed, size))


def _known(inputs: Mapping[str, Path]) -> Known:
    from sidepipe.stages.mitigate.judging import Known

    captions = None
    if (inputs["data"] / "captions.csv").exists():
        captions = load_captions(inputs["data"])
    return Known(load_images(inputs["data"]), captions, *load_subset(inputs["dpm"]))


def _headline(results: Mapping[str, Any]) -> dict[str, Any]:
    aligned = results["alignment"]["memorized"]["mean"]
    headline = {"alignment": aligned, "evaluations_per_image": results["evaluations_per_image"]}
    if results["memorized"] is None:
        return headline
    of = results["memorized"]["memorized"]["prompts"]
    log.info("%s: %d of %d prompts are still memorized", results["method"], of["count"], of["of"])
    return {"memorized": of["share"], **headline}


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_prompts_asked(folder: Path) -> pd.DataFrame:
    """A row per prompt: detect's columns, and its group ("memorized" or "other": held out).

    The table also has used (whether the prompt made the method, or its image was given back to an
    adversary), alignment, nan where it
    cannot be measured, and, where there are training images, the number of copies among the
    prompt's images, their mean gamma, and whether the prompt is still memorized and recovered.
    """
    import pandas as pd

    text: Any = dict.fromkeys(("id", "caption", "word", "cut"), str)
    unknown: Any = {name: [""] for name in ("alignment", "memorized", "recovered")}
    path = folder / "prompts.csv"
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=unknown)


def load_generated(folder: Path) -> Generated:
    """The images of each prompt, in the order of `load_prompts_asked`."""
    return np.load(folder / "images.npy", mmap_mode="r")
