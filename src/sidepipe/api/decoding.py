"""Folders of images decoded on disk, part by part: a killed call resumes, and memory is bounded.

A file holds the pixels of the images of one or two sets, one image after the other, without a
header. It is named by what it depends on. A JSON file per set counts what is whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from sidepipe.api.naming import require_whole
from sidepipe.base.files import read_json, write_json
from sidepipe.base.image_reading import Entry, read_images
from sidepipe.base.settings import require, require_known
from sidepipe.engine.shards import check_disk

SUFFIX = ".pixels"
PART_IMAGES = 8192  # decoded before they count as whole

RESIZES = {
    "crop": ", from the central square",
    "stretch": " without keeping the aspect ratio",
}

Images = UInt8[np.ndarray, "n h w c"]


@dataclass(frozen=True)
class Reading:
    """How folders and arrays become images of one shape; the arguments of `compare`."""

    size: int | None = None
    resize: Literal["crop", "stretch"] = "crop"
    channels: Literal[1, 3] | None = None
    on_bad_file: Literal["error", "skip"] = "error"

    def check(self) -> None:
        if self.size is not None:
            require_whole(size=self.size)
        require(self.size is None or self.size >= 1, "size", ">= 1 or None", self.size)
        require_known("resize", self.resize, RESIZES)
        if self.channels is not None:
            require_whole(channels=self.channels)
        require(
            self.channels in (1, 3, None), "channels", "1 (gray), 3 (RGB) or None", self.channels
        )
        require_known("on_bad_file", self.on_bad_file, ["error", "skip"])


@dataclass(frozen=True)
class Decoding:
    """How entries become pixels: the arguments of `read_images`."""

    size: int | tuple[int, int]
    channels: Literal[1, 3]
    on_bad_file: Literal["error", "skip"]

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width, self.channels

    def read(self, entries: Sequence[Entry], path: Path) -> tuple[Images, list[str], int]:
        """The images at `path`, ids of those skipped, and how many files hold several."""
        images, _, skipped, several = read_images(
            entries, path, self.size, self.channels, None, self.on_bad_file
        )
        return images, skipped, several


def files_of(
    cache: Path, entries: Mapping[str, Sequence[Entry]], how: Decoding
) -> dict[str, Path | None]:
    """The file of each set: training and held-out images share one, so that `joined` is free."""
    real = _file_of(cache, [*entries["train"], *entries["heldout"]], how)
    return {"train": real, "heldout": real} | {
        name: _file_of(cache, some, how) for name, some in entries.items() if name == "generated"
    }


def _file_of(cache: Path, entries: Sequence[Entry], how: Decoding) -> Path | None:
    """The file of the pixels of `entries`, named by `how`, and by names, sizes and times.

    None where an image is in no file whose change would be noticed, such as one of an array.
    """
    described = hashlib.sha256(str(how).encode())
    for entry in entries:
        # Behind the name of a file of several images stands the place of one, such as [3].
        names = (entry.file, entry.file.rpartition("[")[0])
        path = next((Path(name) for name in names if name and Path(name).is_file()), None)
        if path is None:
            return None
        status = path.stat()
        facts = f"{entry.file} {entry.id} {status.st_size} {status.st_mtime_ns}\n"
        described.update(facts.encode())
    return cache / f"{described.hexdigest()[:32]}{SUFFIX}"


def decoded(
    path: Path, name: str, first: int, entries: Sequence[Entry], how: Decoding
) -> tuple[Images, list[str], int]:
    """As `Decoding.read`, memory-mapped from the rows of `path` from `first` on, and resumed.

    name: of the set, which has a JSON file of its own. Raises OSError without room on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    about, part = path.with_suffix(f".{name}.json"), path.with_suffix(f".{name}.npy")
    row_bytes = int(np.prod(how.shape))
    state = _state(about, path, first, row_bytes)
    check_disk(path.parent, (len(entries) - state["done"]) * row_bytes, "the decoded images")
    # Parts of nearly equal size: a last part of a few images could hold unreadable ones alone.
    edges = np.linspace(0, len(entries), -(-len(entries) // PART_IMAGES) + 1).astype(int)
    for start, stop in pairwise(edges.tolist()):
        if stop <= state["done"]:
            continue
        images, skipped, several = how.read(entries[start:stop], part)
        with path.open("r+b") as file:
            file.seek((first + state["rows"]) * row_bytes)
            file.write(images.data)
            os.fsync(file.fileno())
        part.unlink()
        state |= {
            "done": stop,
            "rows": state["rows"] + len(images),
            "skipped": [*state["skipped"], *skipped],
            "several": state["several"] + several,
        }
        write_json(about, state)
    shape = (state["rows"], *how.shape)
    images = np.memmap(path, np.uint8, "r", offset=first * row_bytes, shape=shape)
    return images, state["skipped"], state["several"]


def _state(about: Path, path: Path, first: int, row_bytes: int) -> dict[str, Any]:
    """How much of a set is decoded: nothing where the pixels are missing or lie elsewhere."""
    none = {"first": first, "done": 0, "rows": 0, "skipped": [], "several": 0}
    state = read_json(about) or none
    is_whole = path.stat().st_size >= (first + state["rows"]) * row_bytes
    return state if is_whole and state["first"] == first else none


def joined(first: Images, second: Images) -> Images:
    """Both in one array; no copy is made where the second follows the first in a file of pixels."""
    file = getattr(first, "filename", None)
    shares = file == getattr(second, "filename", None)
    # A file of another kind may have a header.
    if file is None or not shares or Path(file).suffix != SUFFIX:
        return np.concatenate([first, second])
    return np.memmap(file, np.uint8, "r", shape=(len(first) + len(second), *first.shape[1:]))
