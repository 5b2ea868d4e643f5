"""Rows of the CSV and JSON-lines files that people write, each with its line for messages."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SUFFIXES = (".csv", ".jsonl")


def read_records(path: Path) -> list[tuple[str, Record]]:
    """(file and line, value by column) of each row; columns in lower case, CSV's values as text.

    CSV is separated by commas or, where its header has more of them, semicolons or tabs. Raises
    FileNotFoundError without the file, and ValueError for another suffix, a row that cannot be
    read, or no rows.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} must end with {' or '.join(SUFFIXES)}, got {path.suffix!r}")
    read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    try:
        rows = [(f"{path} line {line}", _lower(row)) for line, row in read(path, text_in(path))]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read: {error}; remedy: save it anew") from None
    if not rows:
        raise ValueError(f"{path} has no rows; remedy: one row an image or prompt")
    return rows


def text_in(path: Path) -> str:
    """A file's text; FileNotFoundError without the file, ValueError where it is not UTF-8."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; remedy: check the path")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read: {error}; remedy: save it as UTF-8") from None


def text_of(where: str, row: Record, name: str) -> str:
    """A row's text in column `name`, with single spaces; ValueError where there is none."""
    if name not in row:
        raise ValueError(
            f"{where} has no {name!r}, it has {', '.join(map(repr, row))}; remedy: rename a column"
        )
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name!r} must be text, got {value!r}")
    return " ".join(value.split())


def _lower(row: Record) -> Record:
    return {name.strip().lower(): value for name, value in row.items()}


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    header = text.partition("\n")[0]
    source = io.StringIO(text, newline="")
    lines = csv.DictReader(source, delimiter=max(",;\t", key=header.count))
    for row in lines:
        if None in row or None in row.values():
            raise ValueError(
                f"{path} line {lines.line_num} must have {len(lines.fieldnames or [])} values, as "
                "the header; remedy: quote what holds a comma"
            )
        yield lines.line_num, row


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} must be an object, got {line[:40]!r}")
        yield number, row
