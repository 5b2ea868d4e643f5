"""Stage `original`: real images that the attacker has, with the labels that their source gives.

The model never saw them. An attack that uses them needs no synthetic image to learn its condition
from: what others do where a data set has labels. The only stage of an attack that reads real
images, and the training images are none of them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from sidepipe.base.settings import require
from sidepipe.engine.shards import check_disk
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_identities, load_ids
from sidepipe.stages.dpm.stage import DPM, load_unseen
from sidepipe.stages.original.attributes import read_attributes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Original(Stage):
    """Labeled images of the attacker's own.

    fraction: share of the images outside the model's training subset that it takes, the worst
    held-out ones; evaluate leaves them out. attributes: those of CelebA's whose combinations are
    the classes; None for the classes of the source (its identities, or the digits). attribute_file:
    CelebA's list of them, below `runtime.data_root` unless absolute.
    """

    name: ClassVar[str] = "original"
    needed_by: ClassVar[str] = "label.assign=original"
    accelerated: ClassVar[bool] = False
    fraction: float
    attributes: list | None
    attribute_file: str

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "original.fraction", "in (0, 1)", self.fraction)
        named = self.attributes is None or len(self.attributes) > 0
        require(named, "original.attributes", "one name at least, or null", self.attributes)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm")

    def unused(self) -> tuple[str, ...]:
        return ("attribute_file",) if self.attributes is None else ()

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        self._labeled(data, dpm.split(data, runtime)[1], runtime)

    def run(self, job: Job) -> dict[str, Any]:
        data, unseen = job.inputs["data"], load_unseen(job.inputs["dpm"])
        rows, names, classes = self._labeled(data, unseen, job.runtime)
        images = load_images(data)
        check_disk(job.folder, len(rows) * images[:1].nbytes)
        np.save(job.folder / "rows.npy", rows)
        np.save(job.folder / "images.npy", images[rows])
        np.save(job.folder / "classes.npy", classes.astype(np.int64))
        log.info("%d real images of %d classes, none of them trained on", len(rows), len(names))
        return {"num_images": len(rows), "num_classes": len(names), "classes": names[:50].tolist()}

    def _labeled(
        self, data: Path, unseen: Int64[np.ndarray, "m"], runtime: Runtime
    ) -> tuple[Int64[np.ndarray, "n"], np.ndarray, Int64[np.ndarray, "n"]]:
        """The rows that it takes of the unseen images, the classes' names, each row's class."""
        rows = unseen[len(unseen) - int(len(unseen) * self.fraction) :]
        names, classes = np.unique(self._named(data, rows, runtime), return_inverse=True)
        require(
            len(names) >= 2,
            "data",
            "a source that gives its images at least two classes",
            names.tolist(),
            "choose original.attributes, or a source with identities",
        )
        return rows, names, classes

    def _named(self, data: Path, rows: Int64[np.ndarray, "n"], runtime: Runtime) -> np.ndarray:
        """Each image's class, as text."""
        if self.attributes is None:
            return load_identities(data)[rows]
        file = Path(runtime.data_root).expanduser() / Path(self.attribute_file).expanduser()
        has = read_attributes(file, self.attributes, load_ids(data)[rows].tolist())
        return np.array(
            [
                " ".join(name for name, own in zip(self.attributes, row, strict=True) if own)
                for row in has
            ]
        )


def load(folder: Path) -> tuple[UInt8[np.ndarray, "n h w c"], Int64[np.ndarray, "n"]]:
    """The images, and their classes from 0 on."""
    return np.load(folder / "images.npy"), np.load(folder / "classes.npy")


def load_rows(folder: Path) -> Int64[np.ndarray, "n"]:
    """Places of the images in the data's array."""
    return np.load(folder / "rows.npy")
