import math

import numpy as np
import pytest

from sidepipe.features.search import covered, nearest
from sidepipe.memorization import scores as m

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


# Published decision rules


def test_the_adaptive_score_is_its_formula():
    distances = np.sort(np.random.default_rng(0).random((7, 50)), axis=1)
    expected = [row[0] / (0.5 * sum(row) / 50) for row in distances.tolist()]
    np.testing.assert_allclose(m.adaptive_scores(distances), expected, rtol=1e-12)
    doubled = [row[0] / (1.0 * sum(row) / 50) for row in distances.tolist()]
    np.testing.assert_allclose(m.adaptive_scores(distances, a=1.0), doubled, rtol=1e-12)


def test_a_copy_scores_low_however_dense_its_surroundings_and_a_typical_image_does_not():
    copy, typical = np.full(50, 0.2), np.full(50, 0.2)
    copy[0] = 0.01
    scores = m.adaptive_scores(np.stack([copy, typical, np.zeros(50)]))
    assert scores[0] < 0.11
    assert scores[1] == pytest.approx(2)
    assert scores[2] == 0  # fifty copies in the training set


def test_the_ratio_rule_wants_more_than_three_times_closer():
    first, second = np.array([0.1, 0.1, 0.0, 0.2]), np.array([0.31, 0.3, 0.0, 0.5])
    assert m.ratio_hits(first, second).tolist() == [True, False, False, False]


def test_distances_of_unit_vectors_come_from_their_cosine():
    a, b = vectors(2, "cosine", 5)
    gamma = np.array([a @ b, 1.0000001], np.float32)
    distance = m.distance(gamma, "cosine")
    assert distance[0] == pytest.approx(np.linalg.norm(a - b), rel=1e-6)
    assert distance[1] == 0
    assert m.distance(np.array([0.3], np.float32), "l2")[0] == np.float32(0.3)
