"""How much is there to extract: different training images against the number of images generated.

Training images are the species of an ecologist, hits are the sightings: what n images would have
found (rarefaction), what more would find (extrapolation of sum 1 - (1 - k_i)^N), and how many
there are at least (a lower bound of Chao1). k_i is the probability that one generated image hits
training image i. Nothing exceeds `most`, the number of different training images there are.

| here | Chao et al., Ecological Monographs 2014 | |
|---|---|---|
| num_images | n | generated images, hits or not |
| counts | X_i | hits of each training image that was hit |
| singletons, doubletons | f_1, f_2 | training images hit once, twice |
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import gammaln

DRAWS = 200
NORMAL_95, NORMAL_90 = 1.959964, 1.644854  # of intervals with two ends, and with one
EXTRAPOLATE = 4  # times the images that were made; beyond, the bound that is Chao1 decides all
POINTS = 20  # of the curve on either side of the images that were made


def _frequencies(counts: Int64[np.ndarray, "s"]) -> tuple[int, int]:
    return int((counts == 1).sum()), int((counts == 2).sum())


def unseen(counts: Int64[np.ndarray, "s"], num_images: int, most: float) -> float:
    """Chao1's estimate of how many more can be hit, f1^2 / 2 f2, or all that are left."""
    f1, f2 = _frequencies(counts)
    share = (num_images - 1) / num_images
    more = share * (f1**2 / (2 * f2) if f2 > 0 else f1 * (f1 - 1) / 2)
    return min(more, most - len(counts))


def at_least(counts: Int64[np.ndarray, "s"], num_images: int, most: int) -> int:
    """A lower bound on the training images that can be hit at all, with 95 % confidence.

    The lower end of a one-sided log-normal interval (Chao, 1987) of the bias-corrected Chao1 with
    its variance (Chao, 2005; as EstimateS computes it), as a whole number: not below those
    that were hit, not above `most`. Where the images differ in how often they are hit, Chao1 itself
    is too small, so the bound holds the more.
    """
    f1, f2 = _frequencies(counts)
    a = (num_images - 1) / num_images
    more = a * f1 * (f1 - 1) / (2 * (f2 + 1))
    if more == 0:
        return len(counts)
    variance = more + a**2 * f1 * (2 * f1 - 1) ** 2 / (4 * (f2 + 1) ** 2)
    variance += a**2 * f1**2 * f2 * (f1 - 1) ** 2 / (4 * (f2 + 1) ** 4)
    spread = np.exp(NORMAL_90 * np.sqrt(np.log1p(variance / more**2)))
    return min(most, len(counts) + int(more / spread))


def coverage(counts: Int64[np.ndarray, "s"], num_images: int, most: float) -> float:
    """Share of all further hits that will be of training images already hit, in [0, 1].

    Good and Turing's, as improved by Chao and Jost (2012). most: infinity where it is not known.
    """
    if len(counts) in (0, most):
        return float(len(counts) == most)
    f1, more = _frequencies(counts)[0], unseen(counts, num_images, most)
    improved = num_images * more / (num_images * more + f1) if more > 0 else 1.0
    return float(1 - f1 / counts.sum() * improved)


def _rare_probability(counts: Int64[np.ndarray, "s"], num_images: int, more: float) -> float:
    """k_i of each training image not hit so far, where all are alike and there are `more`."""
    f1 = _frequencies(counts)[0]
    return f1 / (num_images * more + f1)


def hit_probabilities(
    counts: Int64[np.ndarray, "s"], num_images: int, most: int
) -> Float64[np.ndarray, "k"]:
    """Fitted k_i: of the training images hit, then of as many more as Chao1 estimates.

    The observed shares are too high by what the unseen ones must have; rare ones give up most (Chao
    et al., 2013). The sum stays the observed rate of hits.
    """
    observed = counts / num_images
    more = unseen(counts, num_images, most)
    if more == 0:
        return observed
    missing = more * _rare_probability(counts, num_images, more)
    rare = (1 - observed) ** num_images
    seen = observed * (1 - missing / (observed * rare).sum() * rare)
    number = int(np.ceil(more))
    return np.concatenate([seen, np.full(number, missing / number)])


