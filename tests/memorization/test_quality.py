import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

from sidepipe.features.encoders import Pixels, PixelsL2
from sidepipe.memorization import quality
from sidepipe.memorization.quality import EncoderFeatures, fid, kid, mifid, nearest_cosine_distance

SAVES_ALL = pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")


def vectors(n, d, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def images(n, seed, shape=(3, 6, 5)):
    # Brighter by seed, so that the sets differ.
    return torch.from_numpy(
        np.random.default_rng(seed).integers(20 * seed, 200, (n, *shape), dtype=np.uint8)
    )


# FID


def frechet(a, b):
    """The definition, with the matrix square root of scipy."""
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    return mean + np.trace(s + t - 2 * sqrtm(s @ t).real)


def frechet_by_singular_values(a, b):
    """The same without a d x d matrix: s t has the eigenvalues of (x y')(x y')', x, y centered."""
    x, y = (z - z.mean(0) for z in (a, b))
    x, y = x / np.sqrt(len(x) - 1), y / np.sqrt(len(y) - 1)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return np.square(a.mean(0) - b.mean(0)).sum() + (x**2).sum() + (y**2).sum() - 2 * cross


def test_fid_is_its_definition_on_sets_of_different_sizes():
    a, b = vectors(70, 6, 0), vectors(41, 6, 1, scale=2.0)
    assert fid(a, b) == pytest.approx(frechet(a, b), rel=1e-9)
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-9)


def test_fid_of_fewer_images_than_dimensions_is_exact_too():
    a, b = vectors(9, 40, 0), vectors(13, 40, 1)
    assert fid(a, b) == pytest.approx(frechet_by_singular_values(a, b), rel=1e-6)


def test_fid_of_one_dimension_is_the_closed_form():
    a, b = vectors(50, 1, 0), vectors(30, 1, 1, scale=3.0)
    by_hand = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert fid(a, b) == pytest.approx(by_hand, rel=1e-9)


def test_fid_of_a_set_with_itself_is_zero_and_of_a_moved_set_the_squared_move():
    a = vectors(60, 5, 0)
    assert 0 <= fid(a, a) < 1e-5
    assert fid(a, a + 2) == pytest.approx(20, rel=1e-6)


def test_fid_takes_float32_and_counts_in_float64():
    a, b = (vectors(50, 4, seed).astype(np.float32) for seed in (0, 1))
    assert fid(a, b) == fid(a.astype(np.float64), b.astype(np.float64))


@pytest.fixture
def few(monkeypatch):
    """As many images as are quick: a formula holds for any number."""
    monkeypatch.setattr(quality, "KID_MIN_IMAGES", 4)


def test_more_dimensions_than_can_be_waited_for_are_refused_for_fid_and_not_for_kid(few):
    wide = np.random.default_rng(0).normal(size=(4, quality.MAX_DIMENSIONS + 1))
    with pytest.raises(ValueError, match=r"features must be of at most 3072 .* got 3073; use"):
        fid(wide, wide)
    assert np.isfinite(kid(wide, wide, 0)).all()


# KID


def mmd(x, y):
    """The unbiased squared MMD of the cubic kernel, by a loop over pairs."""

    def mean(p, q, same):
        pairs = [(i, j) for i in range(len(p)) for j in range(len(q)) if not (same and i == j)]
        return np.mean([(p[i] @ q[j] + 1) ** 3 for i, j in pairs])

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@pytest.mark.parametrize("sizes", [(3, 500), (99, 500), (500, 99)])
def test_kid_of_few_images_is_refused(sizes):
    a, b = (vectors(n, 3, seed) for seed, n in enumerate(sizes))
    with pytest.raises(ValueError, match=r"100 or more images each, or KID is noise, got (3|99);"):
        kid(a, b, 0)


def test_as_many_images_as_kid_asks_for_show_noise_and_four_do_not(monkeypatch):
    digits, rng = load_digits().data / 16 / 8, np.random.default_rng(0)

    def shift(count):
        """By how many standard deviations noise of RMS 0.2 raises KID."""
        found = []
        for seed in range(12):
            a, b = np.split(rng.permutation(digits)[: 2 * count], 2)
            noisy = (a + rng.normal(0, 0.2 / 8, a.shape)).clip(0, 1 / 8)
            found.append([kid(a, b, seed)[0], kid(noisy, b, seed)[0]])
        plain, worse = np.array(found).T
        return (worse.mean() - plain.mean()) / plain.std(ddof=1)

    assert shift(quality.KID_MIN_IMAGES) > 3
    monkeypatch.setattr(quality, "KID_MIN_IMAGES", 4)
    assert shift(4) < 1


