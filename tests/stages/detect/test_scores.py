"""Scores: their orientation, fewer generations and steps than were seen, what they cost."""

import numpy as np
import pytest

from sidepipe.stages.detect.scores import SIGNALS, Variant, variants


def score(name, seen, n, steps=1):
    return Variant(name, n, steps, 0).score({name: np.asarray(seen, np.float32)})


def test_the_norm_is_the_mean_over_the_first_generations_and_steps():
    seen = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    np.testing.assert_allclose(score("norm", seen, 2, 3), [(0 + 1 + 2 + 4 + 5 + 6) / 6, 15.0])
    np.testing.assert_allclose(score("norm", seen, 3, 4), [5.5, 17.5])


@pytest.mark.parametrize("name", ["hessian", "entropy"])
def test_first_step_signals_are_means_over_generations(name):
    np.testing.assert_allclose(score(name, [[1, 3, 8]], 2), [2])


def test_pairs_are_those_of_the_first_generations_alike_speaking_for_memorization():
    pairs = [[[0, 0.1, 0.9], [0.1, 0, 0.4], [0.9, 0.4, 0]]]
    np.testing.assert_allclose(score("ssim", pairs, 2), [0.1])
    np.testing.assert_allclose(score("ssim", pairs, 3), [0.9])
    np.testing.assert_allclose(score("tile_l2", pairs, 2), [-0.1])
    np.testing.assert_allclose(score("tile_l2", pairs, 3), [-1.4 / 3])


def test_what_compares_generations_needs_two_and_only_the_norm_has_steps():
    found = variants(list(SIGNALS), [1, 4], [1, 10], 50)
    assert [(v.generations, v.steps) for v in found if v.signal == "norm"] == [
        *((1, 1), (1, 10), (4, 1), (4, 10))
    ]
    assert [(v.generations, v.steps) for v in found if v.signal == "tile_l2"] == [(4, 50)]
    assert [(v.generations, v.steps) for v in found if v.signal == "hessian"] == [(1, 1), (4, 1)]


def test_costs_are_evaluations_of_the_network_an_image():
    cost = {(v.signal, v.steps): v.evaluations for v in variants(list(SIGNALS), [2], [1, 10], 50)}
    assert cost == {
        ("norm", 1): 2,
        ("norm", 10): 20,
        ("hessian", 1): 6,
        ("entropy", 1): 1,
        ("ssim", 1): 1,
        ("tile_l2", 50): 100,
    }
