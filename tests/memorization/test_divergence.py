import math
from statistics import NormalDist

import numpy as np
import pytest

from sidepipe.memorization import divergence
from sidepipe.memorization.divergence import (
    default_bandwidth,
    kde_log_density,
    memorization_divergence,
)

GRID = np.linspace(-14, 14, 14001)


def log_normal(z, mean, std):
    return -((z - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))


def log_mixture(z, parts):
    """Log density of 1-D (weight, mean, std) parts."""
    logs = [math.log(w) + log_normal(z, mean, std) for w, mean, std in parts]
    return np.logaddexp.reduce(logs)


def density(parts):
    """As `memorization_divergence` takes it: of points (b, 1)."""
    return lambda z: log_mixture(z[:, 0], parts)


def blurred(images, bandwidth):
    return [(1 / len(images), float(x), bandwidth) for x in images]


def integral(parts_q, function):
    """The mean of a function of 1-D points under q, on a grid."""
    return float(np.trapezoid(np.exp(log_mixture(GRID, parts_q)) * function, GRID))


def divergence_1d(images, parts, bandwidth):
    """KL(q || p) by its definition."""
    q = blurred(images, bandwidth)
    return integral(q, log_mixture(GRID, q) - log_mixture(GRID, parts))


# The estimator


MIXTURE = [(0.3, -2.0, 0.5), (0.7, 1.0, 1.2)]


@pytest.mark.parametrize("bandwidth", [0.05, 0.7])
def test_it_is_the_integral_for_a_known_density_in_one_dimension(bandwidth):
    images = np.array([-2.2, -1.9, 0.1, 2.5, 2.6])
    value, error = memorization_divergence(images[:, None], density(MIXTURE), bandwidth, 40_000)
    exact = divergence_1d(images, MIXTURE, bandwidth)
    assert value == pytest.approx(exact, abs=0.02)
    assert abs(value - exact) < 4 * error


def test_it_is_the_closed_form_between_two_gaussians_in_seven_dimensions():
    # Forty times the same image is a single Gaussian.
    x, e, s, d = np.linspace(-1, 2, 7), 0.4, 1.5, 7
    value, error = memorization_divergence(
        np.tile(x, (40, 1)), lambda z: log_normal(z, 0, s).sum(1), e, draws=1000
    )
    exact = d / 2 * (e**2 / s**2 - 1 - math.log(e**2 / s**2)) + (x @ x) / (2 * s**2)
    assert value == pytest.approx(exact, abs=0.03)
    assert abs(value - exact) < 4 * error


def test_it_is_zero_for_the_blurred_images_themselves():
    images = np.random.default_rng(0).normal(size=(30, 5))
    value, error = memorization_divergence(images, kde_log_density(images, 0.3), 0.3)
    assert (value, error) == (0, 0)


def test_it_does_not_depend_on_blocks_units_or_the_origin(monkeypatch):
    rng = np.random.default_rng(0)
    images, samples = rng.normal(size=(23, 4)), rng.normal(size=(31, 4))
    whole = memorization_divergence(images, kde_log_density(samples, 0.5), 0.5, draws=3)
    # Eight bits to a pixel instead of one: KL knows no unit.
    scaled = memorization_divergence(
        255 * images + 90, kde_log_density(255 * samples + 90, 127.5), 127.5, draws=3
    )
    monkeypatch.setattr(divergence, "MAX_FLOATS", 50)
    blocks = memorization_divergence(images, kde_log_density(samples, 0.5), 0.5, draws=3)
    assert blocks == pytest.approx(whole, rel=1e-12)
    assert scaled == pytest.approx(whole, rel=1e-9)


def test_the_seed_decides_the_draws():
    images, log_p = np.array([[0.0], [1.0], [5.0]]), density(MIXTURE)
    assert memorization_divergence(images, log_p, 0.5) == memorization_divergence(
        images, log_p, 0.5
    )
    other = memorization_divergence(images, log_p, 0.5, seed=1)
    assert other != memorization_divergence(images, log_p, 0.5)


# Kernel density


def test_the_kernel_density_is_its_formula_far_from_all_samples_too():
    rng = np.random.default_rng(1)
    samples, points = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    points[4] = 40.0  # where every term is 0 in float64
    log_p = kde_log_density(samples.astype(np.float32), 0.2)(points)
    samples = samples.astype(np.float32).astype(np.float64)
    for z, value in zip(points, log_p, strict=True):
        terms = [sum(log_normal(a, b, 0.2) for a, b in zip(z, s, strict=True)) for s in samples]
        assert value == pytest.approx(np.logaddexp.reduce(terms) - math.log(7), rel=1e-9)


def test_the_kernel_density_integrates_to_one_in_two_dimensions():
    samples = np.random.default_rng(2).normal(size=(6, 2))
    line = np.linspace(-6, 6, 241)
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    total = np.exp(kde_log_density(samples, 0.4)(points)).sum() * (line[1] - line[0]) ** 2
    assert total == pytest.approx(1, abs=1e-6)


