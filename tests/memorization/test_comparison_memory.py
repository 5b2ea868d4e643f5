"""How much memory a comparison takes per generated image."""

import tracemalloc

import numpy as np
import pytest

from sidepipe.features import exact
from sidepipe.memorization import comparison
from sidepipe.memorization.comparison import compare
from sidepipe.memorization.real import Encoded, real_images
from sidepipe.memorization.scores import adaptive_scores

RNG = np.random.default_rng(0)
FEATURES = RNG.random((360, 4)).astype(np.float32)
REAL = real_images(
    Encoded(np.arange(60), FEATURES[:60]), Encoded(np.arange(60, 360), FEATURES[60:]), "l2"
)


def peak(count):
    """Bytes of NumPy at the peak of a comparison of `count` images, beyond their features."""
    queries = RNG.random((count, 4), np.float32)
    tracemalloc.start()
    c = compare(queries, None, REAL, "l2")
    c.heldout_hits(lambda gamma: gamma < 0.1)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_an_image_takes_no_more_than_its_nearest_one_in_each_set(monkeypatch):
    monkeypatch.setattr(comparison, "QUERIES", 2000)
    monkeypatch.setattr(exact, "MAX_CANDIDATES", 30_000)
    compare(RNG.random((100, 4), np.float32), None, REAL, "l2")  # imports
    per_image = (peak(16_000) - peak(6_000)) / 10_000
    # Two sets with 20 bytes each, four more held-out sets with 12, whose float64 share is 8 once;
    # the search for a held-out set has 28 at a time. 50 nearest images alone would be 600.
    assert per_image < 150


@pytest.mark.parametrize("size", [7, 100])
def test_scores_are_those_of_one_search_whatever_is_searched_at_a_time(monkeypatch, size):
    queries = RNG.random((40, 4), np.float32)
    monkeypatch.setattr(comparison, "QUERIES", size)
    found = compare(queries, None, REAL, "l2").train
    distances = np.sort(np.linalg.norm(queries[:, None] - FEATURES[:60], axis=2), axis=1)
    np.testing.assert_allclose(found.gamma, distances[:, 0], rtol=1e-5)
    assert found.adaptive is not None
    np.testing.assert_allclose(found.adaptive, adaptive_scores(distances[:, :50]), rtol=1e-5)
