"""Pairs of an image and a caption, listed in one CSV or JSON-lines file."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from sidepipe.data.reading import Caption, Entry
from sidepipe.data.sources import FOLDER_PARTITIONS, digest
from sidepipe.records import Record, read_records, text_of
from sidepipe.settings import require, require_known


@dataclass(frozen=True)
class Captioned:
    """The pairs of `file`: .csv with a header, or .jsonl with an object a line.

    Columns: image (its path, relative to the file's folder) and caption; and perhaps repeats (how
    often training sees the pair, 1), partition (train, val, or test as heldout; train) and word (a
    word of the caption that no other has). Others are not read.
    """

    file: str

    def entries(self) -> list[Entry]:
        entries = [self._entry(where, row) for where, row in read_records(Path(self.file))]
        partitions: dict[str, str] = {}
        pairs = set()
        for entry in entries:
            pair = entry.id, entry.caption and entry.caption.text
            rule = "listed once; remedy: say how often training sees it in a column repeats"
            require(pair not in pairs, f"a pair of {self.file}", rule, pair)
            pairs.add(pair)
            other = partitions.setdefault(entry.id, entry.partition)
            rule = f"of one partition in {self.file}, not {other} as well"
            require(other == entry.partition, entry.id, rule, entry.partition)
        return entries

    def listing(self) -> str:
        file = Path(self.file)
        rows = read_records(file)
        sizes = {name: _size(file.parent / name) for name in (text_of(*r, "image") for r in rows)}
        return digest(sizes, [file.read_bytes()])

    def _entry(self, where: str, row: Record) -> Entry:
        name = text_of(where, row, "image")
        file = Path(self.file).parent / name
        partition = str(row.get("partition") or "train").casefold()
        require_known(f"{where}: partition", partition, FOLDER_PARTITIONS)
        text, word = text_of(where, row, "caption"), str(row.get("word") or "")
        if word:
            require(word in text, f"{where}: word", f"a word of its caption {text!r}", word)
        return Entry(
            id=name,
            partition=FOLDER_PARTITIONS[partition],
            identity="",
            read=partial(Image.open, str(file)),
            file=str(file),
            problem="" if file.is_file() else f"{where} lists it, but it is not there",
            caption=Caption(text, _repeats(where, row.get("repeats")), word),
        )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1  # reading it says so


def _repeats(where: str, value: object) -> int:
    if value is None or value == "":
        return 1
    try:
        number = float(str(value))  # a table with gaps may have been saved as 4.0
    except ValueError:
        number = float("nan")
    require(number.is_integer() and number >= 1, f"{where}: repeats", "a whole number >= 1", value)
    return int(number)
