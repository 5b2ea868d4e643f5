"""How good a trial is, without the training set.

What a model has memorized it makes again and again, so a setting is better the more of its images
have a near duplicate among themselves. Whether that is so the report shows beside the true hits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from sidepipe.features.duplicates import near_duplicate_groups, nearest_other
from sidepipe.features.search import Metric, closer


def near_duplicate_rate(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float
) -> float:
    """Share of images to which another one is at least as close as `threshold`."""
    return float(closer(nearest_other(features, metric), threshold, metric).mean())


def near_duplicate_count(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float
) -> float:
    """Groups of at least two near duplicates: how many different things are repeated."""
    sizes = np.bincount(near_duplicate_groups(features, metric, threshold))
    return float((sizes > 1).sum())


SCORES: dict[str, Callable[[np.ndarray, Metric, float], float]] = {
    "rate": near_duplicate_rate,
    "groups": near_duplicate_count,
}


def best(trials: Sequence[Mapping[str, Any]]) -> int:
    """The place of the trial with the highest score; the first of equals."""
    return int(np.argmax([trial["score"] for trial in trials]))
