"""The excess of hits over held-out hits, with an interval, for images that are independent.

Repeated files of one generated picture are one draw: they widen the interval (Kish, 1965).

A hit is a generated image whose distance to a training image is within a threshold that almost no
real held-out image reaches. The claim is the excess: the share of images that hit a training image
minus the share that would hit one of equally many held-out images. It is about one model and one
attack, whose generated images are independent of each other: many copies of one training image are
many observations of the rate at which the model generates it.

| here | Newcombe, Statistics in Medicine 1998 (17, 2635, method 10) | |
|---|---|---|
| train, heldout | theta_1, theta_2 | shares of images that hit |
| correlation | phi | of the two kinds of hits over images |
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import ndtri

from sidepipe.memorization.thresholds import LEVEL

Z = float(ndtri((1 + LEVEL) / 2))


@dataclass(frozen=True)
class HeldoutHits:
    """Hits of generated images on disjoint held-out sets.

    share: each image's share of the sets that it hits. repeats: sum of h (h - 1) over held-out
    images that are hit h times, less the pairs of hits of one picture. num_sets: K. scale: how many
    times as many images the training set has as one of these sets, >= 1. draws: the number of the
    picture that each image shows; None where each is a picture of its own.
    """

    share: Float64[np.ndarray, "n"]
    repeats: int
    num_sets: int
    scale: float
    draws: Int64[np.ndarray, "n"] | None = None

    @property
    def mean(self) -> float:
        """The share of images that hit a held-out set, mean over the sets."""
        return float(self.share.mean())

    @property
    def scaled(self) -> float:
        """The share of images that would hit a held-out set as large as the training set."""
        return at_scale(self.mean, self.scale)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `scaled`, for these held-out sets."""
        return self.interval_at(Z)

    def interval_at(self, z: float) -> tuple[float, float]:
        """`interval` of z standard deviations to each side."""
        count = effective_count(self.share) / design_effect(self.share, self.draws)
        low, high = wilson(self.mean, count, z)
        return at_scale(low, self.scale), at_scale(high, self.scale)

    @property
    def luck(self) -> float:
        """Variance of the excess from the choice of held-out and training images.

        It is 0 where no held-out image is hit often. A held-out image that is hit h times adds h^2
        to the variance of the hits of a set, of which the images themselves account for h. The
        training set is one more draw, with the variance of one set. Where nearly all images hit,
        another held-out image would be hit instead.
        """
        if self.repeats == 0 or self.mean == 1:
            return 0.0
        sets = self.num_sets / self.scale  # of the size of the training set
        spread = (1 / sets + 1 / sets**2) * self.repeats / len(self.share) ** 2
        slope = (1 - self.scaled) * -math.log1p(-self.mean) / self.mean
        return spread * slope**2


def wilson(share: float, count: float, z: float = Z) -> tuple[float, float]:
    """The 95 % score interval of a share of `count` independent images (Wilson, 1927).

    It has a width where no image, or every image, is one that counts. z: standard deviations to
    each side, for another level.
    """
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / count) ** 2 / 4)
    # Rounding leaves the ends a little inside what was seen where nothing, or everything, counts.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def effective_count(share: Float64[np.ndarray, "n"]) -> float:
    """Independent trials whose mean varies as the mean of `share` does: n, or up to n times K.

    share: of K held-out sets, by image. Images that hit a set by chance make nearly K trials each;
    images that hit every set make one.
    """
    # One more image that hits every set: a few hits cannot tell the two cases apart.
    some = np.append(share, 1.0)
    variance, mean = float(some.var()), float(some.mean())
    return len(share) * (mean * (1 - mean) / variance if variance > 0 else 1.0)


def share_interval(
    hit: Bool[np.ndarray, "n"], draws: Int64[np.ndarray, "n"] | None, z: float = Z
) -> tuple[float, float]:
    """The interval of the share of hits, by default of 95 %. draws: as in `HeldoutHits`."""
    count = len(hit) / design_effect(hit.astype(np.float64), draws)
    return wilson(float(hit.mean()), count, z)


def design_effect(share: Float64[np.ndarray, "n"], draws: Int64[np.ndarray, "n"] | None) -> float:
    """How many times as much the mean of `share` varies as that of n pictures; 1 without repeats.

    The larger one of two: the variance of sums over pictures divided by that of images, which few
    hits hardly show, and Kish's `sum m^2 / n` of pictures with m images each.
    """
    if draws is None:
        return 1.0
    number = np.unique(draws, return_inverse=True)[1]
    sizes, rest = np.bincount(number), share - share.mean()
    square = float(np.square(rest).sum())
    clustered = float(np.square(np.bincount(number, rest)).sum())
    return max(float(np.square(sizes).sum()) / len(share), clustered / square if square else 1.0)


def at_scale(share: float, scale: float) -> float:
    """An upper bound of the share of images that hit a set `scale` >= 1 times as large.

    `1 - (1 - share)^scale`, which is exact where every generated image is as likely as any other
    one to hit a set. Where some are likelier, the share is smaller (Jensen's inequality). It is
    `scale * share` for few hits.
    """
    if scale == 1 or share == 1:
        return share
    return -math.expm1(scale * math.log1p(-share))


def swapped(interval: Sequence[float]) -> str:
    """A note on an interval of the excess that lies below 0; "" for others."""
    low, high = (100 * end for end in interval)
    if high >= 0:
        return ""
    return f"(excess {low:.1f} to {high:.1f} %), which chance does not explain"


def excess(
    train: Bool[np.ndarray, "n"], heldout: HeldoutHits, z: float = Z
) -> tuple[float, tuple[float, float]]:
    """The share of training hits minus the scaled share of held-out hits, and its 95 % interval.

    The interval joins those of the two shares (MOVER: Newcombe, 1998; Zou and Donner, 2008), so it
    has a width where nothing is hit; the luck of the held-out sets is a third term. It assumes that
    the images are independent given the model, and that training and held-out images are drawn
    alike. z: standard deviations to each side, for another level.
    """
    a, b = float(train.mean()), heldout.scaled
    varies = train.any() and not train.all() and heldout.share.std() > 0
    correlation = float(np.corrcoef(train, heldout.share)[0, 1]) if varies else 0.0
    ends = share_interval(train, heldout.draws, z), heldout.interval_at(z)
    return difference(a, ends[0], b, ends[1], correlation, heldout.luck, z)


def difference(
    a: float,
    ends_a: tuple[float, float],
    b: float,
    ends_b: tuple[float, float],
    correlation: float = 0.0,
    variance: float = 0.0,
    z: float = Z,
) -> tuple[float, tuple[float, float]]:
    """a - b and its 95 % interval, joined from those of the two shares (MOVER).

    correlation: of the two shares; 0 where they are independent. variance: of a - b beyond that of
    the shares. z: that of the intervals of the shares.
    """
    (low_a, high_a), (low_b, high_b) = ends_a, ends_b

    def joined(one: float, other: float) -> float:
        square = one**2 + other**2 - 2 * correlation * one * other
        return math.sqrt(max(0.0, square) + z**2 * variance)

    low, high = a - b - joined(a - low_a, high_b - b), a - b + joined(high_a - a, b - low_b)
    return a - b, (max(-1.0, low), min(1.0, high))
