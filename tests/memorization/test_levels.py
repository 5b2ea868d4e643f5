"""The bound of returning images, against the optimal denoiser of a few points."""

import math

import numpy as np
import pytest

from sidepipe.memorization.levels import BLOCK, returning


@pytest.mark.parametrize("q", [0.01, 0.05, 0.2, 2.0])
def test_of_two_points_it_is_the_formula_and_below_what_the_optimal_denoiser_does(q):
    distance = 0.8
    found = returning(np.array([[0.0, 0.0], [distance, 0.0]]), q)
    assert found == pytest.approx(1 - min(1, math.exp(-(distance**2) / (8 * q)) / 2))
    # A full reverse process ends at each point with its posterior probability given x_t.
    noise = math.sqrt(q) * np.random.default_rng(0).standard_normal(400_000)
    other = 1 / (1 + np.exp((distance**2 - 2 * distance * noise) / (2 * q)))
    assert found[0] <= 1 - other.mean() + 1e-3


def test_close_images_return_less_than_one_that_lies_alone():
    found = returning(np.array([[0.0], [0.3], [5.0]]), 0.05)
    assert found[2] == pytest.approx(1)
    assert found[0] == found[1] < 0.95


def test_blocks_change_nothing_and_all_other_images_count():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((BLOCK + 40, 3))
    q = 0.002
    squares = np.square(x[:, None] - x).sum(2)
    closeness = np.exp(-squares / (8 * q))
    expected = 1 - np.minimum(1, (closeness.sum(1) - 1) / 2)
    np.testing.assert_allclose(returning(x, q), expected, atol=1e-9)
    assert 0.05 < expected.mean() < 0.95, "or nothing is measured"
