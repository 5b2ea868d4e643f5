"""Thresholds at a false positive rate, and intervals of the true rate.

Set on images or prompts that nothing was trained on; a false positive rate is the share of them
that passes.
"""

import logging
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from sidepipe.base.settings import require
from sidepipe.features.search import Metric

log = logging.getLogger(__name__)

LEVEL = 0.95  # of all intervals
# With fewer images, more than 5 % of them would reach the threshold of a hit.
MIN_UNSEEN = 20
# By rounding, the cosine of a vector with itself differs from 1 by at most this.
COSINE_ROUNDING = 1e-6


def allowed(count: int, rate: float) -> int:
    """The number of `count` images that may pass at a rate of at most `rate`."""
    # Rounding first: 0.29 * 100 is a little less than 29.
    return math.floor(round(rate * count, 9))


def threshold_above(scores: Float[np.ndarray, "n"], rate: float) -> float:
    """The smallest of `scores` with at most `rate` of them above; the largest where too few."""
    return float(np.sort(scores)[-1 - allowed(len(scores), rate)])


def usable_rates(rates: Sequence[float], num_unseen: int) -> list[float]:
    """The false positive rates that so many unseen images allow, each once, in the same order.

    A rate below 1 / num_unseen becomes 1 / num_unseen, the smallest at which one image may pass: it
    keeps the order of the rates, and it is what a rate that is just allowed gives. The threshold
    then depends on the two closest images, so `rate_interval` is wide and must be shown.
    ValueError with fewer than `MIN_UNSEEN` unseen images.
    """
    rule = f">= {MIN_UNSEEN}, or a hit would be what more than 5 % of them are"
    name = "the number of held-out images that nothing was trained on"
    remedy = (
        "bring more of them, lower dpm.num_train_images, or, with features=copydet, lower "
        "descriptor.fraction, which takes its share of them"
    )
    require(num_unseen >= MIN_UNSEEN, name, rule, num_unseen, remedy)
    used = [rate if allowed(num_unseen, rate) else 1 / num_unseen for rate in rates]
    return list(dict.fromkeys(used))


def warn_of_rates(asked: Sequence[float], used: Sequence[float], num_unseen: int) -> None:
    """Logs the false positive rates that are used instead of the requested ones."""
    if list(asked) != list(used):
        log.warning(
            "%d held-out images are too few for a false positive rate of %s; used: %s",
            *(num_unseen, _percent(asked), _percent(used)),
        )


def _percent(rates: Sequence[float]) -> str:
    return " and ".join(f"{100 * rate:.3g} %" for rate in rates)


def hides_copies(threshold: float, metric: Metric) -> bool:
    """Whether even an exact copy may miss the threshold."""
    return not (threshold <= 1 - COSINE_ROUNDING if metric == "cosine" else threshold >= 0)


def threshold_at_false_positive_rate(
    real_gamma: Float[np.ndarray, "n"], rate: float, metric: Metric
) -> float:
    """The loosest float32 threshold that at most `rate` of real unseen images reach.

    real_gamma: gamma of real images that were not trained on to their nearest training image. Those
    that tie at the edge do not pass, and of fewer than 1 / rate none does. ValueError where so many
    of them are copies of training images that no exact copy would reach the threshold.
    """
    sign = 1 if metric == "cosine" else -1
    edge = threshold_above(sign * real_gamma.astype(np.float32), rate)
    threshold = float(np.nextafter(np.float32(sign * edge), np.float32(sign * np.inf)))
    if hides_copies(threshold, metric):
        copies = int((sign * real_gamma.astype(np.float32) >= np.float32(edge)).sum())
        raise ValueError(
            f"no image could be a hit at a false positive rate of {_percent([rate])}: {copies} of "
            f"{len(real_gamma)} unseen images are exact copies of training images to this encoder, "
            f"so that not even an exact copy reaches the threshold {threshold:.7g}; remedy: remove "
            "these images from one side of the split (data.on_duplicates=drop does so where their "
            "pixels are alike), or choose another encoder"
        )
    return threshold


def rate_interval(passing: int, count: int) -> tuple[float, float]:
    """The exact 95 % interval of a rate of which `passing` of `count` were seen.

    Clopper and Pearson (1934). It bounds the true false positive rate of a threshold, which can
    differ much from the nominal rate where few images set the threshold.
    """
    from scipy.special import betaincinv  # slow to import, and thresholds are set without it

    tail = (1 - LEVEL) / 2
    low = betaincinv(passing, count - passing + 1, tail) if passing > 0 else 0.0
    high = betaincinv(passing + 1, count - passing, 1 - tail) if passing < count else 1.0
    return float(low), float(high)
