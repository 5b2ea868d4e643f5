import math

import numpy as np
import pytest

from sidepipe.evaluate import memorization as m
from sidepipe.features.search import covered, nearest

BANDS = {
    "cosine": {"low": (0.4, 0.5), "mid": (0.5, 0.6), "high": (0.6, math.inf)},
    "l2": {"low": (0.9, 1.2), "mid": (0.6, 0.9), "high": (-math.inf, 0.6)},
}
METRICS = pytest.mark.parametrize("metric", ["cosine", "l2"])


def gamma(g, d, metric):
    """gamma(g_i, d_j) of one pair, to float32."""
    if metric == "cosine":
        return np.float32(math.fsum(a * b for a, b in zip(g, d, strict=True)))
    return np.float32(math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(g, d, strict=True))))


def near(target, value, metric):
    """A vector whose gamma to `target` is `value`."""
    if metric == "l2":
        return target + value * np.eye(len(target))[0]
    across = np.cross(target[:3], target[1:4])  # orthogonal to target's first three entries
    across = np.append(across / np.linalg.norm(across), np.zeros(len(target) - 3))
    return value * target + math.sqrt(1 - value**2) * across


def vectors(n, metric, seed):
    """Far apart: in 48 dimensions only what is planted comes near."""
    x = np.random.default_rng(seed).normal(size=(n, 48))
    return x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x


@pytest.fixture
def planted(metric):
    """37 generated and 23 training vectors: three copies, near misses on both sides of each edge.

    Three training vectors have a near double.
    """
    generated, training = vectors(37, metric, 0), vectors(23, metric, 1)
    for i, double in ((15, 20), (16, 21), (7, 22)):
        training[double] = near(training[i], 0.999 if metric == "cosine" else 0.05, metric)
    generated[[4, 9, 30]] = training[[7, 7, 12]]
    for i, edge in enumerate((0.4, 0.5, 0.6) if metric == "cosine" else (1.2, 0.9, 0.6)):
        generated[10 + i] = near(training[15 + i], edge - 1e-4, metric)
        generated[20 + i] = near(training[15 + i], edge + 1e-4, metric)
    return generated.astype(np.float32), training.astype(np.float32)


def is_in(value, band):
    return band[0] <= value < band[1]


def best(values, metric):
    return max(values) if metric == "cosine" else min(values)


def eq_8(generated, training, metric, band):
    """AMS: how many generated images have their nearest training image in the band."""
    count = 0
    for g in generated.tolist():
        count += is_in(best([gamma(g, d, metric) for d in training.tolist()], metric), band)
    return count / len(generated)


def eq_9(generated, training, metric, band):
    """UMS as printed: the union over generated images of the training images in the band."""
    union = set()
    for g in generated.tolist():
        union |= {j for j, d in enumerate(training.tolist()) if is_in(gamma(g, d, metric), band)}
    return len(union) / len(generated)


def eq_9_nearest(generated, training, metric, band):
    """The same with each generated image's nearest training image only."""
    union = set()
    for g in generated.tolist():
        values = [gamma(g, d, metric) for d in training.tolist()]
        if is_in(best(values, metric), band):
            union.add(values.index(best(values, metric)))
    return len(union) / len(generated)


@METRICS
@pytest.mark.parametrize("name", ["low", "mid", "high"])
def test_ams_and_both_ums_equal_their_formulas_on_asymmetric_data(planted, metric, name):
    generated, training = planted
    band = BANDS[metric][name]
    values, index = (a[:, 0] for a in nearest(generated, training, metric))
    ums = covered(generated, training, metric, [band])[0].sum() / len(generated)
    assert m.ams(values, band) == eq_8(generated, training, metric, band) > 0
    assert ums == eq_9(generated, training, metric, band) > 0
    unique = m.ums_nearest(values, index, band)
    assert unique == eq_9_nearest(generated, training, metric, band) > 0
    assert unique <= m.ams(values, band)
    assert unique < ums


@METRICS
def test_near_misses_of_the_high_band_are_no_hits(planted, metric):
    generated, training = planted
    band = BANDS[metric]["high"]
    values = nearest(generated, training, metric)[0][:, 0]
    inside = 22 if metric == "cosine" else 12  # at the edge of high; its twin is just outside
    assert set(np.flatnonzero(m.in_band(values, band))) == {4, 9, 30, inside}


@METRICS
def test_ums_as_printed_can_exceed_ams_and_that_of_nearest_images_cannot(metric):
    generated, training = vectors(5, metric, 2), vectors(11, metric, 3)
    training[:4] = near(generated[0], 0.9 if metric == "cosine" else 0.1, metric)  # four alike
    generated, training = generated.astype(np.float32), training.astype(np.float32)
    band = BANDS[metric]["high"]
    values, index = (a[:, 0] for a in nearest(generated, training, metric))
    ums = covered(generated, training, metric, [band])[0].sum() / 5
    assert m.ams(values, band) == eq_8(generated, training, metric, band) == 1 / 5
    assert ums == eq_9(generated, training, metric, band) == 4 / 5
    assert m.ums_nearest(values, index, band) == 1 / 5


