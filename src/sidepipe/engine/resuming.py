"""The same command resumes a killed run: finished parts of its work are kept.

Every part is renamed to its final name when it is whole; `keep` finds files that were truncated
later. The complete list of the work that resumes:

- Whole artifacts: `manifest.json`, written last (`sidepipe.engine.artifacts`).
- Sampled images: shards, `shards/000000.npy`, which stay as the result (`sidepipe.engine.shards`).
- Long computations: `in_parts`, whose files the stage removes after it has the result.
- Encoded real images: blocks of one memory-mapped file, nan where missing
  (`stages.reference.encoding`), because they can exceed the memory.
- Trials of tune and rounds of extract: a folder each, with shards and a JSON file of the cost.
- Training: one checkpoint of the whole state, replaced in place
  (`sidepipe.engine.checkpoints`).
- Seconds of work: summed over all attempts (`sidepipe.engine.attempts`).
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sidepipe.base.files import whole_file
from sidepipe.engine.logs import counting

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def keep(path: Path, shape: Sequence[int | None], dtype: type[np.generic] | None = None) -> bool:
    """Whether `path` exists and is whole; removes any other file with a warning.

    A .npy file holds one array of this shape and type, a .safetensors file several. shape: of the
    first axes, None for an axis of any length.
    """
    if not path.exists():
        return False
    try:
        held = _held(path)
    except (ValueError, EOFError, SafetensorError) as error:
        log.warning("%s is truncated and is made again: %s", path, error)
    else:
        if all(_fits(has, shape) and (dtype is None or kind == dtype) for kind, has in held):
            return True
        log.warning("%s holds %s and is made again", path, held)
    path.unlink()
    return False


def _held(path: Path) -> list[tuple[Any, tuple[int, ...]]]:
    """Type and shape of each array of the file, from the header alone."""
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r")
        return [(array.dtype, array.shape)]
    with safe_open(path, "np") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
        return [(some.get_dtype(), tuple(some.get_shape())) for some in slices]


def _fits(has: Sequence[int], shape: Sequence[int | None]) -> bool:
    found = has[: len(shape)]
    return len(found) == len(shape) and all(
        want in (None, have) for have, want in zip(found, shape, strict=True)
    )


def in_parts(
    folder: Path,
    count: int,
    size: int,
    make: Callable[[range], Arrays],
    unit: str,
    progress_seconds: float = 30.0,
) -> Arrays:
    """The arrays of `make` for items 0 to count, `size` at a time, joined along the first axis.

    folder: keeps one safetensors file per part, so it must belong to these settings alone. make:
    returns arrays with one row per item of its range, independent of the division into parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranges = [range(i, min(i + size, count)) for i in range(0, count, size)]
    # Names contain the end: a run that resumes on another device may have parts of another size.
    paths = [folder / f"{part.start:07d}-{part.stop:07d}.safetensors" for part in ranges]
    missing = [i for i, part in enumerate(ranges) if not keep(paths[i], (len(part),))]
    if 0 < len(missing) < len(paths):
        log.info("%d of %d parts exist; making the rest", len(paths) - len(missing), len(paths))
    report = counting(count, f"{unit}s", progress_seconds)
    for i in missing:
        arrays = {name: np.ascontiguousarray(rows) for name, rows in make(ranges[i]).items()}
        with whole_file(paths[i]) as temporary:
            save_file(arrays, temporary)
        report(ranges[i].stop)
    parts = [load_file(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
