"""Where images come from: each source lists its entries and leaves reading them to `reading.py`.

A source is cheap to make and touches no file before `entries()` or `listing()` is called. What is
missing is an error that names it and the remedy. CIFAR-10, with its own file format, is in
`cifar10.py`.
"""

import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sidepipe.data.reading import Entry
from sidepipe.data.reading import read_images as read_images
from sidepipe.settings import require, require_known

log = logging.getLogger(__name__)

EXTENSIONS = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".ppm", ".tif", ".tiff", ".webp"),
)
CELEBA_PARTITIONS = {"0": "train", "1": "val", "2": "test"}
FOLDER_PARTITIONS = {"train": "train", "val": "val", "test": "test", "heldout": "test"}


class Source(Protocol):
    """Any set of images."""

    def entries(self) -> list[Entry]:
        """All images, in an order that depends on nothing but the files."""
        ...

    def listing(self) -> str:
        """A short digest of the names and sizes of the files: differs once they changed."""
        ...


@dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits that scikit-learn carries; identity is the digit."""

    def entries(self) -> list[Entry]:
        from sklearn.datasets import load_digits  # slow to import, and no other source needs it

        digits: Any = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # they count 0..16
        return [
            Entry(f"{i:04d}", "train", str(digit), partial(Image.fromarray, image), f"digit {i}")
            for i, (image, digit) in enumerate(zip(images, digits.target, strict=True))
        ]

    def listing(self) -> str:
        return "the digits of scikit-learn"


@dataclass(frozen=True)
class Nothing:
    """No images: for attacking a checkpoint without having what it was trained on."""

    def entries(self) -> list[Entry]:
        return []

    def listing(self) -> str:
        return "no images"


@dataclass(frozen=True)
class CelebA:
    """CelebA in its official layout, in the order of its partition file.

    folder: holds img_align_celeba/, list_eval_partition.txt and, perhaps, identity_CelebA.txt;
    partitions: those to keep of train, val and test, None for all.
    """

    folder: str
    partitions: list[str] | None = None

    def entries(self) -> list[Entry]:
        wanted = self._wanted()
        folder = existing_folder(self.folder)
        images, table = existing_folder(folder / "img_align_celeba"), self._table()
        there = set(_image_names(images))
        numbers = _pairs(table)
        if wrong := next((n for n in numbers.items() if n[1] not in CELEBA_PARTITIONS), None):
            raise ValueError(
                f"{table} must give 0, 1 or 2 for each image, got {wrong[1]} ({wrong[0]})"
            )
        if left_out := len(there - numbers.keys()):
            log.warning("%d images of %s are left out: %s has them not", left_out, images, table)
        people = folder / "identity_CelebA.txt"
        identities = _pairs(people) if people.exists() else {}
        entries = []
        for name, number in numbers.items():
            partition = CELEBA_PARTITIONS[number]
            if partition in wanted:
                problem = "" if name in there else f"{table} lists it, but it is not there"
                identity = identities.get(name, "")
                entries.append(_entry(images, name, partition, identity, problem))
        require(
            len(entries) > 0,
            f"the number of {' or '.join(wanted)} images in {table}",
            ">= 1",
            len(entries),
            "data.source.partitions=null keeps all",
        )
        return entries

    def listing(self) -> str:
        folder = existing_folder(self.folder)
        lists = [self._table(), folder / "identity_CelebA.txt"]
        files = _image_sizes(existing_folder(folder / "img_align_celeba"))
        return digest(files, [file.read_bytes() for file in lists if file.exists()])

    def _wanted(self) -> list[str]:
        known = list(CELEBA_PARTITIONS.values())
        if self.partitions is None:
            return known
        name = "data.source.partitions"
        require(not isinstance(self.partitions, str), name, "a list as [train]", self.partitions)
        for partition in self.partitions:
            require_known(name, partition, known)
        return list(self.partitions)

    def _table(self) -> Path:
        file = Path(self.folder) / "list_eval_partition.txt"
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing; remedy: put CelebA's own there, or use data=imagefolder"
            )
        return file


@dataclass(frozen=True)
class CelebAHQFI:
    """CelebA-HQ's facial-identity subset: `folder`/train|val|test/<identity>/<image>."""

    folder: str

    def entries(self) -> list[Entry]:
        folder = existing_folder(self.folder)
        entries = []
        for name in _image_names(folder):
            partition, *identity = name.split("/")[:-1] or [""]
            if partition not in ("train", "val", "test") or len(identity) != 1:
                raise ValueError(
                    f"{folder / name} must lie in train/, val/ or test/ and there in a folder of "
                    "its identity; remedy: move it, or use data=imagefolder"
                )
            entries.append(_entry(folder, name, partition, identity[0]))
        return entries

    def listing(self) -> str:
        return digest(_image_sizes(existing_folder(self.folder)))


