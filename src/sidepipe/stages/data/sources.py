"""Sources of images: each lists its entries, which `base.image_reading` reads.

A source is cheap to make and touches no file before `entries()` or `listing()` is called. An error
names a missing file and the remedy. `cifar10.py` has CIFAR-10, with its own file format.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from os import DirEntry
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sidepipe.base.image_files import (
    Files,
    in_words,
    is_array_file,
    list_images,
    printable,
    readable_suffixes,
)
from sidepipe.base.image_reading import Entry, entries_of, entry_of
from sidepipe.base.image_reading import read_images as read_images
from sidepipe.base.settings import require, require_known
from sidepipe.stages.data import celeba_files
from sidepipe.stages.data.layouts import partitioned

log = logging.getLogger(__name__)

CELEBA_PARTITIONS = {"0": "train", "1": "val", "2": "test"}


class Source(Protocol):
    """Any set of images."""

    def entries(self) -> list[Entry]:
        """All images, in an order that depends on the files alone."""
        ...

    def listing(self) -> str:
        """A short digest of names and sizes of the files; it differs once they change."""
        ...

    def left_out(self) -> Counter[str]:
        """How many of its files are not read, by kind, such as ".heic"."""
        return Counter()


@dataclass(frozen=True)
class Digits(Source):
    """The 1,797 handwritten digits of scikit-learn; identity is the digit."""

    def entries(self) -> list[Entry]:
        from sklearn.datasets import load_digits  # slow to import, and no other source uses it

        digits: Any = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # their range is 0 to 16
        return [
            Entry(f"{i:04d}", "train", str(digit), partial(Image.fromarray, image), f"digit {i}")
            for i, (image, digit) in enumerate(zip(images, digits.target, strict=True))
        ]

    def listing(self) -> str:
        return "the digits of scikit-learn"


@dataclass(frozen=True)
class Nothing(Source):
    """No images: to attack a checkpoint without its training images."""

    def entries(self) -> list[Entry]:
        return []

    def listing(self) -> str:
        return "no images"


@dataclass(frozen=True)
class CelebA(Source):
    """CelebA, in the order of its partition file, which also gives the ids.

    folder: holds img_align_celeba/, list_eval_partition.txt and optionally identity_CelebA.txt, at
    its top or in folders below it (Img/, Eval/, Anno/); see `celeba_files`. partitions: those to
    keep, of train, val and test; None for all.
    """

    folder: str
    partitions: list[str] | None = None

    def entries(self) -> list[Entry]:
        wanted = self._wanted()
        images, table = self._images(), self._table()
        there = _listed(images)
        numbers = celeba_files.read_pairs(table)
        if wrong := next((n for n in numbers.items() if n[1] not in CELEBA_PARTITIONS), None):
            raise ValueError(
                f"{table} must give 0, 1 or 2 for each image, got {wrong[1]} ({wrong[0]})"
            )
        log.info("%s lists %d images, %s holds %d", table, len(numbers), images, len(there))
        files = celeba_files.located(numbers, there, images, table)
        if left_out := len(there) - len(files):
            log.warning(
                "%d images of %s are left out: %s does not list them", left_out, images, table
            )
        people = celeba_files.find_list(Path(self.folder), "identity_CelebA")
        identities = celeba_files.read_pairs(people) if people else {}
        entries = []
        for name, number in numbers.items():
            partition = CELEBA_PARTITIONS[number]
            if partition in wanted:
                problem = "" if name in files else f"{table} lists it, but it is not there"
                file = f"{images}/{files.get(name, name)}"
                entries.append(entry_of(file, name, partition, identities.get(name, ""), problem))
        require(
            len(entries) > 0,
            f"the number of {' or '.join(wanted)} images in {table}",
            ">= 1",
            len(entries),
            "data.source.partitions=null keeps all",
        )
        return entries

    def listing(self) -> str:
        images, people = (
            self._images(),
            celeba_files.find_list(Path(self.folder), "identity_CelebA"),
        )
        lists = [file for file in (self._table(), people) if file is not None]
        return digest(_sizes(list_images(images)[0]), [file.read_bytes() for file in lists])

    def left_out(self) -> Counter[str]:
        return list_images(self._images())[1]

    def _wanted(self) -> list[str]:
        known = list(CELEBA_PARTITIONS.values())
        if self.partitions is None:
            return known
        name = "data.source.partitions"
        require(not isinstance(self.partitions, str), name, "a list as [train]", self.partitions)
        for partition in self.partitions:
            require_known(name, partition, known)
        return list(self.partitions)

    def _images(self) -> Path:
        return celeba_files.find_images(existing_folder(self.folder))

    def _table(self) -> Path:
        folder = Path(self.folder)
        if (file := celeba_files.find_list(folder, "list_eval_partition")) is None:
            raise FileNotFoundError(
                f"{folder / 'list_eval_partition.txt'} is missing, found were "
                f"{celeba_files.content(folder)}; remedy: put CelebA's own there, or use "
                "data=imagefolder"
            )
        return file


@dataclass(frozen=True)
class _Folder(Source):
    """Images below one folder, whose sub-folders give partition and identity."""

    folder: str

    def listing(self) -> str:
        return digest(_sizes(list_images(existing_folder(self.folder))[0]))

    def left_out(self) -> Counter[str]:
        return list_images(existing_folder(self.folder))[1]

    def _in_layout(self) -> list[Entry]:
        """The entries, sorted by path; logs the layout."""
        folder = existing_folder(self.folder)
        files = _listed(folder)
        places, layout = partitioned([printable(name) for name in files], str(folder))
        log.info("%s", layout)
        return [
            entry
            for (name, item), place in zip(files.items(), places, strict=True)
            for entry in entries_of(item.path, printable(name), *place)
        ]


@dataclass(frozen=True)
class CelebAHQFI(_Folder):
    """CelebA-HQ's facial-identity subset: `folder`/train|val|test/<identity>/<image>."""

    def entries(self) -> list[Entry]:
        entries = self._in_layout()
        for entry in entries:
            if not entry.identity or "/" in entry.identity or entry.identity == _parents(entry.id):
                raise ValueError(
                    f"{entry.file} must lie in train/, val/ or test/ and there in a folder of "
                    "its identity; remedy: move it, or use data=imagefolder"
                )
        return entries


