"""Memorization scores as published: AMS and UMS (SIDE, section 5), adaptive score, ratio rule.

gamma(x, y) is a similarity ("cosine", larger is closer) or a distance ("l2", smaller is closer).
A band is the half-open interval [low, high) of gamma.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sidepipe.features.pairs import distance as distance
from sidepipe.features.search import Metric, closer

Band = tuple[float, float]


def in_band(gamma: Float[np.ndarray, "n"], band: Band) -> Bool[np.ndarray, "n"]:
    """Which of gamma lie in [low, high)."""
    return (gamma >= band[0]) & (gamma < band[1])


def ams(nearest_gamma: Float[np.ndarray, "n"], band: Band) -> float:
    """Average memorization score: share of images whose nearest training image is in the band.

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
    """Training images at least as close to any generated image as each threshold, over N_G.

    nearest_generated_gamma: each TRAINING image's gamma to its nearest generated image; the union
    over all pairs (SIDE, eq. 9) is then a count, without a search per threshold.
    """
    covered = [closer(nearest_generated_gamma, a, metric).sum() for a in thresholds]
    return [float(count / num_generated) for count in covered]


def tail_percentile(nearest_gamma: Float[np.ndarray, "n"], metric: Metric) -> float:
    """95th percentile of similarities or 5th of distances: the older standard."""
    return float(np.percentile(nearest_gamma, 95 if metric == "cosine" else 5))


def adaptive_scores(
    nearest_distances: Float[np.ndarray, "n k"], a: float = 0.5
) -> Float64[np.ndarray, "n"]:
    """Carlini et al.'s adaptive score: distance to the nearest, over `a` times the mean to the k.

    nearest_distances: to each image's k = 50 nearest training images, ascending. At most 1 where an
    image is much nearer to one training image than to those around it (USENIX 2023, section 5.1).
    """
    around = a * nearest_distances.mean(1, dtype=np.float64)
    # All k at distance 0: many copies in the training set, and a copy of them.
    return nearest_distances[:, 0] / np.where(around > 0, around, 1)


def ratio_hits(
    first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Which images are more than three times closer to the nearest than to the second nearest.

    first, second: distances to the two nearest UNIQUE training images (Yoon et al., 2023): with a
    duplicate in the training set the second would be as close as the first.
    """
    return first < second / 3
