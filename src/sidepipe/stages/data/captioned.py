"""Pairs of an image and a caption, listed in one CSV or JSON-lines file."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from os.path import commonpath, normpath, relpath
from pathlib import Path

from sidepipe.base.image_files import open_image
from sidepipe.base.image_reading import Caption, Entry
from sidepipe.base.records import Record, read_records, text_of
from sidepipe.base.settings import require, require_known
from sidepipe.stages.data.layouts import partition_of, partitioned, words
from sidepipe.stages.data.sources import Source, digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioned(Source):
    """The pairs of `file`: .csv with a header, or .jsonl with an object per line.

    Columns: image (its path, relative to the file's folder) and caption; optionally repeats (how
    often the pair is in the training set, default 1), partition (train, val, test or a synonym, see
    `layouts`) and word (a word of the caption that no other caption has). Other columns are
    ignored. Rows without a partition have that of the folders in their image's path, see
    `layouts.partitioned`.
    """

    file: str

    def entries(self) -> list[Entry]:
        rows = read_records(Path(self.file))
        names = [self._name(where, row) for where, row in rows]
        partitions = self._partitions(rows, names)
        entries = [
            self._entry(*row, name, partition)
            for row, name, partition in zip(rows, names, partitions, strict=True)
        ]
        seen: dict[str, str] = {}
        pairs = set()
        for (where, _), entry in zip(rows, entries, strict=True):
            pair = entry.file, entry.caption and entry.caption.text
            rule = "listed once; remedy: write how often it is trained on into a column repeats"
            require(pair not in pairs, f"{where}: a pair", rule, pair)
            pairs.add(pair)
            other = seen.setdefault(entry.file, entry.partition)
            rule = f"of one partition, not {other} as well"
            require(other == entry.partition, f"{where}: {entry.id}", rule, entry.partition)
        return entries

    def listing(self) -> str:
        file = Path(self.file)
        rows = read_records(file)
        sizes = {name: _size(self._full(name)) for name in (self._name(*row) for row in rows)}
        return digest(sizes, [file.read_bytes()])

    def _name(self, where: str, row: Record) -> str:
        """The image's path from the file's folder, the same for 0.png and ./0.png."""
        name = normpath(text_of(where, row, "image"))
        full, above = self._full(name), f"{self._folder}/"
        return full.removeprefix(above) if full.startswith(above) else name

    @cached_property
    def _folder(self) -> str:
        return normpath(Path(self.file).parent.absolute()).rstrip("/")

    def _full(self, name: str) -> str:
        # Links are not resolved: a link keeps its name in the list.
        return normpath(name if name.startswith("/") else f"{self._folder}/{name}")

    def _partitions(self, rows: Sequence[tuple[str, Record]], names: Sequence[str]) -> list[str]:
        """Each row's partition: its own, else that of its image's folders."""
        own = [_own_partition(*row) for row in rows]
        left = [name for name, partition in zip(names, own, strict=True) if partition is None]
        places, layout = partitioned(self._below(left), self.file)
        if left:
            log.info("%s: images without a partition in the list: %s", self.file, layout)
        of_folders = iter(place for place, _ in places)
        return [partition or next(of_folders) for partition in own]

    def _below(self, names: Sequence[str]) -> list[str]:
        """Paths without the folders above the list, or above all images outside its folder."""
        outside = [self._full(name) for name in names if name.startswith(("/", ".."))]
        # The last common folder stays: it may be test/.
        above = Path(commonpath([Path(file).parent for file in outside] or ["/"])).parent
        return [
            relpath(self._full(name), above) if name.startswith(("/", "..")) else name
            for name in names
        ]

    def _entry(self, where: str, row: Record, name: str, partition: str) -> Entry:
        file = self._full(name)
        text, word = text_of(where, row, "caption"), str(row.get("word") or "")
        if word:
            require(word in text, f"{where}: word", f"a word of its caption {text!r}", word)
        return Entry(
            id=name,
            partition=partition,
            identity="",
            read=partial(open_image, file),
            file=file,
            problem="" if Path(file).is_file() else f"{where} lists it, but it is not there",
            caption=Caption(text, _repeats(where, row.get("repeats")), word),
        )


def _own_partition(where: str, row: Record) -> str | None:
    named = str(row.get("partition") or "").strip()
    if not named:
        return None
    if (partition := partition_of(named)) is None:
        require_known(f"{where}: partition", named.casefold(), words())
    return partition


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError:
        return -1  # reading the image raises the error


def _repeats(where: str, value: object) -> int:
    if value is None or value == "":
        return 1
    try:
        number = float(str(value))  # a table with gaps may have been saved as 4.0
    except ValueError:
        number = float("nan")
    require(number.is_integer() and number >= 1, f"{where}: repeats", "a whole number >= 1", value)
    return int(number)