def test_kid_of_sets_drawn_alike_is_zero_in_the_mean_and_of_others_is_not(few):
    rng = np.random.default_rng(0)
    alike = [kid(*rng.normal(size=(2, 40, 3)), seed)[0] for seed in range(30)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / np.sqrt(30)
    assert min(alike) < 0  # unbiased, so not clipped
    assert kid(rng.normal(size=(40, 3)), 1 + rng.normal(size=(40, 3)), 0)[0] > max(alike)


def test_the_mean_over_subsets_approaches_that_of_the_whole_sets(few):
    a, b = vectors(30, 3, 0), vectors(50, 3, 1)
    mean, deviation = kid(a, b, 0)
    assert deviation > 0
    assert abs(mean - mmd(a, b)) < 4 * deviation / np.sqrt(quality.KID_SUBSETS)


def test_kid_is_seeded_and_leaves_the_global_random_state_alone(few):
    a, b = vectors(20, 3, 0), vectors(25, 3, 1)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = kid(a, b, 5)
    assert torch.equal(torch.rand(3), expected)
    assert kid(a, b, 5) == first
    assert kid(a, b, 6) != first


@pytest.mark.parametrize("function", [fid, lambda a, b: kid(a, b, 0)])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((1, 3)), np.ones((4, 3)), "a must be features of 2 or more images, got"),
        (np.ones((4, 3)), np.ones((0, 3)), "b must be features of 2 or more images, got"),
        (np.ones((4, 3)), np.ones((4, 2)), "b must be of 3 dimensions, got 2; encode both"),
        (np.full((4, 3), np.inf), np.ones((4, 3)), "a must be finite"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(function, a, b, message):
    with pytest.raises(ValueError, match=message):
        function(a, b)


# Encoders in torchmetrics


@SAVES_ALL
@pytest.mark.parametrize("encoder", [Pixels(), PixelsL2()])
def test_torchmetrics_with_an_encoder_says_what_the_functions_say_of_its_features(few, encoder):
    network = EncoderFeatures(encoder, (3, 6, 5))
    real, fake = images(21, 1), images(33, 2)
    a, b = (encoder.encode(x.permute(0, 2, 3, 1).numpy()) for x in (real, fake))
    assert network.num_features == a.shape[1] == 90
    frechet = FrechetInceptionDistance(feature=network)
    kernel = KernelInceptionDistance(feature=network, subset_size=10, gamma=quality.KID_GAMMA)
    for part, is_real in ((real[:8], True), (fake, False), (real[8:], True)):
        frechet.update(part, real=is_real)
        kernel.update(part, real=is_real)
    value = frechet.compute()
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(fid(a, b), rel=1e-6)
    torch.manual_seed(3)
    assert tuple(map(float, kernel.compute())) == pytest.approx(kid(a, b, 3), rel=1e-9)


def test_gray_images_of_any_shape_fit():
    network = EncoderFeatures(PixelsL2(), (1, 4, 7))
    assert network.num_features == 28
    assert network(images(5, 0, (1, 4, 7))).shape == (5, 28)


def test_images_of_another_shape_or_type_are_refused():
    network = EncoderFeatures(PixelsL2(), (3, 6, 5))
    # TypeError where annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=r"images.*(must be uint8|UInt8)"):
        network(images(2, 0).float())
    with pytest.raises(ValueError, match=r"images must be \(n, .*\), got \(2, 1, 6, 5\)"):
        network(images(2, 0, (1, 6, 5)))


# MiFID


def mean_distance(generated, training):
    """The penalty's mean as the competition computed it, in float64."""
    p, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (generated, training))
    return np.mean([min(1 - abs(g @ t) for t in q) for g in p])


@pytest.fixture
def copies():
    """100 generated copies of 5 of 500 training images: as uint8 (n, c, h, w)."""
    training = images(500, 0, (1, 4, 4))
    return training[np.random.default_rng(1).choice(5, 100)], training


def test_a_few_copied_images_are_seen_that_torchmetrics_misses(copies):
    network = EncoderFeatures(PixelsL2(), (1, 4, 4))
    generated, training = (network(x).numpy() for x in copies)
    quality_of_set = fid(generated, training)
    theirs = MemorizationInformedFrechetInceptionDistance(feature=network)
    theirs.update(copies[1], real=True)
    theirs.update(copies[0], real=False)
    # Nothing is taken off: the mean over TRAINING images of the distance is far above 0.1.
    assert float(theirs.compute()) == pytest.approx(quality_of_set, rel=1e-4)
    distance = nearest_cosine_distance(generated, training)
    assert distance.shape == (100,)
    assert distance.mean() < 1e-6
    assert mean_distance(generated, training) < 1e-8
    assert mifid(quality_of_set, distance) > 1e6 * quality_of_set


def test_the_distance_is_the_competition_s_on_asymmetric_data():
    generated, training = vectors(13, 4, 0), vectors(29, 4, 1)
    training[3] = -2 * generated[5]  # the opposite vector is a copy, as published
    distance = nearest_cosine_distance(generated, training)
    assert distance.mean() == pytest.approx(mean_distance(generated, training), abs=1e-6)
    assert distance[5] < 1e-6
    assert distance.mean() != pytest.approx(mean_distance(training, generated), rel=0.05)


def test_the_penalty_divides_below_the_threshold_only():
    near, far = np.array([0.01, 0.09]), np.array([0.1, 0.4])
    assert mifid(3.0, near) == pytest.approx(3 / 0.05)
    assert mifid(3.0, far) == 3
    assert mifid(3.0, far, threshold=0.3) == pytest.approx(3 / 0.25)
    assert mifid(3.0, np.full(4, 0.1)) == 3  # at the threshold


def test_a_zero_vector_is_near_nothing():
    distance = nearest_cosine_distance(np.array([[0.0, 0.0], [2.0, 0.0]]), np.eye(2))
    assert distance.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("distance", "threshold", "message"),
    [
        (np.array([]), 0.1, "nearest_cosine_distance must be one number per image"),
        (np.array([0.5, 1.5]), 0.1, r"in \[0, 1\], got \(0.5, 1.5\); use quality"),
        (np.array([0.5, np.nan]), 0.1, r"nearest_cosine_distance must be in \[0, 1\]"),
        (np.array([0.5]), 0.0, r"threshold must be in \(0, 1\], got 0.0"),
    ],
)
def test_what_is_no_distance_is_refused(distance, threshold, message):
    with pytest.raises(ValueError, match=message):
        mifid(1.0, distance, threshold)
