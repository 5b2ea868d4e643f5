"""The probability that an attack extracts each training image, calibrated on the model at hand.

A small sample of refined images shows how often images of each score are hit. Each image is hit at
a rate of its own: a gamma distribution around a log-linear function of its scores, so that hits are
negative binomial (Lawless, Canadian Journal of Statistics 1987, 15, 209). The hits of the image
itself sharpen its rate (empirical Bayes: Robbins, 1956). Held-out images take part in the fit with
their own hits: where a model returns to images that it never saw, a score means less.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from sidepipe.base.settings import require

DRAWS = 400  # of the fit, for intervals
RIDGE = 0.1  # inverse variance of a weight of a standardized score, and of log(shape)
LARGEST = 4.0  # |log(shape)|
LEVELS = (0.025, 0.975)
BINS = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.0)  # of probabilities that are compared with the truth
LEAST_DISTANCE = 1e-4  # whose logarithm is taken
MORE = 0.5  # of a hit, so that a sample without hits leaves a rate (Jeffreys)
STEP = 1e-4  # of finite differences

Table = Float64[np.ndarray, "n f"]
Fit = Float64[np.ndarray, "p"]  # log(hits per generated image) at scores of 0, weights, log(shape)


@dataclass(frozen=True)
class Extraction:
    """The probability that each image is hit at least once, within a budget of generated images.

    low, high: its 95 % interval. found: whether each image is hit in draws of the future, with the
    uncertainty of the fit; the expected number of some images and its interval follow from it.
    """

    probability: Float64[np.ndarray, "n"]
    low: Float64[np.ndarray, "n"]
    high: Float64[np.ndarray, "n"]
    found: Bool[np.ndarray, "draws n"]

    def expected(self, some: Bool[np.ndarray, "n"]) -> tuple[float, tuple[float, float]]:
        """How many of some images are hit, and the 95 % interval of this number."""
        low, high = np.quantile(self.found[:, some].sum(1), LEVELS)
        return float(self.probability[some].sum()), (float(low), float(high))


def extraction(
    scores: Table, hits: Int64[np.ndarray, "n"], sampled: int, budget: int, seed: int = 0
) -> Extraction:
    """Probabilities from the hits that `sampled` generated images are on each image.

    scores: of training and held-out images, finite. budget: generated images of an attacker who
    starts without these. Intervals follow from the normal approximation of the fit at its mode and
    from the rate of the image. ValueError: sampled or budget < 1, scores that are not finite.
    """
    for name, value in (("sampled", sampled), ("budget", budget)):
        require(value >= 1, name, ">= 1 generated image", value)
    require(bool(np.isfinite(scores).all()), "scores", "finite", "nan or inf")
    spread = scores.std(0)
    table = (scores - scores.mean(0)) / np.where(spread > 0, spread, 1)
    design = np.column_stack([np.ones(len(table)), table])
    fit, root = _fitted(design, hits, sampled)
    shape, exposure = _posterior(design, hits, sampled, fit)
    probability = 1 - (exposure / (exposure + budget)) ** shape
    rng, chances = np.random.default_rng(seed), np.empty((DRAWS, len(hits)))
    for draw in chances:
        shape, exposure = _posterior(design, hits, sampled, fit + root @ rng.normal(size=len(fit)))
        draw[:] = -np.expm1(-budget * rng.gamma(shape) / exposure)
    low, high = np.quantile(chances, LEVELS, axis=0)
    low, high = np.minimum(low, probability), np.maximum(high, probability)
    return Extraction(probability, low, high, rng.random(chances.shape) < chances)


def _fitted(
    design: Table, hits: Int64[np.ndarray, "n"], sampled: int
) -> tuple[Fit, Float64[np.ndarray, "p p"]]:
    """The mode of the negative binomial regression, and a root of its covariance."""
    start = np.zeros(design.shape[1] + 1)
    start[0] = np.log((hits.sum() + MORE) / len(hits) / sampled)
    limits = [(None, None)] * (len(start) - 1) + [(-LARGEST, LARGEST)]

    def gradient(p: Fit) -> Fit:
        return _loss(p, design, hits, sampled)[1]

    found = minimize(
        _loss, start, (design, hits, sampled), jac=True, method="L-BFGS-B", bounds=limits
    )
    steps = STEP * np.eye(len(start))
    second = np.array([gradient(found.x + s) - gradient(found.x - s) for s in steps]) / (2 * STEP)
    values, vectors = np.linalg.eigh((second + second.T) / 2)
    return found.x, vectors / np.sqrt(np.maximum(values, RIDGE))


def _loss(p: Fit, design: Table, hits: Int64[np.ndarray, "n"], sampled: int) -> tuple[float, Fit]:
    """The negative log posterior, and its gradient."""
    mean, shape = _mean(design, p) * sampled, np.exp(p[-1])
    misses = np.log(shape / (shape + mean))
    logs = gammaln(hits + shape) - gammaln(shape) + shape * misses
    logs += hits * np.log(mean / (shape + mean))
    slope = digamma(hits + shape) - digamma(shape) + misses + 1 - (hits + shape) / (shape + mean)
    gradient = np.append(-design.T @ ((hits - mean) * shape / (shape + mean)), -shape * slope.sum())
    gradient[0] -= MORE
    gradient[1:] += RIDGE * p[1:]
    return float(RIDGE / 2 * (p[1:] ** 2).sum() - MORE * p[0] - logs.sum()), gradient


def _mean(design: Table, p: Fit) -> Float64[np.ndarray, "n"]:
    """Hits per generated image, before the hits of the image itself are taken into account."""
    return np.exp(np.clip(design @ p[:-1], -30, 0))


def _posterior(
    design: Table, hits: Int64[np.ndarray, "n"], sampled: int, p: Fit
) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """Shape and inverse scale of the gamma distribution of each image's rate."""
    shape = np.exp(np.clip(p[-1], -LARGEST, LARGEST))
    return shape + hits, shape / _mean(design, p) + sampled


def log_scores(
    distance: Float[np.ndarray, "n"], threshold: float, arrivals: Float[np.ndarray, "levels n"]
) -> Table:
    """The scores of an audit as `extraction` takes them.

    distance: of an image to its refined image. threshold: of a hit, at which the slope of the rate
    may change. arrivals: noised copies that reach the image, per level.
    """
    beyond = np.log(np.maximum(distance, LEAST_DISTANCE) / max(threshold, LEAST_DISTANCE))
    parts = [beyond, np.maximum(beyond, 0), *np.log(arrivals + 0.5)]
    return np.stack(parts, axis=1).astype(np.float64)


def reliability(
    probability: Float64[np.ndarray, "n"], found: Bool[np.ndarray, "n"]
) -> list[dict[str, float]]:
    """A row per bin of the probability: its images, how many are expected to be hit, and are hit.

    Bins without images have no row. The last one includes a probability of 1.
    """
    place = np.clip(np.searchsorted(BINS, probability, side="right") - 1, 0, len(BINS) - 2)
    rows = []
    for number, (low, high) in enumerate(pairwise(BINS)):
        some = place == number
        if some.any():
            row = {"low": low, "high": high, "images": int(some.sum())}
            row |= {"expected": float(probability[some].sum()), "found": int(found[some].sum())}
            rows.append(row)
    return rows
