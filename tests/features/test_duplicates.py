import numpy as np
import pytest
from tests.repeated import METRICS, THRESHOLD, repeated

from sidepipe.features import duplicates
from sidepipe.features.duplicates import near_duplicate_groups, nearest_other, new_groups


@METRICS
@pytest.mark.parametrize("block", [3, 1024])
def test_images_of_one_original_form_a_group_and_others_stay_alone(metric, block, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    features, of = repeated(metric)
    center = near_duplicate_groups(features, metric, THRESHOLD[metric])
    np.testing.assert_array_equal(of[center], of)
    assert len(np.unique(center)) == len(np.unique(of))
    np.testing.assert_array_equal(center[center], center)


def test_a_chain_of_small_steps_does_not_join_what_is_far_apart():
    line = np.arange(40, dtype=np.float32)[:, None] * 0.9
    center = near_duplicate_groups(line, "l2", 1.0)
    assert (np.abs(line[center] - line) <= 1.0).all()
    assert len(np.unique(center)) >= 40 / 3


@METRICS
def test_groups_are_those_of_the_definition_by_double_loop(metric):
    features, _ = repeated(metric, sizes=(4, 3, 3, 2), alone=6, seed=3)
    threshold = {"cosine": 0.3, "l2": 5.0}[metric]  # groups that overlap
    x = features.astype(np.float64)
    gamma = x @ x.T if metric == "cosine" else np.linalg.norm(x[:, None] - x, axis=2)
    close = -gamma if metric == "cosine" else gamma
    limit = -threshold if metric == "cosine" else threshold
    order = np.argsort(np.sort(close, axis=1)[:, 9], kind="stable")
    centers = []
    for image in order:
        if not any(close[image, c] <= limit for c in centers):
            centers.append(image)
    centers = np.sort(centers)
    assert 1 < len(centers) < len(x)
    expected = centers[np.argmin(close[:, centers], axis=1)]
    np.testing.assert_array_equal(near_duplicate_groups(features, metric, threshold), expected)
    known = nearest_other(features, metric)
    found = near_duplicate_groups(features, metric, threshold, known)
    np.testing.assert_array_equal(found, expected)


@METRICS
def test_the_nearest_other_image_is_never_the_image_itself(metric):
    features, _ = repeated(metric, sizes=(3, 2), alone=5)
    features[7] = features[2]  # exact copies, of which the first comes first in a search
    x = features.astype(np.float64)
    gamma = x @ x.T if metric == "cosine" else np.linalg.norm(x[:, None] - x, axis=2)
    np.fill_diagonal(gamma, -np.inf if metric == "cosine" else np.inf)
    expected = gamma.max(1) if metric == "cosine" else gamma.min(1)
    np.testing.assert_allclose(nearest_other(features, metric), expected, atol=1e-6)


def test_a_constant_image_is_alone_in_its_group():
    """Its vector is zero, to which all others are equally unlike."""
    features = np.concatenate([np.eye(4, dtype=np.float32), np.zeros((2, 4), np.float32)])
    np.testing.assert_array_equal(near_duplicate_groups(features, "cosine", 0.5), np.arange(6))


def test_an_image_alone_in_its_set_is_its_own_group():
    np.testing.assert_array_equal(near_duplicate_groups(np.ones((1, 3), np.float32), "l2", 1), [0])


@METRICS
def test_new_are_groups_that_begin_to_repeat_and_hold_nothing_that_did_before(metric):
    features, of = repeated(metric, sizes=(4, 4, 4, 4, 4, 1), alone=10)
    copies = [np.flatnonzero(of == k) for k in range(6)]
    # Before: the first twice, the second and third once. Added: the rest, and the lonely ones.
    before = np.concatenate([copies[0][:2], copies[1][:1], copies[2][:1]])
    added = np.setdiff1d(np.arange(len(of)), before)
    threshold = THRESHOLD[metric]
    # The second and third are repeated now, the fourth and fifth come repeated.
    assert new_groups(features[before], features[added], metric, threshold) == 4
    assert new_groups(features[before], features[copies[0][2:]], metric, threshold) == 0
    assert new_groups(features[before], features[copies[1][1:2]], metric, threshold) == 1
    assert new_groups(features[before], features[copies[3][:1]], metric, threshold) == 0
