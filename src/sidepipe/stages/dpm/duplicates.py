"""Duplicates between training and held-out images, and within each of them.

Held-out images set the threshold of a hit, because they show how close an image comes to a training
image by chance. A few duplicates of training images among them move this threshold so far that
copies are no longer hits. So duplicates are found before anything is trained.
"""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from sidepipe.base.settings import require
from sidepipe.engine.logs import counting
from sidepipe.engine.stage import Runtime
from sidepipe.features.image_duplicates import (
    Duplicates,
    duplicates,
    duplicates_across,
    repeats,
)
from sidepipe.memorization.thresholds import MIN_UNSEEN, allowed, usable_rates
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_ids

log = logging.getLogger(__name__)

Rows = Int64[np.ndarray, "m"]
OnDuplicates = Literal["error", "drop", "keep"]
NAMED = 5  # pairs in a message
PAIRS = "duplicates.csv"


@dataclass(frozen=True)
class Counts:
    """The duplicates of one split, for the summary of the stage.

    across, across_exact: held-out images with a duplicate among the training images, and those with
    equal pixels. dropped: held-out images that were left out for it. within, within_exact: training
    images with a duplicate among the others. repeated: held-out images with the pixels of an
    earlier one. limit: the largest RMS distance of a near duplicate. named: the first pairs in
    words.
    """

    across: int
    across_exact: int
    dropped: int
    within: int
    within_exact: int
    repeated: int
    limit: float
    named: list[str]


def without_duplicates(
    folder: Path,
    data: Path,
    train: Int64[np.ndarray, "n"],
    heldout: Int64[np.ndarray, "m"],
    on_duplicates: OnDuplicates,
    runtime: Runtime,
) -> tuple[Int64[np.ndarray, "k"], dict[str, Any]]:
    """The held-out images that remain, and `Counts` as a dict.

    Writes every pair to duplicates.csv in `folder`, the artifact. Raises ValueError where held-out
    images duplicate training images and `on_duplicates` is "error", and where "drop" leaves fewer
    than `MIN_UNSEEN` of them.
    """
    images, ids = load_images(data), load_ids(data)
    limit, across = _across(data, train, heldout, runtime)
    report = _report("training", len(train), runtime.progress_seconds)
    within = duplicates(images, train, train, limit, report)
    rows = [*_rows("held-out", ids, heldout, across), *_rows("training", ids, train, within)]
    _write_pairs(folder / PAIRS, rows)
    drop = on_duplicates == "drop"
    left = not_duplicated(data, train, heldout, runtime) if drop else heldout
    counts = Counts(
        across=int(across.found.sum()),
        across_exact=int(across.exact.sum()),
        dropped=len(heldout) - len(left),
        within=int(within.found.sum()),
        within_exact=int(within.exact.sum()),
        repeated=int((repeats(images, left, None) >= 0).sum()),
        limit=limit,
        named=[_in_words(row) for row in rows if row[0] == "held-out"][:NAMED],
    )
    require_allowed(asdict(counts), on_duplicates, len(heldout), folder / PAIRS)
    _warn(counts, len(train), len(heldout))
    return left, asdict(counts)


def _write_pairs(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["set", "id", "duplicate_of", "distance", "mirrored"], *rows])


def _warn(counts: Counts, num_train: int, num_heldout: int) -> None:
    if counts.across:
        done = "left out" if counts.dropped else "kept"
        are = "it is" if counts.across == 1 else "they are"
        log.warning("%s; %s %s", _found(asdict(counts), num_heldout), are, done)
    if counts.within:
        log.warning(
            "%d of %d training images duplicate other training images (%d exactly); they are kept",
            *(counts.within, num_train, counts.within_exact),
        )
    if counts.repeated:
        log.warning(
            "%d held-out images have the pixels of another held-out image: they count twice in "
            "thresholds and held-out hits; remove one of each pair",
            counts.repeated,
        )


def _across(data: Path, train: Rows, heldout: Rows, runtime: Runtime) -> tuple[float, Duplicates]:
    """The largest distance of a near duplicate, and the held-out images' duplicates in training."""
    return _searched(data, train.tobytes(), heldout.tobytes(), runtime.progress_seconds)


