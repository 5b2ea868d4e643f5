"""Training and held-out images as the control of `compare` and of `audit`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sidepipe.api.decoding import joined
from sidepipe.api.images import Images, ImageSet, require_count
from sidepipe.api.naming import as_arguments
from sidepipe.base.settings import require
from sidepipe.features.image_duplicates import Duplicates, duplicates_across, repeats
from sidepipe.features.search import Metric
from sidepipe.memorization.excess import swapped
from sidepipe.memorization.real import (
    Encoded,
    RealImages,
    checked_rates,
    near_duplicates,
    other_kind,
    real_images,
)
from sidepipe.memorization.thresholds import MIN_UNSEEN, allowed

log = logging.getLogger(__name__)

NAMED = 5  # duplicates that a message lists


@dataclass(frozen=True)
class Calibrated:
    """Encoded real images, and the false positive rate that the held-out ones allow.

    data: the training images, then the held-out ones. near: `near_duplicates` of them. warnings:
    sentences, which are also logged.
    """

    data: Images
    real: RealImages
    rate: float
    near: Mapping[str, float]
    warnings: list[str]


def calibrated(
    sets: Mapping[str, ImageSet],
    metric: Metric,
    encode: Callable[[Images, np.ndarray], np.ndarray],
    false_positive_rate: float,
    on_duplicates: str,
) -> Calibrated:
    """The control of the sets; ValueError where duplicates or too few images forbid it."""
    said: list[str] = []
    for one in sets.values():
        for note in one.notes:
            warn(note, said)
    data, names, groups = _data(sets), _full_names(sets), _numbers(sets)
    trained = np.arange(len(sets["train"].images))
    unseen = len(trained) + _in_groups(sets["heldout"])
    limit, found = duplicates_across(data, trained, unseen)
    unseen = _without_duplicates(unseen, found, names, on_duplicates, said)
    unseen = _without_repeats(data, unseen, limit if groups is None else None, names, said)
    with as_arguments():
        seen, held = (
            Encoded(rows, encode(data, rows), None if groups is None else groups[rows])
            for rows in (trained, unseen)
        )
        real = real_images(seen, held, metric, counts_only=True)
        (rate,) = checked_rates(real, [false_positive_rate], metric, names.__getitem__)
    near = near_duplicates(real, metric)
    _warn_of_control(false_positive_rate, rate, near, unseen, groups, said)
    return Calibrated(data, real, rate, near, said)


def _full_names(sets: Mapping[str, ImageSet]) -> list[str]:
    """The names of the rows of `_data` in messages: with the argument in front of a file."""
    return [
        name if sets[of].source == "array" else f"{of}/{name}"
        for of in ("train", "heldout")
        for name in sets[of].names
    ]


def _data(sets: Mapping[str, ImageSet]) -> Images:
    """Training images, then held-out images."""
    for name, least in (("generated", 20), ("train", 2), ("heldout", MIN_UNSEEN)):
        if name in sets:
            require_count(name, len(sets[name].images), least)  # again: bad files may be left out
    return joined(sets["train"].images, sets["heldout"].images)


def _in_groups(heldout: ImageSet) -> np.ndarray:
    """Places of the held-out images, in their order, those of each group together."""
    if heldout.groups is None:
        return np.arange(len(heldout.images))
    _, first, number = np.unique(heldout.groups, return_index=True, return_inverse=True)
    return np.argsort(first[number], kind="stable")


def _numbers(sets: Mapping[str, ImageSet]) -> np.ndarray | None:
    """The number of the group of each row of `_data`; None without groups."""
    train, heldout = sets["train"].groups, sets["heldout"].groups
    if train is None or heldout is None:
        return None
    return np.unique([*train, *heldout], return_inverse=True)[1]


def _without_duplicates(
    unseen: np.ndarray,
    found: Duplicates,
    names: Sequence[str],
    on_duplicates: str,
    said: list[str],
) -> np.ndarray:
    """The held-out images that stay; raises ValueError where `on_duplicates` forbids duplicates."""
    places = np.flatnonzero(found.found)
    if len(places) == 0:
        return unseen
    pairs = [f"{names[int(unseen[i])]} = {names[int(found.row[i])]}" for i in places[:NAMED]]
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    text = (
        f"{len(places)} of {len(unseen)} held-out images duplicate{_s(len(places))} training "
        f"images ({int(found.exact.sum())} exactly): {', '.join(pairs)}{more}"
    )
    if on_duplicates == "error":
        raise ValueError(
            f"heldout must hold no duplicates of train: {text}; hit thresholds set on them would "
            "hide copies; remedy: on_duplicates='drop' leaves these held-out images out, 'keep' "
            "continues with a warning"
        )
    warn(
        f"{text}; {'it is' if len(places) == 1 else 'they are'} "
        f"{'left out' if on_duplicates == 'drop' else 'kept'}",
        said,
    )
    if on_duplicates == "keep":
        return unseen
    left = unseen[~found.found]
    name = f"the number of held-out images that on_duplicates='drop' leaves of {len(unseen)}"
    require(len(left) >= MIN_UNSEEN, name, f">= {MIN_UNSEEN}", len(left), "pass other images")
    return left


def _without_repeats(
    data: Images, unseen: np.ndarray, limit: float | None, names: Sequence[str], said: list[str]
) -> np.ndarray:
    """The held-out images that repeat no other one, so that each counts once.

    limit: the largest distance of a near duplicate; None with groups, whose images are alike.
    """
    stands = repeats(data, unseen, limit)
    places = np.flatnonzero(stands >= 0)
    if len(places) == 0:
        return unseen
    pairs = [f"{names[int(unseen[i])]} = {names[int(stands[i])]}" for i in places[:NAMED]]
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    warn(
        f"{len(places)} of {len(unseen)} held-out images repeat{_s(len(places))} other held-out "
        f"images and {'is' if len(places) == 1 else 'are'} left out, so that each picture counts "
        f"once: {', '.join(pairs)}{more}",
        said,
    )
    left = unseen[stands < 0]
    name = f"the number of different held-out images among {len(unseen)}"
    require(len(left) >= MIN_UNSEEN, name, f">= {MIN_UNSEEN}", len(left), "pass other images")
    return left


def _s(number: float) -> str:
    """The ending of a verb whose subject is a number of things."""
    return "s" if number == 1 else ""


def warn(text: str, said: list[str]) -> None:
    log.warning("%s", text)
    said.append(text)


def warn_of_swapped(interval: Sequence[float], finding: str, said: list[str]) -> None:
    """Adds a warning, which begins with `finding`, where the interval of the excess is below 0."""
    if text := swapped(interval):
        warn(f"{finding} {text}: are train and heldout swapped, or of different kinds?", said)


def _warn_of_control(
    asked: float,
    used: float,
    near: Mapping[str, float],
    unseen: np.ndarray,
    groups: np.ndarray | None,
    said: list[str],
) -> None:
    """Adds warnings of held-out images: too few, of another kind, near duplicates."""
    count, unit = len(unseen), "images"
    if groups is not None:
        count, unit = len(np.unique(groups[unseen])), "groups"
    if used != asked:
        rates = f"{100 * asked:.3g} %; used: {100 * used:.3g} %"
        warn(f"{count} held-out {unit} are too few for a false positive rate of {rates}", said)
    if text := other_kind(near):
        warn(text, said)
    if near["count"] > allowed(count, used):
        one = near["count"] == 1
        are = "is a near duplicate" if one else "are near duplicates"
        warn(
            f"{near['count']} of {len(unseen)} held-out images {are} of training images to this "
            f"encoder: {'it sets' if one else 'they set'} the threshold of a hit, and "
            f"hide{_s(near['count'])} copies",
            said,
        )
