"""The score of a trial, without the training set.

A model repeats the images that it has memorized, so a setting is better if more of its images have
a near duplicate among themselves. The report compares the scores with the true hits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from sidepipe.features.duplicates import near_duplicate_groups, nearest_other
from sidepipe.features.search import Metric, closer
from sidepipe.memorization.levels import returning

RETURNING = 0.5  # share of the images that a level must return


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


def level_apart(x_0: Float[np.ndarray, "n d"], t: int, alpha_bar: float) -> float:
    """t where a cycle of this level returns at least half of the images (`returning`); else -t.

    So the best of several trials is at the most noise that keeps images apart. x_0: different
    images, in the scale of the model.
    """
    share = returning(x_0, (1 - alpha_bar) / alpha_bar).mean()
    return float(t if share >= RETURNING else -t)


SCORES: dict[str, Callable[[np.ndarray, Metric, float], float]] = {
    "rate": near_duplicate_rate,
    "groups": near_duplicate_count,
}


def best(trials: Sequence[Mapping[str, Any]]) -> int:
    """The index of the trial with the highest score; the first one of equal trials."""
    return int(np.argmax([trial["score"] for trial in trials]))
