"""Long computations in parts, each a safetensors file: a killed run makes what is missing."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sidepipe.base.files import whole_file

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def in_parts(
    folder: Path,
    count: int,
    size: int,
    make: Callable[[range], Arrays],
    unit: str,
    progress_seconds: float = 30.0,
) -> Arrays:
    """What `make` gives for items 0 to count, `size` at a time, joined along the first axis.

    folder: keeps a file a part, so it must belong to these settings alone. make: arrays with a row
    for each item of its range; what they hold must not depend on how items are cut into parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranges = [range(i, min(i + size, count)) for i in range(0, count, size)]
    # With its end: parts may be cut otherwise when a run goes on, on a device with more memory.
    paths = [folder / f"{part.start:07d}-{part.stop:07d}.safetensors" for part in ranges]
    for part, path in zip(ranges, paths, strict=True):
        if path.exists() and not _keep(path, len(part)):
            path.unlink()
    there = sum(path.exists() for path in paths)
    if 0 < there < len(paths):
        log.info("%d of %d parts are there; making the rest", there, len(paths))
    said = time.monotonic()
    for part, path in zip(ranges, paths, strict=True):
        if path.exists():
            continue
        arrays = {name: np.ascontiguousarray(rows) for name, rows in make(part).items()}
        with whole_file(path) as temporary:
            save_file(arrays, temporary)
        if time.monotonic() - said >= progress_seconds:
            said = time.monotonic()
            log.info("%d of %d %ss", part.stop, count, unit)
    parts = [load_file(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _keep(path: Path, count: int) -> bool:
    """Whether the file of a part is whole and has `count` rows; if not, a warning says why."""
    try:
        with safe_open(path, "np") as file:
            rows = {file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        log.warning("%s is cut short and is made again: %s", path, error)
        return False
    if rows != {count}:
        log.warning("%s has %s rows instead of %d and is made again", path, sorted(rows), count)
    return rows == {count}
