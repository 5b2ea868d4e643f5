"""Thresholds against counting, at their edges; intervals of rates against the binomial."""

import numpy as np
import pytest
from scipy.stats import binom

from sidepipe.features.search import closer
from sidepipe.memorization.thresholds import (
    allowed,
    rate_interval,
    threshold_above,
    threshold_at_false_positive_rate,
    usable_rates,
)

METRICS = pytest.mark.parametrize("metric", ["cosine", "l2"])


def test_at_most_the_rate_lies_above_the_threshold_and_no_lower_one_would_do():
    scores = np.random.default_rng(0).permutation(np.arange(200.0))
    assert threshold_above(scores, 0.01) == 197
    assert threshold_above(scores, 0.001) == 199
    assert threshold_above(np.array([1.0, 5.0, 5.0, 5.0]), 0.5) == 5
    assert threshold_above(np.arange(100.0), 0.29) == 70  # 0.29 * 100 is 28.999999999999996


@METRICS
@pytest.mark.parametrize(
    ("count", "rate", "passing"),
    [
        (1000, 0.001, 1),
        (1999, 0.001, 1),
        (1000, 0.01, 10),
        (100, 0.29, 29),
        (50, 0.5, 25),
        (1, 0.999999, 0),
    ],
)
def test_exactly_the_allowed_share_of_held_out_images_passes(metric, count, rate, passing):
    values = np.random.default_rng(0).random(count).astype(np.float32)
    assert len(np.unique(values)) == count
    threshold = threshold_at_false_positive_rate(values, rate, metric)
    assert closer(values, threshold, metric).sum() == passing
    # It is the loosest: the next float on lets one more pass.
    looser = np.nextafter(np.float32(threshold), np.float32(-1 if metric == "cosine" else 2))
    assert closer(values, float(looser), metric).sum() == passing + 1


@METRICS
def test_images_that_tie_at_the_edge_all_fail(metric):
    # From closest: one at 0.9, three at 0.8, the rest at 0.1. Two of ten may pass; one does.
    values = np.array([0.9, 0.8, 0.8, 0.8] + [0.1] * 6, np.float32)
    values = values if metric == "cosine" else 1 - values
    threshold = threshold_at_false_positive_rate(values, 0.2, metric)
    assert closer(values, threshold, metric).sum() == 1
    threshold = threshold_at_false_positive_rate(values, 0.4, metric)
    assert closer(values, threshold, metric).sum() == 4


@METRICS
def test_if_all_held_out_images_are_equally_close_none_passes(metric):
    values = np.full(100, 0.3, np.float32)
    threshold = threshold_at_false_positive_rate(values, 0.01, metric)
    assert not closer(values, threshold, metric).any()


@pytest.mark.parametrize(("metric", "copy"), [("l2", 0.0), ("cosine", 1.0), ("cosine", 0.9999999)])
@pytest.mark.parametrize(("copies", "rate"), [(2, 0.01), (100, 0.01), (51, 0.5), (1, 0.001)])
def test_a_threshold_that_no_exact_copy_reaches_is_an_error(metric, copy, copies, rate):
    values = np.full(100, 0.3, np.float32)
    values[:copies] = copy
    message = rf"false positive rate of {100 * rate:.3g} %: {copies} of 100 unseen images are exact"
    with pytest.raises(ValueError, match=f"no image could be a hit at a {message}.*remedy: remove"):
        threshold_at_false_positive_rate(values, rate, metric)


@pytest.mark.parametrize(("metric", "copy"), [("l2", 0.0), ("cosine", 1.0)])
def test_copies_that_the_rate_lets_pass_do_no_harm(metric, copy):
    values = np.full(100, 0.3, np.float32)
    values[:3] = copy
    threshold = threshold_at_false_positive_rate(values, 0.03, metric)
    assert closer(np.array([copy], np.float32), threshold, metric).all()
    assert closer(values, threshold, metric).sum() == 3


@pytest.mark.parametrize(
    ("rates", "count", "used"),
    [
        ([0.001, 0.01], 1541, [0.001, 0.01]),
        ([0.001, 0.01], 1000, [0.001, 0.01]),
        ([0.001, 0.01], 999, [1 / 999, 0.01]),
        ([0.001, 0.01], 440, [1 / 440, 0.01]),
        ([0.001, 0.01], 100, [0.01]),
        ([0.001, 0.01], 80, [0.0125]),
        ([0.01, 0.001], 80, [0.0125]),
        ([0.001], 20, [0.05]),
        ([0.29], 100, [0.29]),
    ],
)
def test_a_rate_is_never_smaller_than_one_of_the_unseen_images(rates, count, used):
    assert usable_rates(rates, count) == used
    assert all(allowed(count, rate) >= 1 for rate in used)


@pytest.mark.parametrize("count", [0, 1, 19])
def test_fewer_than_twenty_unseen_images_set_no_threshold(count):
    message = rf"held-out images that nothing was trained on must be >= 20, .* got {count}; bring"
    with pytest.raises(ValueError, match=message):
        usable_rates([0.5], count)


def test_the_threshold_survives_json_and_other_floats():
    values = np.random.default_rng(1).random(500).astype(np.float32)
    for metric in ("cosine", "l2"):
        threshold = threshold_at_false_positive_rate(values, 0.01, metric)
        assert type(threshold) is float
        assert closer(values, float(repr(threshold)), metric).sum() == 5
        assert closer(values.astype(np.float64), threshold, metric).sum() == 5


@pytest.mark.parametrize(("passing", "num_real"), [(0, 50), (1, 1541), (12, 1200), (7, 7)])
def test_the_rate_interval_s_ends_are_where_what_was_seen_becomes_unlikely(passing, num_real):
    low, high = rate_interval(passing, num_real)
    assert 0 <= low <= passing / num_real <= high <= 1
    if passing > 0:
        assert binom.sf(passing - 1, num_real, low) == pytest.approx(0.025)
    if passing < num_real:
        assert binom.cdf(passing, num_real, high) == pytest.approx(0.025)
