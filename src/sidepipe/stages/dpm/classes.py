"""Stage `dpm` that trains a class-conditional model on the classes that the data give.

Samples by class are the conditional baseline with the original labels as conditions;
the null class makes the same model an unconditional one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from sidepipe.base.settings import build, require
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_identities
from sidepipe.stages.dpm.stage import write_classes
from sidepipe.stages.dpm.trained import TrainDPM

SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ClassDPM(TrainDPM):
    """A UNet2DModel conditioned on the class of each image: its digit, folder, class or identity.

    num_class_labels: the number of classes of the data. class_dropout: share of the classes that
    training replaces with the null class, the last row of the embedding.
    """

    num_class_labels: int
    class_dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        count, share = self.num_class_labels, self.class_dropout
        require(count >= 2, "dpm.num_class_labels", ">= 2", count)
        rule = "in (0, 1), or the null class is not trained"
        require(0 < share < 1, "dpm.class_dropout", rule, share)
        t = self.ambient_t
        require(t is None, "dpm.ambient_t", "null for a model with classes", t)

    def num_classes(self) -> int | None:
        return self.num_class_labels + 1

    def has_null_class(self) -> bool:
        return True

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check_data(data, upstream, runtime)
        self._classes(data)

    def _classes(self, data: Path) -> tuple[list[str], Int64[np.ndarray, "n"]]:
        """The names of the classes, and the class of each image of the data."""
        names, classes = np.unique(load_identities(data), return_inverse=True)
        remedy = "choose data with classes: digits, cifar10, or a folder with one folder per class"
        require("" not in names, "data", "images that all have a class", "images without", remedy)
        rule = f"{len(names)}, the classes of the data: {', '.join(names[:SHOWN])}"
        rule += ", ..." if len(names) > SHOWN else ""
        count = self.num_class_labels
        require(count == len(names), "dpm.num_class_labels", rule, count)
        return names.tolist(), classes.astype(np.int64)

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L
        from diffusers import DDPMPipeline

        from sidepipe.stages.dpm.kept import complete
        from sidepipe.stages.dpm.module import ClassModule

        names, classes = self._classes(job.inputs["data"])
        train, heldout, about = self._write_split(job)
        L.seed_everything(self.seed, verbose=False)
        unet = build({**self.unet, "num_class_embeds": len(names) + 1})
        scheduler = build(self.noise_schedule)
        module = self._module(
            unet,
            scheduler,
            job.folder,
            ClassModule,
            null_class=len(names),
            class_dropout=self.class_dropout,
            **self.shaping,
        )
        rows = [load_images(job.inputs["data"]), classes]
        fitted = self._fitted(job, module, rows, (train, heldout))
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(job.folder / "model")
        complete(job.folder)
        write_classes(job.folder, null_class=len(names), names=names)
        return {**about, "num_parameters": unet.num_parameters(), **fitted}
