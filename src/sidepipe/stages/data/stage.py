"""Stage `data`: any source of images becomes one memory-mapped uint8 array and a table of ids.

A source of pairs adds a table of captions. A table of rows becomes float32 vectors (`tables.py`).
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sidepipe.base.image_files import in_words
from sidepipe.base.image_reading import Entry, read_images
from sidepipe.base.images import Images, save_grid
from sidepipe.base.settings import require, tried
from sidepipe.engine.shards import check_disk
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.data.canaries import CANARIES, Canaries, mixed_in, write_canaries
from sidepipe.stages.data.captioned import Captioned
from sidepipe.stages.data.planted import Planted
from sidepipe.stages.data.sources import Nothing, Source
from sidepipe.stages.data.tables import Table
from sidepipe.stages.data.tables import load_encoding as load_encoding
from sidepipe.stages.data.tables import load_table as load_table
from sidepipe.stages.data.tables import write as write_rows

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PLACES = {"folder", "file", "heldout_file"}  # settings of sources below runtime.data_root


@dataclass(frozen=True, kw_only=True)
class Data(Stage):
    """Images of one source, square and of one size, or rows of a table.

    source: a `Source` config, see `sources.py`; relative folders and files, also in a nested
    source, lie under `runtime.data_root`. size: side in pixels; a row of a table is 1 high, and as
    wide as the table needs. channels: 1 gray, 3 RGB. center_crop: side of the central square to
    which a larger image is cropped, None for the largest square. on_duplicates: what the stage dpm
    does with held-out images that duplicate training images; this stage does not use it. canaries:
    images to mix into training, None for none.
    """

    name: ClassVar[str] = "data"
    version: ClassVar[int] = 2
    accelerated: ClassVar[bool] = False
    required: ClassVar[Mapping[str, tuple[str, str]]] = {
        "source.folder": ("a folder of images, below runtime.data_root or absolute", "/my/images"),
        "source.file": (
            "a list of images and captions, below runtime.data_root or absolute",
            "/my/pairs.csv",
        ),
        "size": ("the side of the checkpoint's images in pixels", "64"),
    }
    source: dict[str, Any]
    size: int
    channels: Literal[1, 3]
    center_crop: int | None
    on_bad_file: Literal["error", "skip"]
    on_duplicates: Literal["error", "drop", "keep"] = "error"
    canaries: Canaries | None = None

    def unused(self) -> tuple[str, ...]:
        return ("on_duplicates", *(() if self.canaries else ("canaries",)))

    def __post_init__(self) -> None:
        require("_target_" in self.source, "data.source", "a source, see conf/data", self.source)
        for name in self.source.keys() & PLACES:
            is_text = isinstance(self.source[name], str) or (self.is_table and name != "folder")
            remedy = f"for a name in brackets write 'data.source.{name}=\"[...]\"'"
            require(is_text, f"data.source.{name}", "text", self.source[name], remedy)
        fits = self.size == 1 if self.is_table else self.size >= 4
        require(fits, "data.size", "1" if self.is_table else ">= 4 pixels", self.size)
        if self.center_crop is not None:
            require(self.center_crop >= 1, "data.center_crop", ">= 1 pixel", self.center_crop)
        none = self.canaries is None or not (self.is_empty or self.is_table)
        require(none, "data.canaries", "null without images", "canaries", "choose another data=")

    @property
    def is_empty(self) -> bool:
        """Whether there are no images, as where a checkpoint is attacked without any."""
        return self._is_of(Nothing)

    @property
    def has_captions(self) -> bool:
        """Whether each image has a caption, for `load_captions`."""
        return self._is_of(Captioned, Planted)

    @property
    def is_table(self) -> bool:
        """Whether there are rows of a table, float32 (n, 1, 1, d), in place of images."""
        return self._is_of(Table)

    def _is_of(self, *kinds: type) -> bool:
        return self.source["_target_"] in {f"{k.__module__}.{k.__qualname__}" for k in kinds}

    def _source(self, runtime: Runtime) -> Any:
        return tried("data.source", _placed(self.source, Path(runtime.data_root).expanduser()))

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if self.is_table:
            self._source(runtime).check_target()

    def check_sources(self, runtime: Runtime) -> None:
        self._source(runtime).listing()

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        """A warning where the source's files changed after the artifact was made."""
        try:
            listing = self._source(runtime).listing()
        except (OSError, ValueError):
            return None  # a finished artifact does not need the raw data
        if listing == summary["listing"]:
            return None
        return (
            f"the source's files changed since this artifact was made ({summary['listing']} -> "
            f"{listing}), and results would be of the old ones; remedy: restore them, or delete "
            "the artifact's folder to read them again"
        )

    def run(self, job: Job) -> dict[str, Any]:
        source = self._source(job.runtime)
        listing = source.listing()  # before reading, so that a file changed meanwhile is noticed
        if self.is_table:
            return {**write_rows(job.folder, source), "listing": listing}
        images, kept, skipped, several = self._read(source, job.folder / "images.npy", job.runtime)
        with (job.folder / "ids.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "id", "partition", "identity"])
            writer.writerows([i, e.id, e.partition, e.identity] for i, e in enumerate(kept))
        if self.has_captions:
            _write_captions(job.folder / "captions.csv", kept)
        if self.canaries is not None:
            write_canaries(job.folder / CANARIES, kept)
        if kept:
            save_grid(job.folder / "preview.png", images[:64])
        if skipped:
            log.warning("skipped %d unreadable images: %s", len(skipped), ", ".join(skipped[:5]))
        if left_out := source.left_out():
            log.warning("%s", in_words(left_out))
        if several:
            log.info("%d files hold several images: the first frame or page is read", several)
        height, width, channels = images.shape[1:]
        kind = "gray" if channels == 1 else "RGB"
        log.info("%d %s images of %d x %d pixels", len(images), kind, width, height)
        return {
            "num_images": len(images),
            "shape": list(images.shape[1:]),
            "partitions": dict(Counter(e.partition for e in kept)),
            "skipped": skipped,
            "left_out": sorted(left_out.items()),  # a list, which is not sent to trackers
            "several_images": several,
            "listing": listing,
        }

    def _read(
        self, source: Source, path: Path, runtime: Runtime
    ) -> tuple[np.ndarray, list[Entry], list[str], int]:
        """The result of `read_images`, also for no images."""
        if self.is_empty:
            np.save(path, np.empty((0, self.size, self.size, self.channels), np.uint8))
            return load(path.parent), [], [], 0
        entries = source.entries()
        if self.canaries is not None:
            entries = mixed_in(entries, self.canaries)
        check_disk(path.parent, len(entries) * self.size**2 * self.channels)
        return read_images(
            entries,
            path,
            self.size,
            self.channels,
            self.center_crop,
            self.on_bad_file,
            runtime.progress_seconds,
        )


def _placed(source: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """A source's settings, its folders and files below `root`, also those of a nested source."""
    placed = dict(source)
    for name in placed.keys() & PLACES:
        if placed[name] is not None:
            placed[name] = str(root / Path(placed[name]).expanduser())
    if "source" in placed:
        placed["source"] = _placed(placed["source"], root)
    return placed


def _write_captions(path: Path, entries: Sequence[Entry]) -> None:
    captions = [entry.caption for entry in entries if entry.caption is not None]
    rows = [
        [i, c.text, c.repeats, c.word, json.dumps(c.attributes)] for i, c in enumerate(captions)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["index", "caption", "repeats", "word", "attributes"], *rows])


def load(folder: Path) -> Images:
    """The images, memory-mapped."""
    return np.load(folder / "images.npy", mmap_mode="r")


def load_partitions(folder: Path) -> np.ndarray:
    """The partition of each image ("train", "val", "test"), as an array of text."""
    return np.array([row["partition"] for row in _rows(folder)])


def load_ids(folder: Path) -> np.ndarray:
    """The id of each image (its file name or place in the source), as an array of text."""
    return np.array([row["id"] for row in _rows(folder)])


def load_identities(folder: Path) -> np.ndarray:
    """The identity or class of each image, as an array of text; "" for none."""
    return np.array([row["identity"] for row in _rows(folder)])


def load_captions(folder: Path) -> pd.DataFrame:
    """Caption, repeats, word ("" for none) and attributes (a dict) of each image, see `Caption`.

    Raises FileNotFoundError where the data have no captions.
    """
    path = folder / "captions.csv"
    if not path.exists():
        raise FileNotFoundError("the data have no captions; remedy: data=captioned or data=planted")
    import pandas as pd

    # A caption may be "NA".
    table = pd.read_csv(path, index_col="index", keep_default_na=False)
    kinds = {"caption": str, "repeats": int, "word": str}
    return table.astype(kinds).assign(attributes=[json.loads(a) for a in table["attributes"]])


def load_canaries(folder: Path) -> pd.DataFrame:
    """Repeats and trigger of each canary, by its row of the data; no rows without canaries.

    repeats: 0 for a control, which is held out. trigger: "" where images have no captions.
    """
    import pandas as pd

    path = folder / CANARIES
    if not path.exists():
        return pd.DataFrame({"repeats": [], "trigger": []}).astype({"repeats": int})
    table = pd.read_csv(path, index_col="index", keep_default_na=False)
    return table.astype({"repeats": int, "trigger": str})


def load_repeats(folder: Path, rows: np.ndarray) -> np.ndarray:
    """How often an epoch of images without captions has each of the rows: canaries may repeat."""
    return load_canaries(folder)["repeats"].reindex(rows, fill_value=1).to_numpy()


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "ids.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