def test_the_default_bandwidth_puts_a_draw_as_far_as_the_next_image():
    images = np.random.default_rng(3).normal(size=(21, 48)).astype(np.float32)
    distances = np.linalg.norm(images[:, None] - images[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    e = default_bandwidth(images)
    assert e == pytest.approx(np.median(distances.min(1)) / math.sqrt(48), rel=1e-6)
    noise = e * np.random.default_rng(4).normal(size=(500, 48))
    assert np.linalg.norm(noise, axis=1).mean() == pytest.approx(
        np.median(distances.min(1)), rel=0.02
    )
    assert default_bandwidth(3 * images + 1) == pytest.approx(3 * e, rel=1e-5)


def test_doubles_give_no_bandwidth():
    images = np.random.default_rng(5).normal(size=(10, 4))
    assert default_bandwidth(np.concatenate([images, images[:3]])) > 0
    with pytest.raises(ValueError, match="different from each other, got 'half with a double'"):
        default_bandwidth(np.concatenate([images, images]))


# Theorem 1, by cluster: p a mixture of parts p_i of weight w_i, D_i images of part i


PARTS = [(0.25, -1.5, 0.4), (0.6, 1.0, 1.0), (0.15, 1.5, 0.3)]


def gain(images, i, bandwidth):
    """M(D_i; p_i, e) - M(D_i; p, e): what the part alone is better by, when negative.

    The entropy of q cancels: it is the mean of log p - log p_i under q.
    """
    part = [(1.0, *PARTS[i][1:])]
    return divergence_1d(images, part, bandwidth) - divergence_1d(images, PARTS, bandwidth)


def quantiles(i, n):
    """n images that are spread as part i is, without chance."""
    _, mean, std = PARTS[i]
    return np.array([NormalDist(mean, std).inv_cdf((k + 0.5) / n) for k in range(n)])


def kl_of_part(i):
    """KL(p_i || p)."""
    part = [(1.0, *PARTS[i][1:])]
    return integral(part, log_mixture(GRID, part) - log_mixture(GRID, PARTS))


@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_part_s_divergence_on_its_own_images_is_smaller_by_its_kl_in_the_limit(i):
    off = [abs(gain(quantiles(i, n), i, e) + kl_of_part(i)) for n, e in ((8, 0.3), (300, 0.02))]
    assert off[1] < min(2e-3, off[0] / 4)
    assert gain(quantiles(i, 300), i, 0.02) < 0


@pytest.mark.parametrize("i", [0, 1, 2])
@pytest.mark.parametrize("bandwidth", [0.02, 0.3, 2.0])
def test_a_part_is_never_better_by_more_than_the_log_of_its_weight(i, bandwidth):
    # p >= w_i p_i everywhere, whatever the images.
    images = np.random.default_rng(i).normal(size=6)
    assert gain(images, i, bandwidth) > math.log(PARTS[i][0]) - 1e-9


def test_the_theorem_is_one_of_the_limit_and_fails_for_a_wide_bandwidth():
    # Blurred by 1, images of a part of deviation 0.3 look like the whole and not like the part.
    assert gain(quantiles(2, 300), 2, 1.0) > 1


@pytest.mark.parametrize("i", [0, 1, 2])
def test_the_estimator_finds_the_theorem_s_difference_from_drawn_images(i):
    weight, mean, std = PARTS[i]
    images = np.random.default_rng(10 + i).normal(mean, std, (2000, 1))
    of_part, _ = memorization_divergence(images, density([(1.0, mean, std)]), 0.02)
    of_all, _ = memorization_divergence(images, density(PARTS), 0.02)
    # The same draws in both, so that their difference is closer than either.
    assert of_part - of_all == pytest.approx(-kl_of_part(i), abs=0.06)
    assert of_part < of_all
    assert math.log(weight) < of_part - of_all


# Training against held-out images


def gap(copied, seed, n=150, d=32):
    """M on held-out less on training images, its error; `copied` of 300 generated are copies."""
    # Another stream than that of the draws: noise that equals the images is no noise.
    rng = np.random.default_rng((seed, 1))
    training, heldout = rng.normal(size=(2, n, d))
    generated = rng.normal(size=(300, d))
    generated[:copied] = training[rng.integers(n, size=copied)] + rng.normal(0, 0.02, (copied, d))
    e = default_bandwidth(heldout)
    log_p = kde_log_density(generated, e)
    (low, low_error), (high, high_error) = (
        memorization_divergence(images, log_p, e, seed=k)
        for k, images in enumerate((training, heldout))
    )
    return high - low, math.hypot(low_error, high_error)


def test_a_model_that_copies_has_less_divergence_on_training_images():
    none, some, most = (gap(copied, seed=0) for copied in (0, 60, 270))
    assert abs(none[0]) < 3 * none[1]
    assert some[0] > 3 * some[1]
    assert most[0] > 2 * some[0]


def test_without_copies_the_gap_is_zero_within_its_standard_error():
    z = [value / error for value, error in (gap(0, seed) for seed in range(60))]
    assert abs(np.mean(z)) < 3 / math.sqrt(60)
    assert 0.8 < np.std(z) < 1.25


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((1, 3))}, "images must be .* of 2 or more images"),
        ({"images": np.full((4, 3), np.nan)}, "images must be finite"),
        ({"images": np.zeros((4, 2))}, "images must be of 3 dimensions.*, got 2; encode both"),
        ({"bandwidth": 0.0}, "bandwidth must be > 0"),
        ({"bandwidth": math.inf}, "bandwidth must be > 0 and finite"),
        ({"draws": 0}, "draws must be >= 1"),
        ({"log_p": lambda z: np.full(len(z), -np.inf)}, "log_p must be finite"),
    ],
)
def test_what_gives_no_divergence_is_refused(change, message):
    samples = np.random.default_rng(0).normal(size=(5, 3))
    good = {"images": samples, "log_p": kde_log_density(samples, 1.0), "bandwidth": 1.0}
    with pytest.raises(ValueError, match=message):
        memorization_divergence(**good | change)


def test_samples_that_give_no_density_are_refused():
    with pytest.raises(ValueError, match=r"samples must be .* of 2 or more images"):
        kde_log_density(np.zeros((1, 3)), 1.0)
    with pytest.raises(ValueError, match="bandwidth must be > 0"):
        kde_log_density(np.zeros((4, 3)), -1.0)
