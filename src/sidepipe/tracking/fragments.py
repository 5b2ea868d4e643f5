"""The files of tracked runs: found, read back, and made fit to be uploaded.

A run that was killed and resumed consists of several fragments, one per process. Remains of a
killed process can block the upload of all fragments of its run while `wandb sync` reports success.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# wandb writes the machine's load every 15 s, so a file that rests this long has no writer.
RESTING_SECONDS = 300.0
# A .wandb file is a LevelDB log: a header, then chunks that never cross the end of a block.
HEADER_BYTES, CHUNK_HEADER_BYTES, BLOCK_BYTES = 7, 7, 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
BROKEN = "broken"


@dataclass(frozen=True)
class Fragment:
    """One process's part of a run.

    path: its .wandb file. run: its facts about the run (project, job type, config), None where it
    ends before. rows: of history. ended: whether the process closed it.
    """

    path: Path
    run: Mapping[str, Any] | None
    rows: int
    ended: bool

    @property
    def is_uploaded(self) -> bool:
        """By `wandb sync`, which leaves a mark, or by the run itself where it was online."""
        marked = self.path.with_suffix(".wandb.synced").exists()
        return marked or not self.path.parent.name.startswith("offline-")

    @property
    def is_running(self) -> bool:
        """Whether a process may still be writing it."""
        return not self.ended and time.time() - self.path.stat().st_mtime < RESTING_SECONDS


def paths_by_run(folder: Path) -> dict[str, list[Path]]:
    """The .wandb files under a `tracking.folder`, by run id, of each run the earliest first."""
    found = [p for p in folder.glob("wandb/*run-*/*.wandb") if not p.parent.is_symlink()]
    runs: dict[str, list[Path]] = {}
    for path in sorted(found, key=lambda p: p.parent.name.removeprefix("offline-")):
        runs.setdefault(path.stem.removeprefix("run-"), []).append(path)
    return runs


def read(path: Path) -> Fragment:
    """The content of a .wandb file; for a torn file, its whole records."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    run, rows, ended = None, 0, False
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record["type"] == "run" and run is None:
            run = record["run"]
        rows += record["type"] == "history"
        ended |= record["type"] == "exit"
    return Fragment(path, run, rows, ended)


def read_all(paths: list[Path]) -> list[Fragment]:
    """As `read`, several at a time: each takes half a second, most of it starting wandb."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, paths))


def make_fit(fragment: Fragment, folder: Path) -> bool:
    """Whether the fragment can be uploaded; a torn end is cut off, a broken one set aside first.

    folder: the `tracking.folder`, in whose folder `broken` it is kept.
    """
    path = fragment.path
    if fragment.run is None:
        aside = folder / BROKEN / path.parent.name
        aside.parent.mkdir(exist_ok=True)
        path.parent.rename(aside)
        log.warning("%s has no records, as its run was killed: moved to %s", path.name, aside)
        return False
    content = path.read_bytes()
    whole = whole_bytes(content)
    if whole < len(content):
        path.with_suffix(".wandb.torn").write_bytes(content)
        written = path.stat().st_mtime
        with path.open("r+b") as file:
            file.truncate(whole)
        os.utime(path, (written, written))  # still not being written
        log.warning("%s: %d torn bytes at its end cut off", path, len(content) - whole)
    return True


def whole_bytes(content: bytes) -> int:
    """How many bytes from the start of a .wandb file are whole records."""
    at = end = HEADER_BYTES
    while at + CHUNK_HEADER_BYTES <= len(content):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < CHUNK_HEADER_BYTES:
            at += left  # the padding of a block
            continue
        length = int.from_bytes(content[at + 4 : at + 6], "little")
        kind = content[at + 6]
        at += CHUNK_HEADER_BYTES + length
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or at > len(content):
            break
        if kind in (WHOLE, LAST):
            end = at
    return min(end, len(content))
