"""Memorization divergence (SIDE): how well a model covers each of a set of images.

M(D; p, e) = KL(q || p) in nats, q = (1/N) sum_i N(x_i, e^2 I). It is 0 where p is the images of D
blurred by e, and grows with every image that p has no mass around. Its size is mostly e, N and the
dimension, so one value means nothing: compare M on held-out images with M on as many training
images, by the same p and e, above 0 for a model that memorizes.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float, Float64

from sidepipe.base.settings import require
from sidepipe.features.search import nearest

Vectors = Float[np.ndarray, "_ _"]
LogDensity = Callable[[Float64[np.ndarray, "b d"]], Float64[np.ndarray, "b"]]

MAX_FLOATS = 4_000_000  # of one block: 32 MB


def memorization_divergence(
    images: Vectors, log_p: LogDensity, bandwidth: float, draws: int = 8, seed: int = 0
) -> tuple[float, float]:
    """M(D; p, e) and its standard error, by Monte Carlo.

    images: (N, d), the D. log_p: log density of points (b, d); of generated samples it is
    `kde_log_density`. bandwidth: e > 0, in the images' unit. draws: of q around every image.

    For a given p the value is unbiased. The error is that of a mean over images, for it is to hold
    for other images drawn alike; for this very D it is too large. A p estimated by kernels is too
    wide and so M too large, on training and held-out images alike: compare the two.
    ValueError: fewer than 2 images, values that are not finite, log_p of -inf (M is infinite).
    """
    images = _checked("images", images)
    _check_bandwidth(bandwidth)
    require(draws >= 1, "draws", ">= 1", draws)
    log_q = kde_log_density(images, bandwidth)
    rng = np.random.default_rng(seed)
    of_image = np.empty(len(images))
    step = max(1, MAX_FLOATS // (draws * images.shape[1]))
    for start in range(0, len(images), step):
        centers = np.repeat(images[start : start + step], draws, axis=0)
        z = centers + bandwidth * rng.standard_normal(centers.shape)
        log_ratio = log_q(z) - log_p(z)
        remedy = "a log_p that is finite wherever q draws, such as kde_log_density's"
        finite = bool(np.isfinite(log_ratio).all())
        require(finite, "log_p", "finite", "nan or inf", remedy)
        of_image[start : start + step] = log_ratio.reshape(-1, draws).mean(1)
    return float(of_image.mean()), float(of_image.std(ddof=1) / np.sqrt(len(images)))


def kde_log_density(samples: Vectors, bandwidth: float) -> LogDensity:
    """The log density of (1/n) sum_i N(s_i, bandwidth^2 I), as a function of points (b, d).

    samples: (n, d). float64, exact but for rounding, in blocks of bounded memory. Too low on
    average where few samples are: more so the smaller the bandwidth and the larger d.
    ValueError: fewer than 2 samples, values that are not finite, bandwidth <= 0.
    """
    _check_bandwidth(bandwidth)
    return partial(_log_mixture, _checked("samples", samples), bandwidth)


def default_bandwidth(images: Vectors) -> float:
    """The median distance of an image to its nearest other one, over sqrt(d).

    A draw of N(x, e^2 I) then lies as far from x as, typically, the next image: every model would
    separate closer ones, and none further ones. images: (n, d), best the HELD-OUT ones: the
    generated would give every attack, and a copying one most of all, a unit of its own. ValueError:
    fewer than 2 images, or half of them have an exact double.
    """
    images = _checked("images", images)
    # Its nearest is the image itself, or a double at the same distance 0.
    distance = nearest(images, images, "l2", k=2)[0][:, 1]
    bandwidth = float(np.median(distance.astype(np.float64)) / np.sqrt(images.shape[1]))
    remedy = "remove doubles, or state a bandwidth"
    require(bandwidth > 0, "images", "different from each other", "half with a double", remedy)
    return bandwidth


def _log_mixture(
    centers: Float64[np.ndarray, "n d"], bandwidth: float, z: Float64[np.ndarray, "b _"]
) -> Float64[np.ndarray, "b"]:
    n, d = centers.shape
    remedy = "encode both with the same encoder"
    require(z.shape[1] == d, "images", f"of {d} dimensions, as the samples", z.shape[1], remedy)
    # |z - c|^2 = |z|^2 + |c|^2 - 2 z.c loses the fewest digits around the centers' mean.
    origin = centers.mean(0)
    centers, z = centers - origin, z - origin
    squares = np.square(centers).sum(1)
    result = np.empty(len(z))
    step = max(1, MAX_FLOATS // n)
    for start in range(0, len(z), step):
        some = z[start : start + step]
        distance = np.square(some).sum(1)[:, None] + squares - 2 * some @ centers.T
        result[start : start + step] = _log_sum_exp(-distance / (2 * bandwidth**2))
    return result - np.log(n) - d / 2 * np.log(2 * np.pi * bandwidth**2)


def _log_sum_exp(x: Float64[np.ndarray, "b n"]) -> Float64[np.ndarray, "b"]:
    largest = x.max(1)
    return largest + np.log(np.exp(x - largest[:, None]).sum(1))


def _checked(name: str, x: Vectors) -> Float64[np.ndarray, "n d"]:
    many = x.ndim == 2 and len(x) >= 2 and x.shape[1] >= 1
    require(many, name, "(n, d) of 2 or more images", x.shape)
    finite = bool(np.isfinite(x).all())
    require(finite, name, "finite", "nan or inf", "check the encoder's input")
    return x.astype(np.float64)


def _check_bandwidth(bandwidth: float) -> None:
    good = bool(bandwidth > 0 and np.isfinite(bandwidth))
    require(good, "bandwidth", "> 0 and finite", bandwidth, "see default_bandwidth")
