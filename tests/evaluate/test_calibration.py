import numpy as np
import pytest
from sklearn.datasets import load_digits

from sidepipe.evaluate import calibration as c
from sidepipe.evaluate.comparison import compare
from sidepipe.evaluate.results import calibrated, curve
from sidepipe.features.encoders import PixelsL2
from sidepipe.features.real import Encoded, real_images
from sidepipe.features.thresholds import rate_interval

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
    assert high[0] == -low[0] == rate_interval(0, 50)[1] > 0
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
    return compare(generated, generated[:5], real_images(*sets, "l2"), "l2")


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
        queries = digits[generated]
        compared = compare(queries, queries[:5], real_images(*sets, "l2"), "l2")
        for at in calibrated(compared, [0.001, 0.01, 0.05]):
            low, high = at["excess"]["interval"]
            covered.append(low <= 0 <= high)
        excess = curve(compared, thresholds)["excess"]
        covered += [a <= 0 <= b for a, b in zip(excess["low"], excess["high"], strict=True)]
    assert np.mean(covered) >= 0.9