@dataclass(frozen=True)
class ImageFolder(_Folder):
    """Every image below `folder`, sorted by path, or of a NumPy file.

    Sub-folders give the partition and the identity, see `layouts.partitioned`.
    """

    def entries(self) -> list[Entry]:
        return self._in_layout()


def _parents(name: str) -> str:
    return name.rpartition("/")[0]


def existing_folder(folder: str | Path) -> Path:
    """`folder` as a path; FileNotFoundError unless it is a folder, or a NumPy file."""
    folder = Path(folder)
    if not folder.is_dir() and not is_array_file(folder):
        raise FileNotFoundError(
            f"{folder} is not a folder; remedy: runtime.data_root=... (where data sets lie) or "
            "data.source.folder=... (this one)"
        )
    return folder


def _listed(folder: Path) -> Files:
    """The image files below `folder` by relative path; ValueError, with its content, if none."""
    files, others = list_images(folder)
    if others and not files:
        remedy = "install what they need, convert them, or data.source.folder=..."
        raise ValueError(
            f"{folder} holds no image that can be read; {in_words(others)}; remedy: {remedy}"
        )
    if not files:
        remedy = "put images there, or data.source.folder=..."
        known = ", ".join(readable_suffixes())
        raise ValueError(f"{folder} holds no images; remedy: {remedy} (suffixes: {known})")
    return files


def _sizes(files: Files) -> dict[str, int]:
    return {name: _size(item) for name, item in files.items()}


def _size(item: DirEntry[str]) -> int:
    try:
        return item.stat().st_size
    except OSError:
        return -1  # a broken link: reading the image raises the error


def digest(files: Mapping[str, int], contents: Iterable[bytes] = ()) -> str:
    """The number of files, their bytes, and a checksum of names, sizes and `contents`."""
    listed = "".join(f"{name} {size}\n" for name, size in files.items())
    checksum = zlib.crc32(listed.encode(errors="surrogateescape"))
    for content in contents:
        checksum = zlib.crc32(content, checksum)
    return f"{len(files)} files, {sum(files.values())} bytes, crc32 {checksum:08x}"
