"""What a threshold is worth: calibrated on real images the model never saw, with intervals.

A hit is a generated image that comes as close to a training image as a threshold which nearly no
real, unseen image reaches. The claim is the excess: the rate of hits on training images less that
on equally many held-out ones.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from scipy.stats import beta

from sidepipe.features.search import Metric

LEVEL = 0.95
DRAWS = 2000
MAX_FLOATS = 4_000_000  # of drawn counts held at once


def require_enough(num_real: int, rate: float) -> None:
    """Raises ValueError where fewer than 1/rate real images are there: no such quantile exists.

    The rate that it suggests lets three of them pass: on one alone too much would hang.
    """
    if _allowed(num_real, rate) < 1:
        raise ValueError(
            f"evaluate.false_positive_rates must be >= 1 / {num_real} (there are {num_real} "
            f"held-out images that nothing was trained on), got {rate:g}; remedy: bring at "
            f"least {math.ceil(1 / rate)}, with features=copydet lower descriptor.fraction, which "
            f"takes its share of them, or evaluate.false_positive_rates="
            f"[{min(0.5, 3 / max(num_real, 1)):.1g}]"
        )


def _allowed(num_real: int, rate: float) -> int:
    # Rounded first: 0.29 * 100 is a little less than 29.
    return math.floor(round(rate * num_real, 9))


def threshold_at_false_positive_rate(
    real_gamma: Float[np.ndarray, "n"], rate: float, metric: Metric
) -> float:
    """The loosest float32 threshold that at most `rate` of real unseen images reach.

    real_gamma: gamma of real images that were not trained on to their nearest training image.
    Raises ValueError where there are too few of them, as `require_enough` does.
    """
    require_enough(len(real_gamma), rate)
    allowed = _allowed(len(real_gamma), rate)
    ordered = np.sort(real_gamma.astype(np.float32))
    # Just beyond the closest image that may not pass: those that tie with it may not either.
    if metric == "cosine":
        return float(np.nextafter(ordered[-1 - allowed], np.float32(np.inf)))
    return float(np.nextafter(ordered[allowed], np.float32(-np.inf)))


def rate_interval(passing: int, num_real: int) -> tuple[float, float]:
    """The exact 95 % interval of a rate of which `passing` of `num_real` were seen.

    Clopper and Pearson (1934). A threshold set on few real images has a true false positive rate
    that can lie far from the nominal one; this says how far.
    """
    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, passing, num_real - passing + 1) if passing > 0 else 0.0
    high = beta.ppf(1 - tail, passing + 1, num_real - passing) if passing < num_real else 1.0
    return float(low), float(high)


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