def expected_unique(
    counts: Int64[np.ndarray, "s"], num_images: int, sizes: Sequence[int], most: int
) -> Float64[np.ndarray, "p"]:
    """Different training images that each of `sizes` images find, on average.

    Up to num_images the exact mean over all subsets of the images made (Hurlbert, 1971). Beyond,
    those found and sum 1 - (1 - k_i)^m over the unseen ones, for the m images still to come.
    """
    values, how_many = np.unique(counts, return_counts=True)
    more = unseen(counts, num_images, most)
    rare = _rare_probability(counts, num_images, more) if more > 0 else 0.0

    def inside(size: int) -> float:
        missed = np.zeros(len(values))
        possible = values <= num_images - size
        n, x = num_images, values[possible]
        log_missed = gammaln(n - x + 1) + gammaln(n - size + 1)
        log_missed -= gammaln(n - x - size + 1) + gammaln(n + 1)
        missed[possible] = np.exp(log_missed)
        return float((how_many * (1 - missed)).sum())

    found = [
        inside(size)
        if size <= num_images
        else len(counts) + more * (1 - (1 - rare) ** (size - num_images))
        for size in sizes
    ]
    return np.array(found, np.float64)


def interval(
    counts: Int64[np.ndarray, "s"],
    num_images: int,
    sizes: Sequence[int],
    most: int,
    seed: int = 0,
) -> tuple[Float64[np.ndarray, "p"], Float64[np.ndarray, "p"]]:
    """95 % interval of `expected_unique`: normal, its error from redrawn counts.

    The counts are redrawn from the fitted probabilities (Chao et al., 2014, appendix G).
    """
    middle = expected_unique(counts, num_images, sizes, most)
    k = hit_probabilities(counts, num_images, most)
    rng = np.random.default_rng(seed)
    shares = np.append(k, max(0.0, 1 - k.sum()))
    redrawn = rng.multinomial(num_images, shares / shares.sum(), DRAWS)[:, :-1]
    found = [expected_unique(row[row > 0], num_images, sizes, most) for row in redrawn]
    error = NORMAL_95 * np.std(found, axis=0, ddof=1)
    return np.maximum(middle - error, 0.0), np.minimum(middle + error, most)


def rarefaction(
    hits: Int64[np.ndarray, "h"], num_images: int, quarter: Int64[np.ndarray, "q"], most: int
) -> dict[str, Any]:
    """The curve, its bounds and its check, JSON-able.

    hits: the training image of every hit among num_images images; quarter: those of the hits among
    the first num_images // 4, from which the whole is predicted.
    """
    counts = _counts(hits)
    sizes = _sizes(num_images)
    low, high = interval(counts, num_images, sizes, most)
    f1, f2 = _frequencies(counts)
    return {
        "num_images": sizes,
        "unique": expected_unique(counts, num_images, sizes, most).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "observed": {
            "num_images": num_images,
            "unique": len(counts),
            "hits": len(hits),
            "singletons": f1,
            "doubletons": f2,
        },
        "at_least": at_least(counts, num_images, most),
        "coverage": coverage(counts, num_images, most),
        "check": _check(_counts(quarter), num_images // 4, len(counts), num_images, most),
    }


def _counts(hits: Int64[np.ndarray, "h"]) -> Int64[np.ndarray, "s"]:
    return np.unique(hits, return_counts=True)[1]


def _sizes(num_images: int) -> list[int]:
    """Where the curve is evaluated: evenly up to num_images, and up to four times as many."""
    inside = np.linspace(0, num_images, POINTS + 1)[1:]
    beyond = np.linspace(num_images, EXTRAPOLATE * num_images, POINTS + 1)[1:]
    return np.unique(np.concatenate([inside, beyond]).round().astype(int)).tolist()


def _check(
    counts: Int64[np.ndarray, "s"], num_images: int, observed: int, of_images: int, most: int
) -> dict[str, Any]:
    """The prediction from the first quarter of the images, and the number that all images found."""
    predicted = float(expected_unique(counts, num_images, [of_images], most)[0])
    low, high = interval(counts, num_images, [of_images], most)
    error = (predicted - observed) / observed if observed else None
    return {
        "num_images": num_images,
        "predicted": predicted,
        "interval": [float(low[0]), float(high[0])],
        "observed": observed,
        "relative_error": error,
    }
