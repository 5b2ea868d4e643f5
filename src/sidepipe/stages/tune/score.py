"""The score of a trial, without the training set.

A model repeats the images that it has memorized, so a setting is better if more of its images have
a near duplicate among themselves. The report compares the scores with the true hits.
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
    """The share of images with another image at least as close as `threshold`."""
    return float(closer(nearest_other(features, metric), threshold, metric).mean())


def near_duplicate_count(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float
) -> float:
    """The number of groups of at least two near duplicates."""
    sizes = np.bincount(near_duplicate_groups(features, metric, threshold))
    return float((sizes > 1).sum())


SCORES: dict[str, Callable[[np.ndarray, Metric, float], float]] = {
    "rate": near_duplicate_rate,
    "groups": near_duplicate_count,
}


def best(trials: Sequence[Mapping[str, Any]]) -> int:
    """The index of the trial with the highest score; the first one of equal trials."""
    return int(np.argmax([trial["score"] for trial in trials]))
