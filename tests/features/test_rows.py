"""Distances and duplicates of table rows, compared with sums over columns."""

import numpy as np
import pytest

from sidepipe.features.encoders import PixelsL2, RowDirections, Rows
from sidepipe.features.image_duplicates import duplicates
from sidepipe.features.search import nearest
from sidepipe.memorization.collapse import collapse

HOT = 2 / 8**0.5
RANKS = np.array([-1, -0.2, -0.2, 0.4, 1], np.float32)
COLORS = np.array([0, 0, 1, 2, 2])


def rows():
    """A number, and a category of three."""
    hot = np.where(np.arange(3) == COLORS[:, None], HOT, -HOT)
    return np.concatenate([RANKS[:, None], hot], 1).astype(np.float32)[:, None, None, :]


def test_a_mismatch_counts_as_much_as_the_whole_range_of_a_number():
    vectors = Rows().encode(rows())
    for i in range(5):
        for j in range(5):
            of_columns = ((RANKS[i] - RANKS[j]) / 2) ** 2 + (COLORS[i] != COLORS[j])
            assert np.square(vectors[i] - vectors[j]).sum() == pytest.approx(of_columns, abs=1e-6)


def test_directions_are_unit_vectors():
    vectors = RowDirections().encode(rows())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_an_encoder_of_images_refuses_rows_and_the_other_way_round():
    with pytest.raises(ValueError, match="images must be uint8, got 'float32'; rows of a table"):
        PixelsL2().encode(rows())
    with pytest.raises(ValueError, match="images must be float32, got 'uint8'"):
        Rows().encode(np.zeros((2, 4, 4, 1), np.uint8))


def test_rows_have_no_mirror_image_and_no_single_color():
    reverse = rows()[:1, :, :, ::-1].copy()
    both = np.concatenate([rows()[:1], reverse])
    assert not duplicates(both, np.array([0]), np.array([1]), 0.01).found.any()
    assert collapse(rows(), np.ones(5, np.int64)) is None


@pytest.mark.parametrize(("shift", "found"), [(0.0, True), (0.01, True), (0.2, False)])
def test_near_duplicates_of_rows_are_found_by_their_distance(shift, found):
    near = rows()[:1] + np.float32(shift)
    both = np.concatenate([rows(), near])
    made = duplicates(both, np.array([5]), np.arange(5), limit=0.05)
    assert made.found.tolist() == [found]
    if found:
        assert made.row.tolist() == [0]
        assert made.distance[0] == pytest.approx(shift, abs=1e-6)


def test_exact_copies_are_the_nearest_rows():
    gamma, index = nearest(Rows().encode(rows()), Rows().encode(rows()), "l2")
    assert (gamma[:, 0] < 1e-3).all()
    np.testing.assert_array_equal(index[:, 0], np.arange(5))