@METRICS
def test_cumulative_curves_equal_their_formulas(planted, metric):
    generated, training = planted
    values = nearest(generated, training, metric)[0][:, 0]
    reverse = nearest(training, generated, metric)[0][:, 0]
    thresholds = [
        *np.linspace(-0.5, 2.5, 61).tolist(),
        float(values[0]),
        float(reverse[3]),
        -99.0,
        99.0,
    ]
    ams = m.cumulative_ams(values, thresholds, metric)
    ums = m.cumulative_ums(reverse, len(generated), thresholds, metric)
    pairs = [[gamma(g, d, metric) for d in training.tolist()] for g in generated.tolist()]
    for a, mean, union in zip(thresholds, ams, ums, strict=True):
        as_close = [[v >= a if metric == "cosine" else v <= a for v in row] for row in pairs]
        assert mean == sum(map(any, as_close)) / 37
        assert union == sum(map(any, zip(*as_close, strict=True))) / 37
    assert max(ams) == 1
    assert max(ums) == 23 / 37  # over generated images, not over training ones


def test_bands_are_half_open():
    values = np.array([0.4, 0.5, 0.6], np.float32)
    assert m.in_band(values, (0.4, 0.5)).tolist() == [True, False, False]
    assert m.in_band(values, (0.5, math.inf)).tolist() == [False, True, True]


def test_a_threshold_is_reached_by_what_equals_it():
    values = np.array([0.4, 0.5, 0.6], np.float32)
    assert m.closer(values, 0.5, "cosine").tolist() == [False, True, True]
    assert m.closer(values, 0.5, "l2").tolist() == [True, True, False]


def test_the_tail_percentile_is_95_of_similarities_and_5_of_distances():
    values = np.random.default_rng(0).permutation(201).astype(np.float32) / 200
    assert m.tail_percentile(values, "cosine") == pytest.approx(0.95)
    assert m.tail_percentile(values, "l2") == pytest.approx(0.05)


# Thresholds from held-out images


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
        with pytest.raises(ValueError, match="at least 2 held-out images, got 1"):
            m.threshold_at_false_positive_rate(values, rate, metric)
        return
    threshold = m.threshold_at_false_positive_rate(values, rate, metric)
    assert m.closer(values, threshold, metric).sum() == passing
    # It is the loosest: the next float on lets one more pass.
    looser = np.nextafter(np.float32(threshold), np.float32(-1 if metric == "cosine" else 2))
    assert m.closer(values, float(looser), metric).sum() == passing + 1


@METRICS
def test_images_that_tie_at_the_edge_all_fail(metric):
    # From closest: one at 0.9, three at 0.8, the rest at 0.1. Two of ten may pass; one does.
    values = np.array([0.9, 0.8, 0.8, 0.8] + [0.1] * 6, np.float32)
    values = values if metric == "cosine" else 1 - values
    threshold = m.threshold_at_false_positive_rate(values, 0.2, metric)
    assert m.closer(values, threshold, metric).sum() == 1
    threshold = m.threshold_at_false_positive_rate(values, 0.4, metric)
    assert m.closer(values, threshold, metric).sum() == 4


@METRICS
def test_if_all_held_out_images_are_equally_close_none_passes(metric):
    values = np.full(100, 0.3, np.float32)
    threshold = m.threshold_at_false_positive_rate(values, 0.01, metric)
    assert not m.closer(values, threshold, metric).any()


def test_the_threshold_survives_json_and_other_floats():
    values = np.random.default_rng(1).random(500).astype(np.float32)
    for metric in ("cosine", "l2"):
        threshold = m.threshold_at_false_positive_rate(values, 0.01, metric)
        assert type(threshold) is float
        assert m.closer(values, float(repr(threshold)), metric).sum() == 5
        assert m.closer(values.astype(np.float64), threshold, metric).sum() == 5


@METRICS
def test_too_few_held_out_images_are_refused_with_the_number_needed(metric):
    with pytest.raises(ValueError, match=r"rate of 0.001 needs at least 1000 .* got 999; remedy"):
        m.threshold_at_false_positive_rate(np.zeros(999, np.float32), 0.001, metric)


def test_the_excess_interval_covers_the_planted_excess_in_most_repetitions():
    rng = np.random.default_rng(0)
    covers = 0
    for repetition in range(100):
        hit, control = rng.random(200) < 0.15, rng.random(200) < 0.02
        alone = np.arange(200)
        low, high = m.excess_interval(hit, control, alone, draws=300, seed=repetition)
        covers += low <= 0.13 <= high
    assert covers >= 90


def test_copies_of_one_image_widen_the_interval():
    hit = np.arange(200) < 40
    control = np.zeros(200, bool)
    alone = np.arange(200)
    together = np.where(hit, 0, alone)  # the forty hits are one finding
    narrow = np.subtract(*m.excess_interval(hit, control, alone)[::-1])
    wide = np.subtract(*m.excess_interval(hit, control, together)[::-1])
    assert wide > 2 * narrow


def test_the_excess_of_what_scores_alike_on_both_covers_nothing():
    hit = np.random.default_rng(1).random(500) < 0.1
    low, high = m.excess_interval(hit, np.roll(hit, 250), np.arange(500))
    assert low < 0 < high
