"""Groups of real images, such as patients: rates and intervals of clustered data with known truth.

Images of one group are close to each other, so they are no independent observations.
"""

import numpy as np
import pytest
from scipy.stats import binomtest

from sidepipe.features.search import nearest
from sidepipe.memorization.comparison import compare
from sidepipe.memorization.excess import excess
from sidepipe.memorization.real import (
    Encoded,
    closest_of_groups,
    control_sets,
    real_images,
)
from sidepipe.memorization.results import counted
from sidepipe.memorization.scores import closer


def clustered(rng, num_groups, size, spread, dimensions=6):
    """Slices of groups, and the group of each: a group's mean and a little noise per slice."""
    means = rng.normal(size=(num_groups, 1, dimensions))
    slices = means + spread * rng.normal(size=(num_groups, size, dimensions))
    return slices.reshape(-1, dimensions).astype(np.float32), np.repeat(np.arange(num_groups), size)


def test_sets_of_groups_are_whole_disjoint_and_as_large_as_the_training_set():
    groups = np.repeat(np.arange(7), [3, 1, 4, 2, 2, 5, 1])
    assert control_sets(5, 18) == [slice(0, 5), slice(5, 10), slice(10, 15)]
    assert control_sets(5, 18, groups) == [slice(0, 8), slice(8, 17)]
    assert control_sets(8, 18, groups) == [slice(0, 8), slice(8, 17)]
    assert control_sets(19, 18, groups) == [slice(0, 18)]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_closest_image_stands_for_its_group(metric):
    gamma, groups = np.array([3, 1, 2, 5, 4], np.float32), np.array([0, 0, 0, 1, 1])
    expected = [1, 4] if metric == "l2" else [3, 5]
    np.testing.assert_array_equal(closest_of_groups(gamma, groups, metric), expected)
    np.testing.assert_array_equal(closest_of_groups(gamma, None, metric), gamma)


def false_positives(groups, repetitions=25, rate=0.05):
    """The true share of new groups that reach the threshold, and whether its interval covers it.

    groups: whether the held-out images are counted by their groups of ten.
    """
    rates, covers = [], []
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        train, _ = clustered(rng, 50, 4, spread=0.2)
        unseen, of = clustered(rng, 100, 10, spread=0.2)
        sets = (
            Encoded(np.arange(200), train, np.repeat(np.arange(50), 4) if groups else None),
            Encoded(200 + np.arange(1000), unseen, of if groups else None),
        )
        c = compare(train[:20], None, real_images(*sets, "l2"), "l2")
        at = counted(c, [rate])[0]["calibrated"][0]
        new, of_new = clustered(rng, 2000, 10, spread=0.2)
        gamma = nearest(new, train, "l2")[0][:, 0]
        closest = closest_of_groups(gamma, of_new, "l2")
        rates.append(closer(closest, at["threshold"], "l2").mean())
        # The interval claims to hold for the unit that is counted: new groups, or new images.
        true = rates[-1] if groups else closer(gamma, at["threshold"], "l2").mean()
        low, high = at["true_rate_interval"]
        covers.append(low <= true <= high)
    return float(np.mean(rates)), float(np.mean(covers))


def test_the_false_positive_rate_by_group_is_calibrated_and_the_naive_one_is_not():
    by_group, covers = false_positives(groups=True)
    # The threshold is just below the sixth closest of 100 groups: Beta(6, 95), of mean 6 / 101,
    # and a deviation of 0.0234 / 5 of the mean of 25 repetitions.
    assert by_group == pytest.approx(6 / 101, abs=3 * 0.0234 / 5)
    assert binomtest(round(25 * covers), 25, 0.95, alternative="less").pvalue > 0.05
    by_image, covers = false_positives(groups=False)
    assert by_image > 0.15
    assert binomtest(round(25 * covers), 25, 0.95, alternative="less").pvalue < 0.01


def test_the_interval_of_the_excess_covers_zero_by_group_where_the_naive_one_is_too_narrow():
    """The model copies nothing, and few groups draw nearly all false hits."""
    covers = {True: 0, False: 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        train, of_train = clustered(rng, 30, 10, spread=0.2)
        unseen, of_unseen = clustered(rng, 60, 10, spread=0.2)
        queries = (0.5 * rng.normal(size=(500, 6))).astype(np.float32)
        for groups in covers:
            sets = (
                Encoded(np.arange(300), train, of_train if groups else None),
                Encoded(300 + np.arange(600), unseen, of_unseen if groups else None),
            )
            c = compare(queries, None, real_images(*sets, "l2"), "l2")

            def inside(gamma):
                return gamma <= 0.9

            share, (low, high) = excess(inside(c.train.gamma), c.heldout_hits(inside))
            assert low <= share <= high
            covers[groups] += low <= 0 <= high
    assert covers[True] >= 54
    assert covers[False] < 48