def _report(name: str, total: int, seconds: float) -> Callable[[int], None]:
    return counting(total, f"{name} images searched for duplicates", seconds)


@lru_cache(maxsize=8)  # the checks before training and the training itself ask for the same
def _searched(
    data: Path, train_rows: bytes, heldout_rows: bytes, progress_seconds: float
) -> tuple[float, Duplicates]:
    images = load_images(data)
    train, heldout = (np.frombuffer(rows, np.int64) for rows in (train_rows, heldout_rows))
    report = _report("held-out", len(heldout), progress_seconds)
    return duplicates_across(images, train, heldout, report)


def not_duplicated(data: Path, train: Rows, heldout: Rows, runtime: Runtime) -> Rows:
    """The held-out images that duplicate no training image.

    Raises ValueError where some do and fewer than `MIN_UNSEEN` are left.
    """
    left = heldout[~_across(data, train, heldout, runtime)[1].found]
    name = f"the number of held-out images that data.on_duplicates=drop leaves of {len(heldout)}"
    fits = len(left) == len(heldout) or len(left) >= MIN_UNSEEN
    require(fits, name, f">= {MIN_UNSEEN}", len(left), "bring others, not trained on")
    return left


def require_few_copies(
    data: Path,
    train: Rows,
    heldout: Rows,
    unseen: Rows,
    rates: Sequence[float],
    runtime: Runtime,
) -> None:
    """Raises ValueError where exact copies would hide every hit, whatever the encoder.

    unseen: the held-out images that thresholds at the false positive rates are set on. An encoder
    that finds more copies than there are equal images is found by the stage that encodes them.
    """
    found = _across(data, train, heldout, runtime)[1]
    copies = found.exact & ~found.mirrored & np.isin(heldout, unseen)
    rate = min(usable_rates(rates, len(unseen)))
    if copies.sum() > allowed(len(unseen), rate):
        ids, first = load_ids(data), np.flatnonzero(copies)[:NAMED]
        named = ", ".join(f"{ids[heldout[i]]} = {ids[found.row[i]]}" for i in first)
        raise ValueError(
            f"no image could be a hit at a false positive rate of {100 * rate:.3g} %: "
            f"{copies.sum()} of {len(unseen)} held-out images are exact copies of training images "
            f"({named}{', ...' if copies.sum() > NAMED else ''}), so that not even an exact copy "
            "would reach the threshold; remedy: data.on_duplicates=drop leaves them out"
        )


def require_allowed(
    counts: Mapping[str, Any], on_duplicates: OnDuplicates, num_heldout: int, pairs: Path
) -> None:
    """Raises ValueError where duplicates were left in place and `on_duplicates` forbids them.

    counts: a dict of `Counts`. pairs: the file that lists all duplicates.
    """
    if on_duplicates == "error" and counts["across"] > counts["dropped"]:
        raise ValueError(
            f"{_found(counts, num_heldout)}; hit thresholds set on them would hide copies; "
            "remedy: data.on_duplicates=drop leaves these held-out images out, =keep continues "
            f"with a warning; or remove one image of each pair in {pairs}, and data's artifact, so "
            "that the images are read again"
        )


def _found(counts: Mapping[str, Any], num_heldout: int) -> str:
    more = counts["across"] - len(counts["named"])
    duplicate = "duplicates" if counts["across"] == 1 else "duplicate"
    named = ", ".join(counts["named"]) + (f" and {more} more" if more else "")
    return (
        f"{counts['across']} of {num_heldout} held-out images {duplicate} training images "
        f"({counts['across_exact']} exactly): {named}"
    )


def _rows(
    name: str, ids: np.ndarray, rows: Int64[np.ndarray, "m"], found: Duplicates
) -> list[list[Any]]:
    """A line of duplicates.csv for each image that has a duplicate."""
    return [
        [name, ids[rows[i]], ids[found.row[i]], f"{found.distance[i]:.6f}", int(found.mirrored[i])]
        for i in sorted(np.flatnonzero(found.found), key=lambda i: rows[i])
    ]


def _in_words(row: list[Any]) -> str:
    _, one, other, distance, mirrored = row
    how = "equal" if float(distance) == 0 else f"RMS {float(distance):.4f}"
    return f"{one} = {other} ({how}{', mirrored' if mirrored else ''})"
