"""The numbers of `compare`, from images that are read and checked: hits, excess, pairs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sidepipe.api.images import Images, ImageSet, require_count
from sidepipe.api.naming import as_arguments
from sidepipe.api.result import Estimate, Pair, Result
from sidepipe.base.settings import require
from sidepipe.engine.stage import Runtime
from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.encoders import Encoder, Pixels, PixelsL2
from sidepipe.features.image_duplicates import Duplicates, duplicates_across
from sidepipe.memorization.collapse import collapse
from sidepipe.memorization.comparison import Comparison
from sidepipe.memorization.comparison import compare as search
from sidepipe.memorization.real import Encoded, checked_rates, near_duplicates, real_images
from sidepipe.memorization.results import closest_pairs, counted
from sidepipe.memorization.scores import closer
from sidepipe.memorization.thresholds import MIN_UNSEEN, allowed
from sidepipe.stages.evaluate.stage import BLIND_IMAGES

log = logging.getLogger(__name__)

ENCODERS = {"pixels": Pixels, "pixels_l2": PixelsL2}
NUM_PAIRS = 60
NAMED = 5  # duplicates that a message lists


def measured(
    sets: Mapping[str, ImageSet],
    *,
    features: str | Encoder,
    false_positive_rate: float,
    on_duplicates: str,
    device: str,
) -> Result:
    """The result of `sidepipe.compare` on images of one shape."""
    said: list[str] = []
    for one in sets.values():
        for note in one.notes:
            _warn(note, said)
    encoder = ENCODERS[features]() if isinstance(features, str) else features
    with as_arguments():
        runtime = Runtime(accelerator=device)
        runtime.require_accelerator()
    data, names, groups = _data(sets), _full_names(sets), _numbers(sets)
    trained = np.arange(len(sets["train"].images))
    unseen = len(trained) + _in_groups(sets["heldout"])
    _, found = duplicates_across(data, trained, unseen)
    unseen = _without_duplicates(unseen, found, names, on_duplicates, said)
    with as_arguments():
        encode = partial(encoder.encode, device=runtime.torch_device())
        queries = encode(sets["generated"].images)
        seen, held = (
            Encoded(rows, encode(data[rows]), None if groups is None else groups[rows])
            for rows in (trained, unseen)
        )
        real = real_images(seen, held, encoder.metric)
        rates = checked_rates(real, [false_positive_rate], encoder.metric, names.__getitem__)
    near = near_duplicates(real, encoder.metric)
    said += _on_control(false_positive_rate, rates[0], near, unseen, groups)
    c = search(queries, None, real, encoder.metric)
    about = {"truth": "train", "metric": c.metric, "transform": encoder.transform}
    counts, centers = counted(c, rates)
    counts = {**about, **_within(c, counts, sets["generated"].images, near, said), **counts}
    return _result(c, counts, centers["train"], sets, data, said)


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
        require_count(name, len(sets[name].images), least)  # again: bad files may be left out
    return np.concatenate([sets["train"].images, sets["heldout"].images])


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
        f"{len(places)} of {len(unseen)} held-out images duplicate training images "
        f"({int(found.exact.sum())} exactly): {', '.join(pairs)}{more}"
    )
    if on_duplicates == "error":
        raise ValueError(
            f"heldout must hold no duplicates of train: {text}; hit thresholds set on them would "
            "hide copies; remedy: on_duplicates='drop' leaves these held-out images out, 'keep' "
            "continues with a warning"
        )
    _warn(f"{text}; they are {'left out' if on_duplicates == 'drop' else 'kept'}", said)
    if on_duplicates == "keep":
        return unseen
    left = unseen[~found.found]
    name = f"the number of held-out images that on_duplicates='drop' leaves of {len(unseen)}"
    require(len(left) >= MIN_UNSEEN, name, f">= {MIN_UNSEEN}", len(left), "pass other images")
    return left


def _warn(text: str, said: list[str]) -> None:
    log.warning("%s", text)
    said.append(text)


def _on_control(
    asked: float,
    used: float,
    near: Mapping[str, float],
    unseen: np.ndarray,
    groups: np.ndarray | None,
) -> list[str]:
    said: list[str] = []
    count, unit = len(unseen), "images"
    if groups is not None:
        count, unit = len(np.unique(groups[unseen])), "groups"
    if used != asked:
        rates = f"{100 * asked:.3g} %; used: {100 * used:.3g} %"
        _warn(f"{count} held-out {unit} are too few for a false positive rate of {rates}", said)
    if near["count"] > allowed(count, used):
        text = "are near duplicates of training images to this encoder: they set the threshold of a"
        _warn(f"{near['count']} of {len(unseen)} held-out images {text} hit, and hide copies", said)
    return said


def _within(
    c: Comparison,
    counts: Mapping[str, Any],
    generated: Images,
    near: Mapping[str, float],
    said: list[str],
) -> dict[str, Any]:
    """Near duplicates within and between the sets, and the number of groups."""
    threshold = counts["calibrated"][0]["threshold"]
    center = near_duplicate_groups(c.queries[:BLIND_IMAGES], c.metric, threshold)
    sizes = np.sort(np.unique(center, return_counts=True)[1])[::-1]
    alike = collapse(generated, sizes)
    if alike is not None:
        _warn(f"the model {alike['said']}", said)
    return {
        "num_images": len(generated),
        "collapse": alike,
        "near_duplicates": {
            "generated": int(sizes[sizes > 1].sum()),
            "generated_groups": int((sizes > 1).sum()),
            "heldout_of_train": near["count"],
        },
        "num_groups": _num_groups(c),
    }


def _result(
    c: Comparison,
    counts: dict[str, Any],
    center: np.ndarray,
    sets: Mapping[str, ImageSet],
    data: Images,
    said: list[str],
) -> Result:
    """center: of each training image, the one that stands for its duplicates or its group."""
    at: dict[str, Any] = counts["calibrated"][0]
    share, (low, high) = at["excess"]["share"], at["excess"]["interval"]
    hit = closer(c.train.gamma, at["threshold"], c.metric)
    return Result(
        num_images=len(hit),
        hits=at["train"]["count"],
        heldout_hits=at["heldout"]["scaled"],
        excess=Estimate(share, (low, high)),
        unique=at["train"]["unique"],
        pairs=_pairs(c, center, hit, sets, data),
        threshold=at["threshold"],
        false_positive_rate=at["false_positive_rate"],
        true_rate_interval=(at["true_rate_interval"][0], at["true_rate_interval"][1]),
        metric=c.metric,
        features=counts["transform"],
        hit=hit,
        warnings=tuple(said),
        _counts=counts,
        _hits=_hits(c, at["threshold"], sets),
        _inputs={name: one.summary() for name, one in sets.items()},
    )


def _num_groups(c: Comparison) -> dict[str, int] | None:
    """Groups of training images, and of the first held-out set; None without groups."""
    sets = (("train", c.train.groups), ("heldout", c.heldout.groups))
    found = {name: len(np.unique(groups)) for name, groups in sets if groups is not None}
    return found or None


def _pairs(
    c: Comparison,
    group: np.ndarray,
    hit: np.ndarray,
    sets: Mapping[str, ImageSet],
    data: Images,
) -> tuple[Pair, ...]:
    generated, names = sets["generated"], _real_names(sets)
    found = []
    for i in closest_pairs(c, group, NUM_PAIRS).tolist():
        train = int(c.train.rows[c.train.index[i]])
        heldout = int(c.heldout.rows[c.heldout.index[i]])
        found.append(
            Pair(
                generated=i,
                train=train,
                heldout=heldout - len(c.train.rows),
                train_gamma=float(c.train.gamma[i]),
                heldout_gamma=float(c.heldout.gamma[i]),
                hit=bool(hit[i]),
                images=np.stack([generated.images[i], data[train], data[heldout]]),
                names=(generated.names[i], names[train], names[heldout]),
            )
        )
    return tuple(found)


def _real_names(sets: Mapping[str, ImageSet]) -> list[str]:
    """The names of the rows of `_data`."""
    return [*sets["train"].names, *sets["heldout"].names]


def _hits(
    c: Comparison, threshold: float, sets: Mapping[str, ImageSet]
) -> tuple[tuple[str | float, ...], ...]:
    """The rows of pairs.csv: hits on training images, then those on every held-out set.

    The group of the nearest image comes last where there are groups.
    """
    generated, names = sets["generated"].names, _real_names(sets)
    groups = [*(sets["train"].groups or []), *(sets["heldout"].groups or [])]
    found = []
    for of, some in [("train", c.train), *(("heldout", control) for control in c.controls)]:
        for i in np.flatnonzero(closer(some.gamma, threshold, c.metric)).tolist():
            row = int(some.rows[some.index[i]])
            group = groups[row : row + 1]
            found.append((of, generated[i], names[row], float(some.gamma[i]), threshold, *group))
    return tuple(found)
