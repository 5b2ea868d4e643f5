"""Thresholds that few of those pass which should not, and what is known of how many truly do.

Set on images or prompts that nothing was trained on; a false positive rate is the share of them
that passes.
"""

import math

import numpy as np
from jaxtyping import Float

from sidepipe.features.search import Metric

LEVEL = 0.95  # of all intervals


def allowed(count: int, rate: float) -> int:
    """How many of `count` may pass where at most `rate` of them may."""
    # Rounded first: 0.29 * 100 is a little less than 29.
    return math.floor(round(rate * count, 9))


def threshold_above(scores: Float[np.ndarray, "n"], rate: float) -> float:
    """The smallest of `scores` that at most `rate` of them lie above; the largest of too few."""
    return float(np.sort(scores)[-1 - allowed(len(scores), rate)])


def threshold_at_false_positive_rate(
    real_gamma: Float[np.ndarray, "n"], rate: float, metric: Metric
) -> float:
    """The loosest float32 threshold that at most `rate` of real unseen images reach.

    real_gamma: gamma of real images that were not trained on to their nearest training image. Those
    that tie at the edge do not pass, and of fewer than 1 / rate none does.
    """
    sign = 1 if metric == "cosine" else -1
    edge = threshold_above(sign * real_gamma.astype(np.float32), rate)
    return float(np.nextafter(np.float32(sign * edge), np.float32(sign * np.inf)))


def rate_interval(passing: int, count: int) -> tuple[float, float]:
    """The exact 95 % interval of a rate of which `passing` of `count` were seen.

    Clopper and Pearson (1934). A threshold set on few has a true false positive rate that can lie
    far from the nominal one; this says how far.
    """
    from scipy.stats import beta  # slow to import, and thresholds are set without it

    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, passing, count - passing + 1) if passing > 0 else 0.0
    high = beta.ppf(1 - tail, passing + 1, count - passing) if passing < count else 1.0
    return float(low), float(high)
