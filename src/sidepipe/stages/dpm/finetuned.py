"""Stage `dpm` that fine-tunes a checkpoint here: all of its weights, or LoRA alone.

The artifact has the fine-tuned model and its base, which an attack can compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sidepipe.base.settings import require
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.engine.trained import Training
from sidepipe.models.checkpoint import load_checkpoint, network_config, save_parts
from sidepipe.models.families import require_family
from sidepipe.models.pixels import predicts_variance
from sidepipe.stages.data.stage import Data
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.stage import BASE, DPM
from sidepipe.stages.dpm.trained import DenoiserTraining


@dataclass(frozen=True, kw_only=True)
class FinetunedDPM(DenoiserTraining, PretrainedDPM):
    """A checkpoint of images, trained further on the training images.

    path: the base. num_base_images: the first images of the permutation, on which the base was
    trained where it was trained on these data; they are neither trained on nor held out. rank: of
    LoRA on the layers whose names end with target_modules; None trains all weights. LoRA is merged,
    so that the result is a checkpoint like any other.
    """

    num_base_images: int
    rank: int | None
    target_modules: list

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.base is None, "dpm.base", "null", self.base, "dpm.path names the base")
        count = self.num_base_images
        require(count >= 0, "dpm.num_base_images", ">= 0", count)
        require(self.rank is None or self.rank >= 1, "dpm.rank", ">= 1 or null", self.rank)

    @property
    def has_base(self) -> bool:
        return True

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        require(not data.is_empty, "data", "images to train on", "none", "choose another data=")
        Training.check(self, upstream, runtime)
        PretrainedDPM.check(self, upstream, runtime)
        if self.rank is not None and find_spec("peft") is None:
            raise ImportError("dpm.rank needs peft; remedy: pip install 'sidepipe[text]'")

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check_parts(upstream, runtime)
        if (folder := self._local_folder()) is not None:
            self._require_images_alone(folder)

    @staticmethod
    def _require_images_alone(folder: Path) -> None:
        family = require_family(folder, "pretrained").name
        remedy = "choose dpm=pretrained to attack a checkpoint as it is"
        config, rule = network_config(folder), "a model of images, to be fine-tuned here"
        require(family == "image", "dpm.path", rule, f"a {family} model", remedy)
        classes, variance = config.get("num_class_embeds"), predicts_variance(config)
        require(classes is None, "dpm.path", rule, f"one of {classes} classes", remedy)
        require(not variance, "dpm.path", rule, "one that predicts its variance", remedy)

    def _all(self, data: Path) -> tuple[np.ndarray, np.ndarray]:
        if not self.num_base_images:
            return super()._all(data)
        of_base = replace(self, num_train_images=self.num_base_images, num_base_images=0)
        rest, count = of_base._all(data)[1], self.num_train_images
        rule = f"a number in [1, {len(rest)}] next to the images of the base"
        fits = count is not None and count <= len(rest)
        require(fits, "dpm.num_train_images", rule, count)
        return rest[:count], rest[count:]

    def _take_all(self, partitions: str) -> None:
        DPM._take_all(self, partitions)

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L

        from sidepipe.models.lora import merge_lora, with_lora

        images = load_images(job.inputs["data"])
        train, heldout, about = self._write_split(job)
        size, channels = images.shape[1], images.shape[3]
        parts = load_checkpoint(
            self.path, self.revision, self.variant, size, channels, adapter=self.adapter
        )
        save_parts(parts, job.folder / BASE)
        self._require_images_alone(job.folder / BASE)
        unet, scheduler = parts["unet"].requires_grad_(True).train(), parts["scheduler"]
        L.seed_everything(self.seed, verbose=False)
        if self.rank is not None:
            with_lora(unet, self.rank, self.target_modules, setting="dpm")
        module = self._module(unet, scheduler, job.folder)
        trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
        fitted = self._fitted(job, module, [images], (train, heldout))
        merge_lora(unet)
        save_parts({**parts, "unet": unet}, job.folder / "model")
        source = Path(self.path).expanduser()
        return {
            **about,
            "num_parameters": unet.num_parameters(),
            "num_trained_parameters": trained,
            "files": self._fingerprint(source) if source.is_dir() else {},
            **fitted,
        }
