"""Onsets on curves with a known onset, and false alarms of repeated looks, by simulation."""

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import ttest_ind

from sidepipe.memorization import clock
from sidepipe.memorization.excess import HeldoutHits, excess
from sidepipe.memorization.real import Encoded, real_images

STEPS = [50, 70, 100, 140, 200, 280, 400, 560, 800]


def low(train, heldout, looks):
    """The lower bound of a look. train: (n,), heldout: (sets, n) of yes and no."""
    repeats = int((heldout.sum(1) * (heldout.sum(1) - 1)).sum())  # all on one image, at worst
    hits = HeldoutHits(heldout.mean(0), repeats, len(heldout), scale=1.0)
    return excess(train, hits, z=float(ndtri(clock.level_of(looks))))[1][0]


@pytest.mark.parametrize("known", [100, 280, 560])
def test_the_onset_is_where_planted_hits_begin(known):
    rng = np.random.default_rng(known)
    bounds = []
    for step in STEPS:
        share = 0.3 if step >= known else 0.005
        train, others = rng.random(400) < share, rng.random((4, 400)) < 0.005
        bounds.append(low(train, others, len(STEPS)))
    assert clock.onset(STEPS, bounds) == known


def test_no_onset_where_no_bound_is_above_0():
    assert clock.onset([1, 2, 3], [-0.1, 0.0, -0.2]) is None


@pytest.mark.parametrize("sets", [1, 6])
@pytest.mark.parametrize("share", [0.002, 0.02, 0.2])
def test_repeated_looks_raise_few_false_alarms_where_nothing_is_memorized(share, sets):
    """Training and held-out images are alike; each image attracts samples with its own rate."""
    rng, looks, images, runs = np.random.default_rng(7), 12, 200, 300
    alarms = 0
    for _ in range(runs):
        rates = share * rng.gamma(8.0, 1 / 8, size=sets + 1)
        hits = rng.random((looks, sets + 1, images)) < rates[:, None]
        alarms += any(low_without_luck(look, rates, looks) > 0 for look in hits)
    # 5 % is promised; four standard errors of 300 runs are 5 % more.
    assert alarms / runs <= 0.10


def low_without_luck(look, rates, looks):
    hits = HeldoutHits(look[1:].mean(0), 0, len(look) - 1, scale=1.0)
    return excess(look[0], hits, z=float(ndtri(clock.level_of(looks))))[1][0]
