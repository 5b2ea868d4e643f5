"""Onsets on curves with a known onset, and false alarms of repeated looks, by simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact, linregress, ttest_ind

from sidepipe.memorization import clock
from sidepipe.memorization.real import Encoded, real_images

STEPS = [50, 70, 100, 140, 200, 280, 400, 560, 800]
TRAIN, HELDOUT = 40, 160


@pytest.fixture(scope="module")
def real():
    """Points far from each other, of which the first are training images."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(TRAIN + HELDOUT, 16)).astype(np.float32)
    parts = np.split(np.arange(len(points)), [TRAIN])
    return real_images(*(Encoded(p, points[p]) for p in parts), "l2", counts_only=True)


def near(real, rng, popularity, count=100, share=0.3):
    """Queries: a share of them next to a real image, drawn by popularity, the others far away."""
    points = np.concatenate([real.train.features, real.unseen.features])
    queries = 10 + rng.normal(size=(count, points.shape[1]))
    copies = rng.random(count) < share
    chosen = rng.choice(len(points), size=copies.sum(), p=popularity / popularity.sum())
    queries[copies] = points[chosen] + 0.01 * rng.normal(size=(len(chosen), points.shape[1]))
    return queries.astype(np.float32)


def looked(real, queries, looks):
    return clock.look(queries, real, "l2", 0.01, looks)


@pytest.mark.parametrize("known", [100, 280, 560])
def test_the_onset_is_where_planted_copies_of_training_images_begin(real, known):
    rng = np.random.default_rng(known)
    alike = np.ones(TRAIN + HELDOUT)
    trained = np.repeat([1.0, 0.0], [TRAIN, HELDOUT])
    sure = [
        looked(real, near(real, rng, trained if step >= known else alike), len(STEPS)).memorizes
        for step in STEPS
    ]
    assert clock.onset(STEPS, sure) == known


def test_no_onset_where_nothing_is_certain():
    assert clock.onset([1, 2, 3], [False, False, False]) is None


def test_copies_and_their_different_images_are_counted(real):
    queries = np.concatenate([real.train.features[[3, 3, 5]], real.unseen.features[[0]]])
    far = np.full((6, queries.shape[1]), 50, np.float32)
    at = looked(real, np.concatenate([queries, far]), looks=1)
    assert (at.images, at.hits, at.different, at.different_heldout) == (10, 3, 2, 1)
    assert at.heldout_hits == pytest.approx(1 / 4)  # the mean over four sets of 40
    table = [[2, 1], [TRAIN - 2, HELDOUT - 1]]
    assert at.p == pytest.approx(fisher_exact(table, "greater").pvalue)


@pytest.mark.parametrize("concentration", [0.02, 0.3, 100.0])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_repeated_looks_raise_few_false_alarms_however_few_images_attract_all_hits(
    real, concentration, share
):
    """A model without memorization is next to real images, and does not depend on the split."""
    rng, looks, runs = np.random.default_rng(3), 6, 60
    alarms = 0
    for _ in range(runs):
        popularity = rng.gamma(concentration, size=TRAIN + HELDOUT) + 1e-30
        queries = near(real, rng, popularity, count=60 * looks, share=share)
        alarms += any(looked(real, some, looks).memorizes for some in np.split(queries, looks))
    # 5 % is promised; so many alarms of 60 would have a probability of 0.1 % at 5 %.
    assert binomtest(alarms, runs, 0.05, "greater").pvalue > 0.001


def test_the_exact_test_keeps_its_level_for_every_concentration():
    rng, runs = np.random.default_rng(1), 4000
    for hit in (1, 3, 10, 50):
        found = rng.hypergeometric(TRAIN, HELDOUT, hit, size=runs)
        p = {k: clock.split_p([k, hit - k], [TRAIN, HELDOUT]) for k in set(found.tolist())}
        alarms = np.mean([p[k] <= 0.05 for k in found.tolist()])
        assert alarms <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / runs)


def test_the_bound_of_the_loss_gap_is_welch_s():
    rng = np.random.default_rng(0)
    train, heldout = rng.normal(1.0, 0.2, 50), rng.normal(1.1, 0.4, 80)
    gap, low = clock.loss_gap(train, heldout, looks=10)
    test = ttest_ind(heldout, train, equal_var=False, alternative="greater")
    expected = test.confidence_interval(clock.level_of(10))
    assert gap == pytest.approx(heldout.mean() - train.mean())
    assert low == pytest.approx(expected.low)


def test_the_slope_of_a_power_law_is_its_exponent():
    sizes = np.repeat([64, 128, 256, 512, 1024], 3)
    b, (low, high) = clock.slope(sizes, 3.0 * sizes**0.8)
    assert (b, low, high) == pytest.approx((0.8, 0.8, 0.8))
    rng = np.random.default_rng(2)
    onsets = 3.0 * sizes**1.2 * np.exp(rng.normal(0, 0.2, len(sizes)))
    b, (low, high) = clock.slope(sizes, onsets)
    expected = linregress(np.log(sizes), np.log(onsets))
    assert b == pytest.approx(expected.slope)
    assert (high - low) / 2 == pytest.approx(2.1604 * expected.stderr, rel=1e-3)  # t of 13
    assert low < 1.2 < high
    assert clock.slope(sizes, onsets, factor=1.4)[1][1] > high


def test_onsets_that_lie_on_a_line_by_the_steps_of_looks_have_an_interval():
    """Onsets are rounded up to the next look, so that a perfect line is luck."""
    rng, sizes, factor = np.random.default_rng(5), np.repeat([16.0, 32.0, 64.0], 2), 2**0.5
    inside = 0
    for _ in range(400):
        true = 9 * sizes * np.exp(rng.uniform(0, np.log(factor), len(sizes)))
        seen = factor ** np.ceil(np.log(true) / np.log(factor))
        low, high = clock.slope(sizes, seen, factor)[1]
        inside += low <= 1 <= high
    assert inside / 400 >= 0.95
    assert clock.slope(sizes, 9 * sizes, factor)[1][1] > 1.1
