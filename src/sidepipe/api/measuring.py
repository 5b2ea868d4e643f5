"""The numbers of `compare`, from images that are read and checked: hits, excess, pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sidepipe.api.caching import cached, searched
from sidepipe.api.control import calibrated, warn, warn_of_swapped
from sidepipe.api.images import Images, ImageSet
from sidepipe.api.naming import as_arguments
from sidepipe.api.result import Estimate, Pair, Result
from sidepipe.engine.stage import Runtime
from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.encoders import Encoder, Pixels, PixelsL2
from sidepipe.features.image_duplicates import RATIO
from sidepipe.memorization.collapse import (
    collapse,
    exact_copies,
    real_in_words,
    with_copies,
    with_pictures,
)
from sidepipe.memorization.comparison import Comparison
from sidepipe.memorization.comparison import compare as search
from sidepipe.memorization.real import encode_rows, other_kind
from sidepipe.memorization.results import closest_pairs, counted
from sidepipe.memorization.scores import closer
from sidepipe.stages.evaluate.stage import BLIND_IMAGES

ENCODERS = {"pixels": Pixels, "pixels_l2": PixelsL2}
NUM_PAIRS = 60


def encoder_of(features: str | Encoder) -> Encoder:
    """The encoder that the argument `features` is or names, after `check_features`."""
    return ENCODERS[features]() if isinstance(features, str) else features


def measured(
    sets: Mapping[str, ImageSet],
    *,
    features: str | Encoder,
    false_positive_rate: float,
    on_duplicates: str,
    device: str,
    cache: Path | None = None,
) -> Result:
    """The result of `sidepipe.compare` on images of one shape."""
    encoder = encoder_of(features)
    with as_arguments():
        runtime = Runtime(accelerator=device)
        runtime.require_accelerator()
    encode = partial(encode_rows, encoder, device=runtime.torch_device())
    if cache is not None:
        encode = cached(encoder, cache, runtime)
    known = calibrated(sets, encoder.metric, encode, false_positive_rate, on_duplicates)
    with as_arguments():
        queries = encode(sets["generated"].images, np.arange(len(sets["generated"].images)))
    said = known.warnings
    if cache is None:
        c = search(queries, None, known.real, encoder.metric, counts_only=True)
    else:
        c = searched(queries, known.real, encoder.metric, cache, runtime)
    c, text = with_pictures(c, sets["generated"].hashes, sets["generated"].names)
    if text:
        warn(text, said)
    about = {"truth": "train", "metric": c.metric, "transform": encoder.transform}
    counts, center = counted(c, [known.rate])
    copies = exact_copies(c, sets["generated"].images, known.data)
    within = _within(c, counts, sets["generated"].images, known.near, copies, said)
    counts = {**about, **within, **counts}
    interval = counts["calibrated"][0]["excess"]["interval"]
    warn_of_swapped(interval, "there are more held-out hits than hits", said)
    if text := real_in_words(copies, len(queries)):
        warn(text, said)
    return _result(c, counts, center, sets, known.data, said)


def _within(
    c: Comparison,
    counts: Mapping[str, Any],
    generated: Images,
    near: Mapping[str, float],
    copies: Mapping[str, int],
    said: list[str],
) -> dict[str, Any]:
    """Near duplicates within and between the sets, and the number of groups."""
    threshold = counts["calibrated"][0]["threshold"]
    if other_kind(near):  # that threshold is too loose
        limit = near["train_distance"] / RATIO
        threshold = limit if c.metric == "l2" else 1 - limit**2 / 2
    center = near_duplicate_groups(c.queries[:BLIND_IMAGES], c.metric, threshold)
    sizes = np.sort(np.unique(center, return_counts=True)[1])[::-1]
    found = with_copies(collapse(generated, sizes), copies)
    if (alike := found["collapse"]) is not None:
        warn(f"the model {alike['said']}", said)
    return {
        "num_images": len(generated),
        **found,
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
    excess = None if counts["collapse"] else Estimate(share, (low, high))
    hit = closer(c.train.gamma, at["threshold"], c.metric)
    return Result(
        num_images=len(hit),
        hits=at["train"]["count"],
        heldout_hits=at["heldout"]["scaled"],
        excess=excess,
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
    generated, names = sets["generated"], real_names(sets)
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


def real_names(sets: Mapping[str, ImageSet]) -> list[str]:
    """The names of the rows of `_data`."""
    return [*sets["train"].names, *sets["heldout"].names]


def _hits(
    c: Comparison, threshold: float, sets: Mapping[str, ImageSet]
) -> tuple[tuple[str | float, ...], ...]:
    """The rows of pairs.csv: hits on training images, then those on every held-out set.

    The group of the nearest image comes last where there are groups.
    """
    generated, names = sets["generated"].names, real_names(sets)
    groups = [*(sets["train"].groups or []), *(sets["heldout"].groups or [])]
    found = []
    for of, some in [("train", c.train), *(("heldout", control) for control in c.controls)]:
        for i in np.flatnonzero(closer(some.gamma, threshold, c.metric)).tolist():
            row = int(some.rows[some.index[i]])
            group = groups[row : row + 1]
            found.append((of, generated[i], names[row], float(some.gamma[i]), threshold, *group))
    return tuple(found)
