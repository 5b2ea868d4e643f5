"""Duplicates between training and held-out images, and within the training images.

Held-out images set the threshold of a hit, because they show how close an image comes to a training
image by chance. A few duplicates of training images among them move this threshold so far that
copies are no longer hits. So duplicates are found before anything is trained.
"""

import csv
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from sidepipe.data.stage import load as load_images
from sidepipe.data.stage import load_ids
from sidepipe.features.image_duplicates import RATIO, Duplicates, duplicates, typical_distance
from sidepipe.features.thresholds import MIN_UNSEEN
from sidepipe.settings import require
from sidepipe.stage import Runtime

log = logging.getLogger(__name__)

OnDuplicates = Literal["error", "drop", "keep"]
NAMED = 5  # pairs in a message
PAIRS = "duplicates.csv"


@dataclass(frozen=True)
class Counts:
    """The duplicates of one split, for the summary of the stage.

    across, across_exact: held-out images with a duplicate among the training images, and those with
    equal pixels. dropped: held-out images that were left out for it. within, within_exact: training
    images with a duplicate among the others. limit: the largest RMS distance of a near duplicate.
    named: the first pairs in words.
    """

    across: int
    across_exact: int
    dropped: int
    within: int
    within_exact: int
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
    limit = typical_distance(images, np.concatenate([train, heldout])) / RATIO
    across = duplicates(images, heldout, train, limit, _said("held-out", len(heldout), runtime))
    within = duplicates(images, train, train, limit, _said("training", len(train), runtime))
    rows = [*_rows("held-out", ids, heldout, across), *_rows("training", ids, train, within)]
    with (folder / PAIRS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["set", "id", "duplicate_of", "distance", "mirrored"], *rows])
    left = heldout[~across.found] if on_duplicates == "drop" else heldout
    counts = Counts(
        across=int(across.found.sum()),
        across_exact=int(across.exact.sum()),
        dropped=len(heldout) - len(left),
        within=int(within.found.sum()),
        within_exact=int(within.exact.sum()),
        limit=limit,
        named=[_in_words(row) for row in rows if row[0] == "held-out"][:NAMED],
    )
    require_allowed(asdict(counts), on_duplicates, len(heldout), folder / PAIRS)
    if counts.dropped:
        _require_enough(len(left), len(heldout))
        log.warning("%s; they are left out", _found(asdict(counts), len(heldout)))
    elif counts.across:
        log.warning("%s; they are kept", _found(asdict(counts), len(heldout)))
    if counts.within:
        log.warning(
            "%d of %d training images duplicate other training images (%d exactly); they are kept",
            *(counts.within, len(train), counts.within_exact),
        )
    return left, asdict(counts)


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
    named = ", ".join(counts["named"]) + (f" and {more} more" if more else "")
    return (
        f"{counts['across']} of {num_heldout} held-out images duplicate training images "
        f"({counts['across_exact']} exactly): {named}"
    )


def _require_enough(left: int, num_heldout: int) -> None:
    name = f"the number of held-out images that data.on_duplicates=drop leaves of {num_heldout}"
    require(left >= MIN_UNSEEN, name, f">= {MIN_UNSEEN}", left, "bring others, not trained on")


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


def _said(name: str, total: int, runtime: Runtime) -> Callable[[int], None]:
    """A function that logs progress now and then."""
    said = time.monotonic()

    def say(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= runtime.progress_seconds:
            said = time.monotonic()
            log.info("%d of %d %s images searched for duplicates", done, total, name)

    return say
