"""Files that are whole or absent: each is written under a temporary name and then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class CannotWrite(OSError):
    """A file could not be written: the message names it, the reason and the remedy."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name next to `path`: the file that the block writes there becomes `path`.

    It is flushed to disk before it is renamed, so that a crash leaves the old file or the new one.
    A block that fails leaves no temporary file. Raises CannotWrite where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise cannot_write(path, error) from error
        raise


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV file without an index, numbers to six decimals."""
    table.to_csv(path, index=False, float_format="%.6f")


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` means that a disk or a quota is full.

    Some libraries drop the error number, and only the message remains; the message of torch's
    writer is a line of its source.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    words = ("No space left on device", "Disk quota exceeded", "fail at inline_container.cc")
    has_number = isinstance(error, OSError) and error.errno in full
    return has_number or any(word in str(error) for word in words)


def cannot_write(path: Path, error: BaseException) -> CannotWrite:
    """The error for a file or folder on a full disk, with the free space and the remedy."""
    if isinstance(error, CannotWrite):
        return error
    free = shutil.disk_usage(existing(path)).free
    return CannotWrite(
        f"{path} cannot be written: its disk or your quota is full ({gigabytes(free)} free); "
        "remedy: free space and run the same command again, which resumes"
    )


def gigabytes(num_bytes: float) -> str:
    """A number of bytes as text, such as "1,234.500 GB"."""
    return f"{num_bytes / 1e9:,.3f} GB"


def existing(path: Path) -> Path:
    """`path`, or the closest of its parents that exists."""
    return next(p for p in [path, *path.parents] if p.exists())


_hashes: dict[tuple[str, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex; computed once per process while the file does not change."""
    status = path.stat()
    identity = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
    if identity not in _hashes:
        with path.open("rb") as file:
            _hashes[identity] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[identity]


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name, then renames it: no reader gets half a file."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text)


def load_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file; ValueError with the file and the remedy if it is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; {remedy}") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def require_free(name: str, folder: Path) -> None:
    """Raises FileExistsError unless `folder`, the value of setting `name`, is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{name} must be a new or empty folder, got {folder}, which exists; remedy: choose "
            "another name, or remove it"
        )
