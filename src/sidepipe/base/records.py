"""Rows of CSV and JSON-lines files, each with its file and line for messages."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SUFFIXES = (".csv", ".jsonl")
# Columns of free text, whose values may begin with a space.
TEXTS = {"caption", "prompt", "text"}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_records(path: Path) -> list[tuple[str, Record]]:
    """(file and line, value by column) of each row; columns in lower case, CSV's values as text.

    CSV is separated by commas or, where its header has more of them, semicolons or tabs. Raises
    FileNotFoundError without the file, and ValueError for another suffix, a row that cannot be
    read, a duplicate column, or no rows.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} must end with {' or '.join(SUFFIXES)}, got {path.suffix!r}")
    is_csv = path.suffix.lower() == ".csv"
    read = _csv_rows if is_csv else _json_rows
    rows: list[tuple[str, Record]] = []
    for line, row in read(path, text_in(path)):
        where = f"{path} line {line}"
        for name, value in row.items():
            _require_text(where, name, value)
        rows.append((where, row))
    if not rows:
        remedy = "write rows below its header" if is_csv else "write one object per line"
        raise ValueError(f"{path} has no rows; remedy: {remedy}")
    if is_csv:
        _require_even_spaces(rows)
    return rows


def text_in(path: Path) -> str:
    """A file's text, whose lines end with a newline: UTF-8, or UTF-16 with a byte order mark.

    Raises FileNotFoundError without the file, and ValueError, with the line, for other bytes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; remedy: check the path")
    raw = path.read_bytes()
    is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} line {line} cannot be read: {error.reason} (byte {error.start}); "
            "remedy: save it as UTF-8"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path} line {line} holds a NUL character; remedy: save it as UTF-8")
    return text


def text_of(where: str, row: Record, name: str) -> str:
    """A row's text in column `name`, with single spaces; ValueError where there is none."""
    if name not in row:
        raise ValueError(
            f"{where} has no {name!r}, it has {', '.join(map(repr, row))}; remedy: rename a column"
        )
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name!r} must be text, got {value!r}; remedy: write text there")
    return " ".join(value.split())


def _require_text(where: str, name: str, value: Any) -> None:
    """Raises ValueError for characters that JSON can escape and no file of text can hold."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for each in (name, text):
        if _NO_TEXT.search(each):
            raise ValueError(
                f"{where}: {name!a} must be text without NUL and half surrogate pairs, got "
                f"{each[:40]!a}; remedy: remove such characters"
            )


def _require_even_spaces(rows: Sequence[tuple[str, Record]]) -> None:
    """Raises ValueError where only some values of a column begin with a space.

    "a cat; sitting" without quotes fills two columns, and a row whose last value is missing still
    has the right number of values.
    """
    for column in rows[0][1].keys() - TEXTS:
        values = [(where, row.get(column)) for where, row in rows]
        filled = [(where, value) for where, value in values if isinstance(value, str) and value]
        spaced = [(where, value) for where, value in filled if value.startswith(" ")]
        if 0 < len(spaced) < len(filled):
            where, value = spaced[0]
            raise ValueError(
                f"{where}: {column!r} begins with a space, unlike in other rows, got {value!r}; "
                "remedy: quote a value that holds the separator, or remove the space"
            )


def _named(where: str, names: Sequence[str]) -> list[str]:
    """Columns in lower case, without outer spaces; ValueError for duplicates."""
    known = [name.strip().lower() for name in names]
    for name, count in Counter(known).items():
        if count > 1:
            raise ValueError(f"{where} has {count} columns {name!r}; remedy: rename or remove one")
    return known


def csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and values of the header and of each row that is not empty.

    Raises ValueError for a row whose number of values is not that of the header.
    """
    header = text.lstrip("\n").partition("\n")[0]
    source = io.StringIO(text, newline="")
    # strict: otherwise an unclosed quote takes in the rest of the file.
    lines = csv.reader(source, delimiter=max(",;\t", key=header.count), strict=True)
    count = 0
    start = 1
    try:
        for values in lines:
            count = count or len(values)
            if values and len(values) != count:
                raise ValueError(
                    f"{path} line {start} must have {count} values, as the header, got "
                    f"{len(values)}; remedy: quote a value that holds a comma or another separator"
                )
            if values:
                yield start, values
            start = lines.line_num + 1
    except csv.Error as error:
        remedy = "close its quotes, and double those within a quoted value"
        raise ValueError(f"{path} line {start} cannot be read: {error}; remedy: {remedy}") from None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    lines = csv_lines(path, text)
    for start, header in lines:
        names = _named(f"{path} line {start}", header)
        yield from ((line, dict(zip(names, values, strict=True))) for line, values in lines)


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        objects: list[list[tuple[str, Any]]] = []
        try:
            json.loads(line, object_pairs_hook=objects.append)
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{where} is not JSON: {error}; remedy: write one object per line"
            ) from None
        names = [_named(where, [name for name, _ in pairs]) for pairs in objects]
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be an object, got {line[:40]!r}")
        yield (
            number,
            dict(zip(names[-1], row.values(), strict=True)),
        )  # the outermost object ends last
