"""The excess of hits at a calibrated threshold, with intervals.

A hit is a generated image that comes as close to a training image as a threshold which nearly no
real, unseen image reaches. The claim is the excess: the rate of hits on training images less that
on equally many held-out ones.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from sidepipe.features.thresholds import LEVEL, rate_interval

DRAWS = 2000
MAX_FLOATS = 4_000_000  # of drawn counts held at once


def clustered_bootstrap(
    values: Shaped[np.ndarray, "n t"],
    groups: Int64[np.ndarray, "n"],
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Float64[np.ndarray, "t"], Float64[np.ndarray, "t"]]:
    """95 % percentile interval of the mean of each column, over whole groups of rows.

    Generated images with the same nearest training image are drawn together: many copies of one
    image are one finding, not many. groups: that image's index.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    sums = np.stack([np.bincount(group, column) for column in values.T], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((draws, values.shape[1]))
    block = max(1, MAX_FLOATS // len(sizes))
    for start in range(0, draws, block):
        some = means[start : start + block]
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), len(some))
        some[:] = (drawn @ sums) / (drawn @ sizes)[:, None]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def excess(
    train_hit: Bool[np.ndarray, "n t"],
    heldout_hit: Bool[np.ndarray, "n t"],
    nearest_index: Int64[np.ndarray, "n"],
) -> tuple[Float64[np.ndarray, "t"], Float64[np.ndarray, "t"], Float64[np.ndarray, "t"]]:
    """The rate of training hits less that of held-out hits, and its interval, at t thresholds.

    nearest_index: each image's nearest training image. Where no image hits anything the bootstrap
    knows no spread; there the interval is the exact one of no hit among the groups, both ways.
    """
    difference = train_hit.astype(np.int8) - heldout_hit
    low, high = clustered_bootstrap(difference, nearest_index)
    none = ~(train_hit.any(0) | heldout_hit.any(0))
    bound = rate_interval(0, len(np.unique(nearest_index)))[1]
    return difference.mean(0), np.where(none, -bound, low), np.where(none, bound, high)
