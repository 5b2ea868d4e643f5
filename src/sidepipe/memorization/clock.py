"""When memorization sets in: the first of several looks at a training at which it is certain.

A look compares what a trainer has: training images and held-out ones. The claim is an excess (of
hits, or of the loss on held-out images) whose lower confidence bound is above 0. Looks share an
error rate of 5 %: each has the one-sided level 1 - 0.05 / looks, so that by Bonferroni's inequality
a training without memorization has an onset at any look with a probability of at most 5 %, however
the looks depend on each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Float32
from scipy.special import ndtri, stdtrit

from sidepipe.features.search import Metric, closer
from sidepipe.memorization.comparison import compare
from sidepipe.memorization.excess import excess
from sidepipe.memorization.real import RealImages
from sidepipe.memorization.thresholds import LEVEL, threshold_at_false_positive_rate


@dataclass(frozen=True)
class Look:
    """Hits of some generated images, and the lower bound of their excess.

    heldout_hits: on a held-out set as large as the training set. excess, low: shares of the images.
    """

    images: int
    hits: int
    heldout_hits: float
    excess: float
    low: float


def level_of(looks: int) -> float:
    """The one-sided level of each of so many looks."""
    return 1 - (1 - LEVEL) / looks


def look(
    queries: Float32[np.ndarray, "n d"],
    real: RealImages,
    metric: Metric,
    rate: float,
    looks: int,
) -> Look:
    """One of `looks`. queries: features of images that are independent given the model.

    rate: of real held-out images that pass the threshold of a hit, as in `evaluate`.
    """
    c = compare(queries, None, real, metric, counts_only=True)
    threshold = threshold_at_false_positive_rate(c.real_gamma, rate, metric)
    reached = partial(closer, threshold=threshold, metric=metric)
    hit, heldout = reached(c.train.gamma), c.heldout_hits(reached)
    share, (low, _) = excess(hit, heldout, z=float(ndtri(level_of(looks))))
    return Look(len(hit), int(hit.sum()), len(hit) * heldout.scaled, share, low)


def loss_gap(
    train: Float[np.ndarray, "n"], heldout: Float[np.ndarray, "m"], looks: int
) -> tuple[float, float]:
    """The mean loss of held-out images minus that of training images, and its lower bound.

    train, heldout: a loss for each image. Welch's t interval, for one of `looks`.
    """
    gap = float(heldout.mean() - train.mean())
    parts = [float(one.var(ddof=1)) / len(one) for one in (train, heldout)]
    variance = sum(parts)
    if variance == 0:
        return gap, gap
    each = zip(parts, (train, heldout), strict=True)
    freedom = variance**2 / sum(part**2 / (len(one) - 1) for part, one in each)
    return gap, gap - float(stdtrit(freedom, level_of(looks))) * math.sqrt(variance)


def onset(steps: Sequence[int], low: Sequence[float]) -> int | None:
    """The first step whose lower bound is above 0; None where none is."""
    return next((step for step, bound in zip(steps, low, strict=True) if bound > 0), None)


def slope(
    num_images: Sequence[float], onsets: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """The exponent b of onset = a n^b, and its 95 % interval, by least squares of the logarithms.

    One training is one observation; at least three, of two sizes. The published exponent is 1
    (Bonnaire et al., arXiv 2505.17638; Favero et al., arXiv 2505.16959).
    """
    x, y = np.log(num_images), np.log(onsets)
    x, y = x - x.mean(), y - y.mean()
    b = float(x @ y / (x @ x))
    freedom = len(x) - 2
    error = math.sqrt(float(((y - b * x) ** 2).sum()) / freedom / float(x @ x))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return b, (b - half, b + half)
