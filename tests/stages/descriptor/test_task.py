import numpy as np
import pytest

from sidepipe.features.encoders import Encoder, PixelsL2
from sidepipe.stages.descriptor import task
from sidepipe.stages.descriptor.task import EDITS, copies, judge, nearest_others


def images(n=40, size=8, channels=1, seed=0):
    """Gray values that leave room for any edit."""
    rng = np.random.default_rng(seed)
    return rng.integers(60, 196, (n, size, size, channels)).astype(np.uint8)


class Known(Encoder):
    """One-hot vectors of what was copied, for images and copies that it was shown."""

    metric = "cosine"
    transform = "known"

    def __init__(self, originals, seed):
        self.index = {image.tobytes(): i for i, image in enumerate(originals)}
        for edit in EDITS.values():
            edited = copies(originals[: len(originals) // 2], edit, seed)
            self.index |= {image.tobytes(): i for i, image in enumerate(edited)}

    def _encode_batch(self, images, device):
        return np.eye(max(self.index.values()) + 1)[[self.index[i.tobytes()] for i in images]]


class Random(Encoder):
    """Vectors that say nothing."""

    metric = "cosine"
    transform = "random"

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def _encode_batch(self, images, device):
        z = self.rng.normal(size=(len(images), 16))
        return z / np.linalg.norm(z, axis=1, keepdims=True)


def judged(encoder, originals, seed=3):
    return {row["edit"]: row for row in judge({"mine": encoder}, originals, seed)}


def test_who_undoes_every_edit_has_average_precision_one():
    originals = images()
    rows = judged(Known(originals, seed=3), originals)
    assert list(rows) == [*EDITS, "all"]
    for row in rows.values():
        assert row["average_precision"] == row["before_neighbor"] == 1
        assert row["encoder"] == "mine"
        assert row["database"] == 40
    assert {name: row["queries"] for name, row in rows.items()} == {
        **dict.fromkeys(EDITS, 20),
        "all": 20 * len(EDITS),
    }


def test_random_vectors_have_the_precision_of_chance():
    rows = judged(Random(), images(200))
    assert rows["all"]["average_precision"] == pytest.approx(1 / 200, abs=0.002)
    assert rows["all"]["before_neighbor"] == pytest.approx(0.5, abs=0.07)


def brute_average_precision(scores, truth):
    """Precision at every true pair, averaged, the pairs of all queries ranked together."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    found, total = 0, 0.0
    for rank, i in enumerate(order, 1):
        if truth[i]:
            found += 1
            total += found / rank
    return total / found


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_judged_as_a_double_loop_would(channels):
    originals = images(14, channels=channels)
    rows = judged(PixelsL2(), originals)
    everything = []
    for name, edit in EDITS.items():
        edited = copies(originals[:7], edit, 3).astype(float)
        pairs = [
            (-(np.square(query - other).mean() ** 0.5), i == j)
            for i, query in enumerate(edited)
            for j, other in enumerate(originals.astype(float))
        ]
        everything += pairs
        expected = brute_average_precision(*zip(*pairs, strict=True))
        assert rows[name]["average_precision"] == pytest.approx(expected, abs=1e-9), name
    expected = brute_average_precision(*zip(*everything, strict=True))
    assert rows["all"]["average_precision"] == pytest.approx(expected, abs=1e-9)


def test_a_near_duplicate_takes_the_place_of_an_original():
    """Two photographs that differ in a pixel: noise hides which of them was copied."""
    originals = images(20, 16)
    originals[10:] = originals[:10]
    originals[10:, 0, 0] += 1
    rows = judged(PixelsL2(), originals)
    assert 0.1 < rows["noise"]["before_neighbor"] < 0.9
    assert 0.3 < rows["noise"]["average_precision"] < 0.9
    assert (nearest_others(originals) == (np.arange(20) + 10) % 20).all()


def test_the_nearest_other_image_is_never_the_image_itself():
    originals = images(12)
    originals[7] = originals[2]
    pixels = originals.reshape(12, -1).astype(float)
    distance = np.linalg.norm(pixels[:, None] - pixels[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(nearest_others(originals), distance.argmin(1))


@pytest.mark.parametrize("size", [8, 13, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_edit_leaves_an_image_that_is_changed_and_still_a_copy(size, channels):
    ramp = np.linspace(70, 180, size)
    original = (ramp[:, None] + ramp)[None, :, :, None].repeat(channels, 3) / 2
    original[:, : size // 2] *= 0.9
    original = original.astype(np.uint8)
    for name, edit in EDITS.items():
        copy = copies(original, edit, 0)
        assert copy.shape == original.shape
        assert copy.dtype == np.uint8
        assert (copies(images(1, size, channels), edit, 0) != images(1, size, channels)).any(), name
        assert np.corrcoef(copy.ravel(), original.ravel())[0, 1] > 0.7, name


def test_copies_depend_on_the_seed_and_the_place_and_not_on_the_others():
    originals = images(6)
    whole = copies(originals, task.noise, 0)
    np.testing.assert_array_equal(whole[:3], copies(originals[:3], task.noise, 0))
    assert (whole != copies(originals, task.noise, 1)).any()
    same = copies(originals[[0, 0]], task.noise, 0)
    assert (same[0] != same[1]).any()


def test_shifts_and_brightness_are_what_they_say():
    originals = images(30, 16)
    shifted = copies(originals, task.shift, 0)
    for image, moved in zip(originals, shifted, strict=True):
        candidates = [np.roll(image, 2 * sign, axis)
                      for axis in (0, 1) for sign in (1, -1)]  # fmt: skip
        inner = (slice(2, 14), slice(2, 14))
        assert sum((moved[inner] == c[inner]).all() for c in candidates) == 1
    bright = copies(originals, task.brightness, 0).astype(int) - originals
    assert set(np.unique(bright)) == {-51, 51}
    assert (
        copies(np.full((1, 8, 8, 1), 250, np.uint8), lambda image, _: image + 51.0, 0).max() == 255
    )
