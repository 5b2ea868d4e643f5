import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from sidepipe.features.encoders import PixelsL2
from sidepipe.memorization import excess as c
from sidepipe.memorization.comparison import compare
from sidepipe.memorization.real import Encoded, real_images
from sidepipe.memorization.results import calibrated, curve, duplicate_groups
from sidepipe.memorization.thresholds import threshold_at_false_positive_rate

# Intervals


def heldout(*sets, scale=1.0, repeats=0):
    """Hits on held-out sets, each a row of yes and no by image."""
    hits = np.array(sets, bool)
    return c.HeldoutHits(hits.mean(0), repeats, len(hits), scale)


@pytest.mark.parametrize(("hits", "count"), [(0, 60), (1, 60), (30, 200), (200, 200), (3, 7)])
def test_wilson_is_scipy_s(hits, count):
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    low, high = c.wilson(hits / count, count)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_trials_are_images_where_each_hits_all_sets_or_none_and_more_where_it_does_so_by_chance():
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.random((1, 4000)) < 0.1, 8, axis=0)
    assert c.effective_count(alike.mean(0)) == pytest.approx(4000, rel=0.01)
    chance = rng.random((8, 4000)) < 0.1
    assert c.effective_count(chance.mean(0)) == pytest.approx(8 * 4000, rel=0.1)
    for everywhere in (np.zeros(50), np.ones(50)):
        assert c.effective_count(everywhere) == pytest.approx(50)


def test_a_larger_set_is_hit_as_many_draws_of_a_smaller_one_and_less_where_images_differ():
    rng = np.random.default_rng(1)
    for rates in (np.full(200_000, 0.05), rng.choice([0.0, 0.5], 200_000, p=[0.9, 0.1])):
        small, large = (1 - (1 - rates) ** n for n in (1, 4))
        bound = c.at_scale(float(small.mean()), 4)
        assert large.mean() <= bound + 1e-9
    assert c.at_scale(0.05, 4) == pytest.approx(1 - 0.95**4)
    assert c.at_scale(0.05, 1) == pytest.approx(0.05)
    assert [c.at_scale(share, 5.12) for share in (0, 1)] == [0, 1]
    assert c.at_scale(1e-9, 5.12) == pytest.approx(5.12e-9)


def test_newcombe_s_interval_of_paired_shares_is_his():
    """Newcombe (1998), method 10 without its continuity correction, on a table by hand."""
    train = np.repeat([True, True, False, False], [20, 12, 2, 66])
    other = np.repeat([True, False, True, False], [20, 12, 2, 66])
    share, (low, high) = c.excess(train, heldout(other))
    assert share == pytest.approx(0.10)
    phi = (20 * 66 - 12 * 2) / np.sqrt(32 * 68 * 22 * 78)
    # The control has one more image in its number of trials, so its ends are a little closer.
    l1, u1 = binomtest(32, 100).proportion_ci(method="wilson")
    l2, u2 = binomtest(22, 100).proportion_ci(method="wilson")
    a, b = 0.32 - l1, u2 - 0.22
    assert low == pytest.approx(0.10 - np.sqrt(a**2 - 2 * phi * a * b + b**2), abs=1e-3)
    a, b = u1 - 0.32, 0.22 - l2
    assert high == pytest.approx(0.10 + np.sqrt(a**2 - 2 * phi * a * b + b**2), abs=1e-3)


@pytest.mark.parametrize("share", [0.15, 0.02])
def test_the_excess_interval_covers_the_planted_excess_in_most_repetitions(share):
    rng = np.random.default_rng(0)
    covers = 0
    for _ in range(200):
        hit, control = rng.random(400) < share, rng.random((4, 400)) < 0.01
        found, (low, high) = c.excess(hit, heldout(*control))
        assert found == pytest.approx(hit.mean() - control.mean())
        covers += low <= share - 0.01 <= high
    assert 184 <= covers <= 198


def test_where_nothing_hits_anything_the_interval_has_a_width_that_falls_with_the_images():
    for count, width in ((60, 0.0602), (400, 0.0095), (2000, 0.00192)):
        nothing = np.zeros(count, bool)
        share, (low, high) = c.excess(nothing, heldout(nothing, nothing))
        assert share == 0
        assert high == pytest.approx(width, rel=0.01)
        assert low == pytest.approx(-high)


def test_hits_on_one_held_out_image_are_one_draw_of_luck_and_those_on_many_are_not():
    hit = np.arange(2000) < 20
    often, each = heldout(hit, repeats=20 * 19), heldout(hit)
    nothing = np.zeros(2000, bool)
    (_, (wide_low, wide_high)), (_, (low, high)) = (c.excess(nothing, x) for x in (often, each))
    # The set's own 20^2 and that of the training set, of one draw each, less the images' 20.
    assert often.luck == pytest.approx(2 * 20 * 19 / 2000**2, rel=0.03)
    assert each.luck == 0
    assert wide_low < -2 * 20 / 2000 < low
    assert wide_high > 0 > high


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


def at_rates(compared, *rates):
    threshold = threshold_at_false_positive_rate(compared.real_gamma, rates[0], compared.metric)
    return calibrated(compared, rates, duplicate_groups(compared.train, compared.metric, threshold))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.25])
def test_the_interval_at_a_calibrated_threshold_covers_thirty_planted_copies(noise):
    rng = np.random.default_rng(0)
    covers = 0
    for _ in range(100):
        [at] = at_rates(planted(rng, noise), 0.001)
        low, high = (200 * share for share in at["excess"]["interval"])
        covers += low <= 30 <= high
    assert covers >= 90


def test_copies_too_noisy_for_the_threshold_are_missed_and_not_made_up():
    [at] = at_rates(planted(np.random.default_rng(0), 0.9), 0.001)
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
        for at in at_rates(compared, 0.001, 0.01, 0.05):
            low, high = at["excess"]["interval"]
            covered.append(low <= 0 <= high)
        excess = curve(compared, thresholds)["excess"]
        covered += [a <= 0 <= b for a, b in zip(excess["low"], excess["high"], strict=True)]
    assert np.mean(covered) >= 0.9
