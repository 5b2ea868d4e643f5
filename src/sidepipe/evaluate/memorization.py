"""Memorisation metrics (SIDE, section 5): AMS, UMS, curves, and thresholds from held-out images.

gamma(x, y) is a similarity ("cosine", larger is closer) or a distance ("l2", smaller is closer).
A band is the half-open interval [low, high) of gamma.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

Band = tuple[float, float]


def closer(gamma: Float[np.ndarray, "n"], threshold: float, metric: str) -> np.ndarray:
    """Which of gamma are at least as close as `threshold`: gamma >= it for cosine, <= for l2."""
    return gamma >= threshold if metric == "cosine" else gamma <= threshold


def in_band(gamma: Float[np.ndarray, "n"], band: Band) -> np.ndarray:
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
    nearest_gamma: Float[np.ndarray, "n"], thresholds: Sequence[float], metric: str
) -> list[float]:
    """Share of images at least as close to a training image as each threshold."""
    return [float(closer(nearest_gamma, a, metric).mean()) for a in thresholds]


def cumulative_ums(
    nearest_generated_gamma: Float[np.ndarray, "m"],
    num_generated: int,
    thresholds: Sequence[float],
    metric: str,
) -> list[float]:
    """Training images that any generated image comes as close to as each threshold, over N_G.

    nearest_generated_gamma: each TRAINING image's gamma to its nearest generated image; the union
    over all pairs (SIDE, eq. 9) is then a count, without a search per threshold.
    """
    return [
        float(closer(nearest_generated_gamma, a, metric).sum() / num_generated) for a in thresholds
    ]


def tail_percentile(nearest_gamma: Float[np.ndarray, "n"], metric: str) -> float:
    """95th percentile of similarities or 5th of distances: the older standard."""
    return float(np.percentile(nearest_gamma, 95 if metric == "cosine" else 5))


def threshold_at_false_positive_rate(
    heldout_gamma: Float[np.ndarray, "n"], rate: float, metric: str
) -> float:
    """The threshold that at most `rate` of real held-out images reach against the training set.

    heldout_gamma: gamma of real images that were not trained on to their nearest training image.
    Raises ValueError where there are fewer than 1/rate of them: no such quantile exists.
    """
    needed = int(np.ceil(1 / rate))
    if len(heldout_gamma) < needed:
        raise ValueError(
            f"a false positive rate of {rate:g} needs at least {needed} held-out images, "
            f"got {len(heldout_gamma)}; remedy: bring more, or raise evaluate.false_positive_rates"
        )
    allowed = int(len(heldout_gamma) * rate)
    ordered = np.sort(heldout_gamma)[:: -1 if metric == "cosine" else 1]
    # Just beyond the first image that may not pass: ties with it must not pass either.
    barrier = float(ordered[allowed])
    return float(
        np.nextafter(np.float32(barrier), np.float32(np.inf if metric == "cosine" else -np.inf))
    )
