"""When memorization sets in: the first of several looks at a training at which it is certain.

A look compares what a trainer has: training images and held-out ones. Looks share an error rate of
5 %: each has the one-sided level 1 - 0.05 / looks, so that by Bonferroni's inequality a training
without memorization has an onset at any look with a probability of at most 5 %, however the looks
depend on each other.

Generated images show memorization where two bounds agree. The excess of their hits has a lower
bound above 0, and different training images are hit more often than a random split of the real
images would make it. The second is exact however few images attract all hits: without memorization
the split is as good as any other one, so the number of hit images that are training images is
hypergeometric (Fisher's exact test).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.special import ndtri, stdtrit

from sidepipe.features.search import Metric, closer, nearest
from sidepipe.memorization.comparison import compare
from sidepipe.memorization.excess import excess
from sidepipe.memorization.real import Encoded, RealImages
from sidepipe.memorization.thresholds import LEVEL, threshold_at_false_positive_rate


@dataclass(frozen=True)
class Look:
    """Hits of some generated images.

    heldout_hits: on a held-out set as large as the training set. excess, low: share of the images,
    and its lower bound. different, different_heldout: real images, or groups of them, that are hit,
    of all training and of all held-out ones. p: of the exact test of these. memorizes: whether both
    are certain.
    """

    images: int
    hits: int
    heldout_hits: float
    excess: float
    low: float
    different: int
    different_heldout: int
    p: float
    memorizes: bool


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
    c, level = compare(queries, None, real, metric, counts_only=True), level_of(looks)
    threshold = threshold_at_false_positive_rate(c.real_gamma, rate, metric)
    reached = partial(closer, threshold=threshold, metric=metric)
    hit, heldout = reached(c.train.gamma), c.heldout_hits(reached)
    share, (low, _) = excess(hit, heldout, z=float(ndtri(level)))
    sets = real.train, real.unseen
    found = [_units(s, reached(nearest(s.features, queries, metric)[0][:, 0])) for s in sets]
    p = split_p(found, [s.num_units for s in sets])
    return Look(
        images=len(hit),
        hits=int(hit.sum()),
        heldout_hits=len(hit) * heldout.scaled,
        excess=share,
        low=low,
        different=found[0],
        different_heldout=found[1],
        p=p,
        memorizes=low > 0 and p <= 1 - level,
    )


def _units(images: Encoded, hit: Bool[np.ndarray, "m"]) -> int:
    """The number of images, or of their groups, that are hit."""
    return images.part(hit).num_units


def split_p(hit: Sequence[int], of: Sequence[int]) -> float:
    """P(as many training images or more among those hit), if the split were random.

    hit, of: numbers of training and of held-out images, those that are hit and all.
    """
    from scipy.stats import hypergeom  # slow to import

    return float(hypergeom.sf(hit[0] - 1, sum(of), of[0], sum(hit)))


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


def onset(steps: Sequence[int], certain: Sequence[bool]) -> int | None:
    """The first step at which memorization is certain; None where it is at none."""
    return next((step for step, sure in zip(steps, certain, strict=True) if sure), None)


def slope(
    num_images: Sequence[float], onsets: Sequence[float], factor: float = 1.0
) -> tuple[float, tuple[float, float]]:
    """The exponent b of onset = a n^b, and its 95 % interval, by least squares of the logarithms.

    One training is one observation; at least three, of two sizes. factor: between the steps of two
    looks. An onset lies anywhere between two looks, which adds log(factor)^2 / 12 to the variance
    of its logarithm, however well the looks lie on a line. The published exponent is 1 (Bonnaire et
    al., arXiv 2505.17638; Favero et al., arXiv 2505.16959).
    """
    x, y = np.log(num_images), np.log(onsets)
    x, y = x - x.mean(), y - y.mean()
    b, freedom = float(x @ y / (x @ x)), len(x) - 2
    variance = float(((y - b * x) ** 2).sum()) / freedom + math.log(factor) ** 2 / 12
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance / float(x @ x))
    return b, (b - half, b + half)
