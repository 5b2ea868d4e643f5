import numpy as np
import pytest
from scipy.stats import binom
from sklearn.datasets import load_digits

from sidepipe.evaluate import calibration as c
from sidepipe.evaluate.memorization import closer
from sidepipe.evaluate.reference import Encoded, compare
from sidepipe.evaluate.results import calibrated, curve
from sidepipe.features.encoders import PixelsL2

METRICS = pytest.mark.parametrize("metric", ["cosine", "l2"])


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
    if passing == 0:
        with pytest.raises(ValueError, match=r">= 1 / 1 .* bring at least 2"):
            c.threshold_at_false_positive_rate(values, rate, metric)
        return
    threshold = c.threshold_at_false_positive_rate(values, rate, metric)
    assert closer(values, threshold, metric).sum() == passing
    # It is the loosest: the next float on lets one more pass.
    looser = np.nextafter(np.float32(threshold), np.float32(-1 if metric == "cosine" else 2))
    assert closer(values, float(looser), metric).sum() == passing + 1


@METRICS
def test_images_that_tie_at_the_edge_all_fail(metric):
    # From closest: one at 0.9, three at 0.8, the rest at 0.1. Two of ten may pass; one does.
    values = np.array([0.9, 0.8, 0.8, 0.8] + [0.1] * 6, np.float32)
    values = values if metric == "cosine" else 1 - values
    threshold = c.threshold_at_false_positive_rate(values, 0.2, metric)
    assert closer(values, threshold, metric).sum() == 1
    threshold = c.threshold_at_false_positive_rate(values, 0.4, metric)
    assert closer(values, threshold, metric).sum() == 4


@METRICS
def test_if_all_held_out_images_are_equally_close_none_passes(metric):
    values = np.full(100, 0.3, np.float32)
    threshold = c.threshold_at_false_positive_rate(values, 0.01, metric)
    assert not closer(values, threshold, metric).any()


def test_the_threshold_survives_json_and_other_floats():
    values = np.random.default_rng(1).random(500).astype(np.float32)
    for metric in ("cosine", "l2"):
        threshold = c.threshold_at_false_positive_rate(values, 0.01, metric)
        assert type(threshold) is float
        assert closer(values, float(repr(threshold)), metric).sum() == 5
        assert closer(values.astype(np.float64), threshold, metric).sum() == 5


@METRICS
def test_too_few_held_out_images_are_refused_with_the_number_needed(metric):
    message = r"must be >= 1 / 999 .* got 0.001; remedy: bring at least 1000, .*rates=\[0.003\]"
    with pytest.raises(ValueError, match=message):
        c.threshold_at_false_positive_rate(np.zeros(999, np.float32), 0.001, metric)


@pytest.mark.parametrize(("passing", "num_real"), [(0, 50), (1, 1541), (12, 1200), (7, 7)])
def test_the_rate_interval_s_ends_are_where_what_was_seen_becomes_unlikely(passing, num_real):
    low, high = c.rate_interval(passing, num_real)
    assert 0 <= low <= passing / num_real <= high <= 1
    if passing > 0:
        assert binom.sf(passing - 1, num_real, low) == pytest.approx(0.025)
    if passing < num_real:
        assert binom.cdf(passing, num_real, high) == pytest.approx(0.025)


# Intervals


def interval(values, groups, **options):
    low, high = c.clustered_bootstrap(np.asarray(values, float)[:, None], groups, **options)
    return low[0], high[0]


def test_the_bootstrap_agrees_with_a_plain_one_that_draws_groups():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    values = rng.normal(groups % 7, 1.0)
    members = [values[groups == g] for g in np.unique(groups)]
    means = []
    for _ in range(4000):
        drawn = rng.integers(len(members), size=len(members))
        means.append(np.concatenate([members[g] for g in drawn]).mean())
    low, high = interval(values, groups, draws=4000)
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.06 * (high - low))


