"""Memorisation metrics (SIDE, section 5): AMS, UMS, curves, and thresholds from held-out images.

gamma(x, y) is a similarity ("cosine", larger is closer) or a distance ("l2", smaller is closer).
A band is the half-open interval [low, high) of gamma.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64

from sidepipe.features.search import Metric

Band = tuple[float, float]


def closer(
    gamma: Float[np.ndarray, "n"], threshold: float, metric: Metric
) -> Bool[np.ndarray, "n"]:
    """Which of gamma are at least as close as `threshold`: gamma >= it for cosine, <= for l2."""
    return gamma >= threshold if metric == "cosine" else gamma <= threshold


def in_band(gamma: Float[np.ndarray, "n"], band: Band) -> Bool[np.ndarray, "n"]:
    """Which of gamma lie in [low, high)."""
    return (gamma >= band[0]) & (gamma < band[1])


def ams(nearest_gamma: Float[np.ndarray, "n"], band: Band) -> float:
    """Average memorisation score: share of images whose nearest training image is in the band.

    nearest_gamma: each generated image's gamma to its nearest training image (SIDE, eq. 8).
    """
    return float(in_band(nearest_gamma, band).mean())


def ums_nearest(
    nearest_gamma: Float[np.ndarray, "n"], nearest_index: Int64[np.ndarray, "n"], band: Band
) -> float:
    """Different NEAREST training images within the band, as a share of the generated images."""
    return len(np.unique(nearest_index[in_band(nearest_gamma, band)])) / len(nearest_gamma)


def cumulative_ams(
    nearest_gamma: Float[np.ndarray, "n"], thresholds: Sequence[float], metric: Metric
) -> list[float]:
    """Share of images at least as close to a training image as each threshold."""
    return [float(closer(nearest_gamma, a, metric).mean()) for a in thresholds]


def cumulative_ums(
    nearest_generated_gamma: Float[np.ndarray, "m"],
    num_generated: int,
    thresholds: Sequence[float],
    metric: Metric,
) -> list[float]:
    """Training images that any generated image comes as close to as each threshold, over N_G.

    nearest_generated_gamma: each TRAINING image's gamma to its nearest generated image; the union
    over all pairs (SIDE, eq. 9) is then a count, without a search per threshold.
    """
    covered = [closer(nearest_generated_gamma, a, metric).sum() for a in thresholds]
    return [float(count / num_generated) for count in covered]


def tail_percentile(nearest_gamma: Float[np.ndarray, "n"], metric: Metric) -> float:
    """95th percentile of similarities or 5th of distances: the older standard."""
    return float(np.percentile(nearest_gamma, 95 if metric == "cosine" else 5))


def threshold_at_false_positive_rate(
    heldout_gamma: Float[np.ndarray, "n"], rate: float, metric: Metric
) -> float:
    """The loosest float32 threshold that at most `rate` of real held-out images reach.

    heldout_gamma: gamma of real images that were not trained on to their nearest training image.
    Raises ValueError where there are fewer than 1/rate of them: no such quantile exists.
    """
    # Rounded first: 0.29 * 100 is a little less than 29.
    allowed = math.floor(round(rate * len(heldout_gamma), 9))
    if allowed < 1:
        raise ValueError(
            f"a false positive rate of {rate:g} needs at least {math.ceil(1 / rate)} held-out "
            f"images, got {len(heldout_gamma)}; remedy: bring more, or raise "
            "evaluate.false_positive_rates"
        )
    ordered = np.sort(heldout_gamma.astype(np.float32))
    # Just beyond the closest image that may not pass: those that tie with it may not either.
    if metric == "cosine":
        return float(np.nextafter(ordered[-1 - allowed], np.float32(np.inf)))
    return float(np.nextafter(ordered[allowed], np.float32(-np.inf)))


def excess_interval(
    train_hit: Bool[np.ndarray, "n"],
    heldout_hit: Bool[np.ndarray, "n"],
    nearest_index: Int64[np.ndarray, "n"],
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of the share of training hits less the share of held-out hits.

    Drawn are whole groups of generated images that have the same nearest training image: many
    copies of one image are one finding, not many. nearest_index: that training image.
    """
    groups, group = np.unique(nearest_index, return_inverse=True)
    difference = train_hit.astype(np.float64) - heldout_hit
    sums, sizes = np.bincount(group, difference), np.bincount(group)
    rng = np.random.default_rng(seed)
    shares = np.empty(draws)
    for i in range(draws):  # one at a time: draws x groups may not fit
        drawn = rng.integers(len(groups), size=len(groups))
        shares[i] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
