import math

import numpy as np
import pytest

from sidepipe.stages.attack.targets import (
    allowed_targets,
    draw_targets,
    draw_weighted_targets,
    target_weights,
)


def test_targets_are_uniform_over_the_allowed_labels():
    allowed = np.array([2, 3, 5, 7, 11])
    targets = draw_targets(allowed, 5000, seed=0)
    assert targets.dtype == np.int64
    values, counts = np.unique(targets, return_counts=True)
    assert values.tolist() == allowed.tolist()
    assert np.abs(counts - 1000).max() < 4 * math.sqrt(1000 * 0.8)


def uniform(num_images, seed):
    return draw_targets(np.arange(50), num_images, seed)


def weighted(num_images, seed):
    return draw_weighted_targets(np.full(50, 0.02), num_images, seed)


@pytest.mark.parametrize("draw", [uniform, weighted])
def test_an_image_s_target_depends_on_seed_and_index_alone(draw):
    targets = draw(300, seed=3)
    np.testing.assert_array_equal(draw(100, seed=3), targets[:100])
    assert (draw(300, seed=4) == targets).mean() < 0.1


def test_weights_are_of_rank_times_size_and_sum_to_one():
    # Most cohesive first: labels 1, 3, 0, 2. Of equal cohesion, the lower label is first.
    weights = target_weights(np.array([0.5, 0.9, 0.5, 0.7]), np.array([8, 1, 4, 20]))
    expected = np.array([2 / 4 * 8, 4 / 4 * 1, 1 / 4 * 4, 3 / 4 * 20])
    np.testing.assert_allclose(weights, expected / expected.sum())
    assert weights.sum() == pytest.approx(1)


def test_weighted_targets_come_as_often_as_their_weights_say():
    weights = np.array([0.1, 0.0, 0.6, 0.3])
    targets = draw_weighted_targets(weights, 5000, seed=0)
    assert targets.dtype == np.int64
    counts = np.bincount(targets, minlength=4)
    assert counts[1] == 0
    assert np.abs(counts - 5000 * weights).max() < 4 * math.sqrt(5000 * 0.25)


@pytest.mark.parametrize("targets", ["uniform", "weighted"])
def test_all_labels_are_allowed_but_where_only_the_most_cohesive_are_wanted(targets):
    cohesion = np.array([0.3, 0.9, 0.5, 0.8])
    assert allowed_targets(targets, 0.5, cohesion).tolist() == [0, 1, 2, 3]
    assert allowed_targets("top_cohesion", 0.5, cohesion).tolist() == [1, 3]


@pytest.mark.parametrize("excluded", [[1, 4], np.array([1, 4])])
def test_excluded_labels_are_none_of_the_targets_and_the_fraction_is_of_all(excluded):
    cohesion = np.array([0.3, 0.9, 0.5, 0.8, 0.7, 0.1])
    assert allowed_targets("uniform", 0.5, cohesion, excluded).tolist() == [0, 2, 3, 5]
    assert allowed_targets("top_cohesion", 0.5, cohesion, excluded).tolist() == [0, 2, 3]
    assert allowed_targets("top_cohesion", 0.2, cohesion, excluded).tolist() == [2, 3]
