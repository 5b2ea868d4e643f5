"""ROC: against scikit-learn and by hand, ties, intervals over prompts."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from sidepipe.memorization.roc import measured, require_enough, roc


def scored(n=300, seed=0):
    """Scores with many ties, of which one in five is of a memorized prompt."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.2
    return np.round(rng.normal(size=n) + 1.5 * positive, 1), positive


def test_area_and_rate_with_ties_are_scikit_learns():
    for seed in range(5):
        scores, positive = scored(seed=seed)
        curve = roc(scores, positive, np.ones(len(scores)))
        assert float(curve.area()) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
        np.testing.assert_allclose(curve.fpr, fpr, atol=1e-12)
        np.testing.assert_allclose(curve.tpr, tpr, atol=1e-12)
        for rate in (0.01, 0.1):
            assert float(curve.tpr_at(rate)) == tpr[fpr <= rate].max()


def test_a_memorized_prompt_that_ties_with_another_counts_half():
    curve = roc(np.array([2.0, 1.0, 1.0]), np.array([True, True, False]), np.ones(3))
    assert float(curve.area()) == 0.75
    np.testing.assert_array_equal(curve.fpr, [0, 0, 1])
    np.testing.assert_array_equal(curve.tpr, [0, 0.5, 1])


def test_the_rate_is_of_the_last_point_below_and_not_of_the_nearest():
    # One of 60 others is 1.7 %: nearer to 1 % than 0 is, and beyond it.
    scores = np.array([9.0, 8.0, 7.0, *np.zeros(59)])
    positive = np.array([True, False, True, *[False] * 59])
    curve = roc(scores, positive, np.ones(62))
    assert float(curve.tpr_at(0.01)) == 0.5
    assert float(curve.tpr_at(0.02)) == 1.0


def test_exactly_one_percent_is_within_one_percent():
    scores = np.array([9.0, 8.0, *np.zeros(99)])
    positive = np.array([False, True, *[False] * 99])
    assert float(roc(scores, positive, np.ones(101)).tpr_at(0.01)) == 1.0


def test_weights_count_as_repeated_prompts():
    scores, positive = scored(50)
    weights = np.random.default_rng(1).integers(0, 4, 50)
    repeated = roc(np.repeat(scores, weights), np.repeat(positive, weights), np.ones(weights.sum()))
    curve = roc(scores, positive, np.stack([weights, weights]))
    np.testing.assert_allclose(curve.area(), [repeated.area()] * 2)
    np.testing.assert_allclose(curve.tpr_at(0.05), [repeated.tpr_at(0.05)] * 2)


def test_intervals_hold_the_estimate_are_reproducible_and_narrow_with_more_prompts():
    few, many = (measured(*scored(n), 0.05, draws=300) for n in (80, 1500))
    assert few == measured(*scored(80), 0.05, draws=300)
    for found in (few, many):
        for name in ("auc", "tpr"):
            low, high = found[f"{name}_interval"]
            assert low <= found[name] <= high
    assert np.diff(many["auc_interval"]) < np.diff(few["auc_interval"]) / 2


def test_the_interval_of_the_area_is_as_wide_as_delong_says():
    scores, positive = scored(1500, seed=3)
    low, high = measured(scores, positive, 0.05, draws=500)["auc_interval"]
    yes, no = scores[positive], scores[~positive]
    wins = (yes[:, None] > no) + 0.5 * (yes[:, None] == no)
    variance = wins.mean(1).var(ddof=1) / len(yes) + wins.mean(0).var(ddof=1) / len(no)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.15)


def test_prompts_of_one_kind_have_no_roc():
    with pytest.raises(ValueError, match=r"positive must be some and not all, got '0 of 3'"):
        roc(np.arange(3.0), np.zeros(3, bool), np.ones(3))


def test_too_few_calibration_prompts_are_refused_with_the_number_needed():
    require_enough(100, 0.01, "calibration prompts", "bring more")
    with pytest.raises(
        ValueError, match=r"calibration prompts must be >= 1 / 0.01 = 100, got 99; bring more"
    ):
        require_enough(99, 0.01, "calibration prompts", "bring more")