def test_columns_are_drawn_together_and_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    groups, values = rng.integers(0, 30, 200), rng.normal(size=(200, 3))
    low, high = c.clustered_bootstrap(values, groups, draws=50)
    one_low, one_high = interval(values[:, 2], groups, draws=50)
    assert (low[2], high[2]) == pytest.approx((one_low, one_high), rel=1e-12)
    monkeypatch.setattr(c, "MAX_FLOATS", 100)
    again_low, again_high = c.clustered_bootstrap(values, groups, draws=50)
    np.testing.assert_allclose([again_low, again_high], [low, high], rtol=1e-12)


def test_copies_of_one_image_widen_the_interval():
    hit, alone = np.arange(200) < 40, np.arange(200)
    together = np.where(hit, 0, alone)  # the forty hits are one finding
    narrow, wide = (np.subtract(*interval(hit, g)[::-1]) for g in (alone, together))
    assert wide > 2 * narrow


def test_the_excess_interval_covers_the_planted_excess_in_most_repetitions():
    rng = np.random.default_rng(0)
    covers = 0
    for _ in range(100):
        hit, control = rng.random((200, 1)) < 0.15, rng.random((200, 1)) < 0.02
        share, low, high = c.excess(hit, control, np.arange(200))
        assert share[0] == pytest.approx(hit.mean() - control.mean())
        covers += low[0] <= 0.13 <= high[0]
    assert covers >= 90


def test_where_nothing_hits_anything_the_interval_is_that_of_no_hit_among_the_groups():
    nothing = np.zeros((200, 2), bool)
    control = nothing.copy()
    control[:3, 1] = True
    share, low, high = c.excess(nothing, control, np.arange(200) % 50)
    assert share[0] == 0
    assert high[0] == -low[0] == c.rate_interval(0, 50)[1] > 0
    assert low[1] < share[1] == -3 / 200


# On planted truth


def planted(rng, noise):
    """200 images of which exactly 30 are noisy copies of training images, 16 dimensions."""
    train, unseen = rng.normal(size=(64, 16)), rng.normal(size=(1200, 16))
    generated = rng.normal(size=(200, 16))
    generated[:30] = train[rng.integers(0, 40, 30)] + rng.normal(0, noise, (30, 16))
    generated, train, unseen = (x.astype(np.float32) for x in (generated, train, unseen))
    rows = np.arange(64), 64 + np.arange(1200)
    sets = Encoded(rows[0], train), Encoded(rows[1], unseen)
    return compare(generated, generated[:5], *sets, "l2")


@pytest.mark.parametrize("noise", [0.1, 0.25])
def test_the_interval_at_a_calibrated_threshold_covers_thirty_planted_copies(noise):
    rng = np.random.default_rng(0)
    covers = 0
    for _ in range(100):
        [at] = calibrated(planted(rng, noise), [0.001])
        low, high = (200 * share for share in at["excess"]["interval"])
        covers += low <= 30 <= high
    assert covers >= 90


def test_copies_too_noisy_for_the_threshold_are_missed_and_not_made_up():
    [at] = calibrated(planted(np.random.default_rng(0), 0.9), [0.001])
    assert at["train"]["count"] < 15


@pytest.fixture(scope="module")
def digits():
    images = (load_digits().images * 15).astype(np.uint8)[..., None]
    return PixelsL2().encode(images)


def test_real_held_out_images_scored_as_if_generated_have_an_excess_that_covers_nothing(digits):
    covered, thresholds = [], [0.08, 0.1, 0.12, 0.15]
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(digits))
        generated, train, unseen = np.split(order, [300, 500])
        sets = Encoded(train, digits[train]), Encoded(unseen, digits[unseen])
        compared = compare(digits[generated], digits[generated[:5]], *sets, "l2")
        for at in calibrated(compared, [0.001, 0.01, 0.05]):
            low, high = at["excess"]["interval"]
            covered.append(low <= 0 <= high)
        excess = curve(compared, thresholds)["excess"]
        covered += [a <= 0 <= b for a, b in zip(excess["low"], excess["high"], strict=True)]
    assert np.mean(covered) >= 0.9