@dataclass(frozen=True)
class ImageFolder:
    """Every image below `folder`, sorted by path.

    A folder train, val, test or heldout at the top is the partition (heldout counts as test),
    without one it is train. Folders below give the identity.
    """

    folder: str

    def entries(self) -> list[Entry]:
        folder = existing_folder(self.folder)
        entries = []
        for name in _image_names(folder):
            parents = name.split("/")[:-1]
            # "Test" must not pass for an identity of the training set.
            partition = FOLDER_PARTITIONS.get(parents[0].casefold()) if parents else None
            identity = "/".join(parents if partition is None else parents[1:])
            entries.append(_entry(folder, name, partition or "train", identity))
        return entries

    def listing(self) -> str:
        return digest(_image_sizes(existing_folder(self.folder)))


def existing_folder(folder: str | Path) -> Path:
    """`folder` as a path; FileNotFoundError unless it is a folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; remedy: runtime.data_root=... (where data sets lie) or "
            "data.source.folder=... (this one)"
        )
    return folder


def _image_names(folder: Path) -> list[str]:
    """Relative paths of all images below `folder`, sorted, no hidden ones; ValueError if none."""
    names = sorted(name for name, _ in _walk(str(folder), ""))
    require(
        len(names) > 0,
        f"the number of images ({', '.join(EXTENSIONS)}) in {folder}",
        ">= 1",
        len(names),
        "put them there, or data.source.folder=...",
    )
    return names


def _image_sizes(folder: Path) -> dict[str, int]:
    return {name: _size(item) for name, item in sorted(_walk(str(folder), ""), key=itemgetter(0))}


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    # A folder's listing tells files from folders; asking for 200,000 sizes is slow on some disks.
    with os.scandir(folder) as items:
        for item in items:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from _walk(item.path, f"{prefix}{item.name}/")
            elif item.name.lower().endswith(EXTENSIONS):
                yield prefix + item.name, item


def _size(item: os.DirEntry[str]) -> int:
    try:
        return item.stat().st_size
    except FileNotFoundError:
        return -1  # a link to nowhere: reading it says so


def digest(files: Mapping[str, int], contents: Iterable[bytes] = ()) -> str:
    """How many files, their bytes, and a checksum of their names and sizes and of `contents`."""
    listed = "".join(f"{name} {size}\n" for name, size in files.items())
    checksum = zlib.crc32(listed.encode(errors="surrogateescape"))
    for content in contents:
        checksum = zlib.crc32(content, checksum)
    return f"{len(files)} files, {sum(files.values())} bytes, crc32 {checksum:08x}"


def _entry(folder: Path, name: str, partition: str, identity: str, problem: str = "") -> Entry:
    file = str(folder / name)
    return Entry(name, partition, identity, partial(Image.open, file), file, problem)


def _pairs(file: Path) -> dict[str, str]:
    """Second word by first, line by line; ValueError for another form or a repeated image."""
    pairs: dict[str, str] = {}
    for number, line in enumerate(file.read_text("utf-8-sig").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise ValueError(f"{file} line {number} must be '<image> <number>', got {line!r}")
        if words[0] in pairs:
            raise ValueError(f"{file} line {number} repeats {words[0]}; remedy: remove one of them")
        pairs[words[0]] = words[1]
    return pairs
