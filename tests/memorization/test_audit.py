"""The audit's scores on a model whose fixed points are planted, and its judgment by brute force."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from sidepipe.features.encoders import PixelsL2
from sidepipe.memorization.audit import (
    Probe,
    arrivals,
    closeness,
    flagged_excess,
    flags_judged,
    judged,
    returns,
)

PROBE = Probe(t=60, steps=2, levels=[60, 300], draws=3)
RNG = np.random.default_rng(0)
KNOWN = RNG.integers(0, 256, (4, 6, 6, 1)).astype(np.uint8)  # what the model has memorized
OTHERS = RNG.integers(0, 256, (3, 6, 6, 1)).astype(np.uint8)


class Attractors:
    """A model that replaces an image by the nearest memorized one; noise of t >= 300 loses it."""

    def __init__(self, lost=0):
        self.calls, self.lost = [], lost

    def __call__(self, images, t, refine, first):
        self.calls.append((len(images), t, refine, first))
        distance = np.square(images[:, None].astype(float) - KNOWN[None]).sum((2, 3, 4))
        index = distance.argmin(1)
        if t == 300:
            index[:] = self.lost
        return KNOWN[index]


def scored(images, of, own, model, first=0):
    encoder = PixelsL2()
    return returns(images[own], encoder.encode(of), own, model, encoder, PROBE, 0.05, first)


def test_memorized_images_come_back_and_others_do_not():
    images, model = np.concatenate([KNOWN, OTHERS]), Attractors()
    found = scored(images, images, slice(0, 7), model, first=10)
    assert found["gamma"][:4].tolist() == [0] * 4
    assert (found["gamma"][4:] > 0.1).all()
    assert found["error"][:4].tolist() == [0] * 4
    assert found["recall"].tolist() == [[1, 1], [1, 0], [1, 0], [1, 0], [0, 0], [0, 0], [0, 0]]
    np.testing.assert_array_equal(found["refined"][:4], KNOWN)
    # Each copy of an image ends somewhere in the set; at t = 300 all of them at image 0.
    assert (found["ends"][:, 1] == 0).all()
    assert (found["ends"][:4, 0] == np.arange(4)[:, None]).all()
    # The noise of a copy depends on the number of its image.
    assert model.calls == [(7, None, True, 10), (21, 60, False, 30)] + [
        (21, t, True, 30) for t in (60, 300)
    ]
    assert PROBE.evaluations == 2 + 3 + 2 * 3 * 3


def test_parts_give_what_the_whole_gives():
    images = np.concatenate([KNOWN, OTHERS])
    whole = scored(images, images, slice(0, 7), Attractors())
    parts = [scored(images, images, own, Attractors()) for own in (slice(0, 3), slice(3, 7))]
    for name, rows in whole.items():
        np.testing.assert_array_equal(rows, np.concatenate([part[name] for part in parts]))


def test_noised_copies_that_reach_no_image_of_the_set_arrive_nowhere():
    found = scored(OTHERS, OTHERS, slice(0, 3), Attractors())
    assert (found["ends"] == -1).all()
    assert arrivals(found["ends"], 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_arrivals_are_counted_per_level_whichever_image_they_come_from():
    ends = np.array([[[0, 2], [2, 2]], [[-1, 2], [1, -1]]])
    assert arrivals(ends, 4).tolist() == [[1, 0, 2, 0], [0, 1, 2, 0]]
    assert arrivals(np.empty((2, 0, 3), np.int64), 4).shape == (0, 4)


def test_scores_are_judged_as_by_other_libraries():
    rng = np.random.default_rng(3)
    hits = rng.poisson(0.7, 60)
    score = hits + rng.normal(0, 1, 60)
    found = judged(score, hits, 0.01)
    assert found["auc"] == pytest.approx(roc_auc_score(hits > 0, score))
    assert found["correlation"] == pytest.approx(spearmanr(score, hits).statistic)
    assert found["auc_interval"][0] < found["auc"] < found["auc_interval"][1]
    assert judged(np.ones(60), hits, 0.01)["auc"] == 0.5
    assert judged(np.ones(60), hits, 0.01)["correlation"] is None


@pytest.mark.parametrize("hits", [np.zeros(5, int), np.ones(5, int)])
def test_without_both_kinds_of_image_nothing_is_judged(hits):
    assert judged(np.arange(5.0), hits, 0.01) is None


def test_flags_are_counted_against_hits():
    flagged, hits = np.array([1, 1, 1, 0, 0]) == 1, np.array([5, 0, 2, 1, 0])
    assert flags_judged(flagged, hits) == {
        "flagged": 3,
        "others": 2,
        "extracted_flagged": 2,
        "extracted_others": 1,
        "hits_flagged": 7,
        "hits_others": 1,
    }


def test_closeness_is_higher_for_closer_images():
    gamma = np.array([0.1, 0.9], np.float32)
    assert closeness(gamma, "cosine").argmax() == 1
    assert closeness(gamma, "l2").argmax() == 0


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.3, 0.02), (0.9, 0.9), (1.0, 0.0)])
def test_the_interval_of_the_excess_covers_the_truth(a, b):
    rng, covered = np.random.default_rng(4), 0
    for _ in range(400):
        share, (low, high) = flagged_excess(rng.random(120) < a, rng.random(150) < b)
        assert low <= share <= high
        covered += low <= a - b <= high
    assert covered / 400 >= 0.93


def test_the_excess_is_newcombe_s_example():
    # Newcombe 1998, table II, example (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339.
    train, heldout = np.arange(70) < 56, np.arange(80) < 48
    share, interval = flagged_excess(train, heldout)
    assert share == pytest.approx(0.2)
    assert interval == pytest.approx((0.0524, 0.3339), abs=5e-5)
