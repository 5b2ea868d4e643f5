"""Labels by generation: planted copies are found, near misses are not; own images."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tests.stages.detect.fakes import artifacts

from sidepipe.features.encoders import Pixels, PixelsL2
from sidepipe.features.image_duplicates import RATIO, duplicates, typical_distance
from sidepipe.stages.detect.replays import own_truth, read, replayed, training_truth


def noisy(images, amount, seed=0):
    noise = np.random.default_rng(seed).normal(0, amount, images.shape)
    return (images + noise).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("encoder", [PixelsL2(), Pixels()])
def test_copies_of_training_images_are_found_and_of_others_not(tmp_path, encoder):
    _, data = artifacts(tmp_path)
    train, unseen = np.arange(40)[::-1], np.arange(40, 70)
    truth = training_truth(encoder, data, train, unseen, 0.04, None, "cpu")
    made = np.stack([[data[3], noisy(data[3], 3)], [data[55], noisy(data[57], 3)]])
    found = truth.compare([0, 1], made)
    copies = truth.copies(found["gamma"])
    np.testing.assert_array_equal(copies, [[True, True], [False, False]])
    np.testing.assert_array_equal(found["nearest"][0], [3, 3])
    assert truth.about["num_real"] == 30
    # A held-out image is no training image, however few of these there are.
    assert set(found["nearest"][1]) <= set(train)


def test_near_duplicates_among_the_held_out_images_hide_replays_until_they_are_dropped():
    digits = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    train, unseen = np.arange(1000), np.arange(1000, 1206)
    data = digits.copy()
    data[unseen[:6]] = noisy(data[train[:6]], 2.75)  # RMS 0.0108
    replays = noisy(data[train[100:120]], 8, seed=1)[:, None]

    def truth(unseen):
        found = training_truth(PixelsL2(), data, train, unseen, 0.01, None, "cpu")
        copies = found.copies(found.compare(range(20), replays)["gamma"])
        return found.threshold, copies.any(axis=1).sum()

    threshold, memorized = truth(unseen)
    assert threshold < 0.0108
    assert memorized == 0
    limit = typical_distance(data, np.concatenate([train, unseen])) / RATIO
    found = duplicates(data, unseen, train, limit).found
    assert np.flatnonzero(found).tolist() == list(range(6))
    threshold, memorized = truth(unseen[~found])
    assert threshold > 0.06
    assert memorized == 20


@pytest.mark.parametrize(("count", "used"), [(200, 0.01), (100, 0.01), (99, 1 / 99), (20, 0.05)])
def test_few_held_out_images_raise_the_rate_that_makes_a_copy(tmp_path, count, used):
    _, data = artifacts(tmp_path, num_train=9, num_unseen=200)
    unseen = np.arange(9, 9 + count)
    truth = training_truth(PixelsL2(), data, np.arange(9), unseen, 0.01, None, "cpu")
    assert truth.about["false_positive_rate"] == used
    assert truth.about["asked_false_positive_rate"] == 0.01
    assert (truth.about["num_real"], truth.about["num_train"]) == (count, 9)


def test_exact_copies_that_set_the_threshold_are_an_error(tmp_path):
    _, data = artifacts(tmp_path)
    unseen = np.concatenate([np.arange(40, 70), np.arange(3)])
    with pytest.raises(ValueError, match=r"no image could be a hit .* 3 of 33 unseen images"):
        training_truth(PixelsL2(), data, np.arange(40), unseen, 0.04, None, "cpu")


def test_a_given_threshold_is_taken_and_needs_no_held_out_images(tmp_path):
    _, data = artifacts(tmp_path)
    truth = training_truth(PixelsL2(), data, np.arange(9), np.arange(0), 0.01, 0.25, "cpu")
    assert truth.threshold == 0.25
    with pytest.raises(ValueError, match=r"number of held-out images must be >= 20, got 0"):
        training_truth(PixelsL2(), data, np.arange(9), np.arange(0), 0.01, None, "cpu")


@pytest.mark.parametrize(
    ("encoder", "threshold"),
    [(Pixels(), 1.5), (Pixels(), 1.0), (Pixels(), np.nan), (PixelsL2(), -0.1)],
)
def test_a_given_threshold_that_no_exact_copy_reaches_is_an_error(tmp_path, encoder, threshold):
    _, data = artifacts(tmp_path)
    with pytest.raises(ValueError, match=r"detect.label_threshold must be .* no exact copy"):
        training_truth(encoder, data, np.arange(9), np.arange(0), 0.01, threshold, "cpu")
    with pytest.raises(ValueError, match=r"detect.label_threshold must be .* no exact copy"):
        own_truth(encoder, [], threshold, "cpu")


@pytest.mark.parametrize(("encoder", "threshold"), [(Pixels(), 0.999999), (PixelsL2(), 0.0)])
def test_exact_copies_reach_the_strictest_threshold(tmp_path, encoder, threshold):
    _, data = artifacts(tmp_path)
    truth = training_truth(encoder, data, np.arange(9), np.arange(0), 0.01, threshold, "cpu")
    assert truth.copies(truth.compare(range(9), data[:9, None])["gamma"]).all()


def test_own_images_are_compared_with_their_own_prompt_alone(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    for name, image in (("a.png", first), ("b.png", second)):
        Image.fromarray(image).save(tmp_path / name)
    files = [[tmp_path / "a.png"], [], [tmp_path / "a.png", tmp_path / "b.png"]]
    truth = own_truth(PixelsL2(), files, 0.05, "cpu")
    found = truth.compare([0, 1, 2], np.stack([[first, second]] * 3))
    np.testing.assert_array_equal(
        truth.copies(found["gamma"]), [[True, False], [False, False], [True, True]]
    )
    assert np.isnan(found["gamma"][1]).all()
    assert (found["nearest"] == -1).all()
    assert truth.about["num_with_images"] == 2


def test_an_image_file_is_read_as_its_central_square(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read(tmp_path / "wide.png", 4, 3) == 200).all()
    assert read(tmp_path / "wide.png", 8, 1).shape == (8, 8, 1)


def test_a_prompt_s_own_image_is_read_as_the_training_images_are(tmp_path):
    """Upright, 16 bits scaled, and on white, whatever its suffix."""
    Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)).save(tmp_path / "deep", "PNG")
    assert (read(tmp_path / "deep", 4, 1) == 100).all()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read(tmp_path / "clear.png", 4, 3) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    upper = Image.new("L", (4, 4))
    upper.paste(255, (0, 0, 4, 2))
    upper.save(tmp_path / "turned.png", exif=exif)
    assert (read(tmp_path / "turned.png", 4, 1)[:, 2:] == 255).all()
    assert (read(tmp_path / "turned.png", 4, 1)[:, :2] == 0).all()


@pytest.mark.parametrize(("metric", "sign"), [("l2", 1), ("cosine", -1)])
def test_the_image_that_most_copies_are_of_is_the_one_that_is_replayed(metric, sign):
    gamma = sign * np.array([[0.1, 0.2, 0.2, 0.9], [0.9, 0.8, 0.7, 0.9]], np.float32)
    rows = np.array([[5, 6, 6, 7], [1, 2, 3, 4]])
    copies = np.array([[True, True, True, False], [False] * 4])
    np.testing.assert_array_equal(replayed(copies, gamma, rows, metric), [6, 3])
