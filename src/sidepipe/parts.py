"""Long computations in parts, each a safetensors file: a killed run makes what is missing."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

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
    there = sum(path.exists() for path in paths)
    if 0 < there < len(paths):
        log.info("%d of %d parts are there; making the rest", there, len(paths))
    said = time.monotonic()
    for part, path in zip(ranges, paths, strict=True):
        if path.exists():
            continue
        temporary = path.with_suffix(".tmp")
        arrays = {name: np.ascontiguousarray(rows) for name, rows in make(part).items()}
        save_file(arrays, temporary)
        temporary.replace(path)
        if time.monotonic() - said >= progress_seconds:
            said = time.monotonic()
            log.info("%d of %d %ss", part.stop, count, unit)
    parts = [load_file(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
