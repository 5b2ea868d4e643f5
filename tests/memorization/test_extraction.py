"""Probabilities of extraction where the rates of hits are planted."""

import numpy as np
import pytest
from scipy.stats import gamma as gamma_distribution
from scipy.stats import poisson

from sidepipe.memorization.extraction import _loss, extraction, log_scores, reliability

SAMPLED, BUDGET = 1000, 8000
COUNT = 300


def planted(seed, shape=2.0, intercept=-8.0):
    """Scores, and the rate of each image: a gamma distribution around an exponential of them."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(COUNT, 2))
    mean = np.exp(intercept + 1.5 * scores[:, 0])
    return scores, rng.gamma(shape, mean / shape), rng


def test_the_probabilities_are_the_shares_that_are_found():
    predicted, found = [], []
    for seed in range(8):
        scores, rate, rng = planted(seed)
        of = extraction(scores, rng.poisson(SAMPLED * rate), SAMPLED, BUDGET)
        predicted.append(of.probability)
        found.append(rng.poisson(BUDGET * rate) > 0)
    probability, is_found = np.concatenate(predicted), np.concatenate(found)
    for low, high in ((0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 0.95), (0.95, 1.01)):
        some = (probability >= low) & (probability < high)
        error = 3 * np.sqrt(probability[some].var() + 0.25) / np.sqrt(some.sum())
        assert is_found[some].mean() == pytest.approx(probability[some].mean(), abs=error)


@pytest.mark.parametrize("intercept", [-8.0, -12.0])
def test_the_interval_of_the_expected_number_covers_the_number_that_is_found(intercept):
    covered = []
    for seed in range(40):
        scores, rate, rng = planted(seed, intercept=intercept)
        of = extraction(scores, rng.poisson(SAMPLED * rate), SAMPLED, BUDGET, seed)
        expected, (low, high) = of.expected(np.ones(COUNT, bool))
        assert low <= expected <= high
        covered.append(low <= (rng.poisson(BUDGET * rate) > 0).sum() <= high)
    assert np.mean(covered) >= 0.9


def test_without_scores_the_probability_is_that_of_the_gamma_posterior():
    hits = np.random.default_rng(0).negative_binomial(3, 0.4, 2000)
    of = extraction(np.zeros((len(hits), 1)), hits, sampled=10, budget=5)
    rates = np.linspace(1e-6, 6, 200_000)
    # numpy's distribution is a Poisson one whose mean has shape 3 and scale (1 - 0.4) / 0.4.
    prior = gamma_distribution(3, scale=1.5 / 10).pdf(rates)
    for count in (0, 4):
        weight = prior * poisson(10 * rates).pmf(count)
        by_integral = 1 - (weight * np.exp(-5 * rates)).sum() / weight.sum()
        assert of.probability[hits == count] == pytest.approx(by_integral, abs=0.03)


def test_a_sample_without_hits_leaves_an_upper_bound():
    of = extraction(np.random.default_rng(0).normal(size=(400, 2)), np.zeros(400, int), 1000, 1000)
    expected, (low, high) = of.expected(np.ones(400, bool))
    assert expected == pytest.approx(0.5, abs=0.2)
    # The exact bound for the sum of the rates is 3.69 hits; no weight is known here.
    assert low == 0
    assert 3.69 <= high <= 40


def test_a_larger_budget_extracts_more_and_own_hits_count():
    scores, rate, rng = planted(3)
    hits = rng.poisson(SAMPLED * rate)
    small, large = (extraction(scores, hits, SAMPLED, budget) for budget in (100, 10_000))
    assert (small.probability < large.probability).all()
    assert (small.low <= small.probability).all()
    assert (small.probability <= small.high).all()
    scores[:2], hits[:2] = scores[0], [0, 5]
    none, five = extraction(scores, hits, SAMPLED, 100).probability[:2]
    assert none < five


def test_the_gradient_is_that_of_finite_differences():
    scores, rate, rng = planted(1)
    design, hits = np.column_stack([np.ones(COUNT), scores]), rng.poisson(SAMPLED * rate)
    p = np.array([-7.0, 0.5, -0.2, 0.3])
    steps = 1e-5 * np.eye(len(p))
    numeric = [
        (_loss(p + s, design, hits, SAMPLED)[0] - _loss(p - s, design, hits, SAMPLED)[0]) / 2e-5
        for s in steps
    ]
    np.testing.assert_allclose(_loss(p, design, hits, SAMPLED)[1], numeric, rtol=1e-4)


def test_distances_have_two_slopes_around_the_threshold():
    found = log_scores(np.array([0.0, 0.05, 0.1, 0.2]), 0.1, np.array([[0, 1, 2, 3]]))
    np.testing.assert_allclose(
        found,
        [
            [np.log(1e-3), 0, np.log(0.5)],
            [np.log(0.5), 0, np.log(1.5)],
            [0, 0, np.log(2.5)],
            [np.log(2), np.log(2), np.log(3.5)],
        ],
        atol=1e-12,
    )
    assert log_scores(np.ones(3), 0.1, np.empty((0, 3))).shape == (3, 2)


def test_bins_count_the_images_that_are_expected_and_found():
    probability = np.array([0.0, 0.04, 0.05, 0.9, 1.0, 0.99])
    found = np.array([0, 1, 0, 1, 1, 0]) == 1
    assert reliability(probability, found) == [
        {"low": 0.0, "high": 0.05, "images": 2, "expected": pytest.approx(0.04), "found": 1},
        {"low": 0.05, "high": 0.2, "images": 1, "expected": pytest.approx(0.05), "found": 0},
        {"low": 0.8, "high": 0.95, "images": 1, "expected": pytest.approx(0.9), "found": 1},
        {"low": 0.95, "high": 1.0, "images": 2, "expected": pytest.approx(1.99), "found": 1},
    ]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"sampled": 0}, "sampled must be >= 1 generated image, got 0"),
        ({"budget": 0}, "budget must be >= 1 generated image, got 0"),
        ({"scores": np.full((3, 1), np.nan)}, "scores must be finite"),
    ],
)
def test_bad_arguments_are_refused(arguments, rule):
    good = {"scores": np.zeros((3, 1)), "hits": np.zeros(3, int), "sampled": 5, "budget": 5}
    with pytest.raises(ValueError, match=rule):
        extraction(**good | arguments)
