"""P-values and lists against brute force, and their promised error rates on simulated truth."""

import numpy as np
import pytest

from sidepipe.memorization.conformal import discoveries, p_values


def test_p_values_are_those_of_the_definition_with_ties():
    rng = np.random.default_rng(0)
    scores, control = rng.integers(0, 9, 40) / 3, rng.integers(0, 9, 25) / 3
    expected = [(1 + sum(c >= s for c in control)) / 26 for s in scores]
    np.testing.assert_allclose(p_values(scores, control), expected)


def test_p_values_of_exchangeable_scores_are_not_too_small():
    rng = np.random.default_rng(1)
    p = np.concatenate([p_values(rng.normal(size=20), rng.normal(size=99)) for _ in range(500)])
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / len(p))
    assert (p <= 0.05).mean() > 0.03, "or they would have no power"


def test_a_list_is_that_of_benjamini_and_hochberg():
    p = np.array([0.01, 0.9, 0.02, 0.04, 0.03, 0.2])
    # Sorted: .01 .02 .03 .04 .2 .9 against .05 k / 6 = .0083 .0167 .025 .033 .042 .05.
    assert not discoveries(p, 0.05).any()
    # At 0.07 the lines are .0117 .0233 .035 .0467 .0583 .07: the fourth is the last below its line.
    assert discoveries(p, 0.07).tolist() == [True, False, True, True, True, False]
    # A value above its own line is listed where a later one is below its line.
    assert discoveries(np.array([0.04, 0.045]), 0.05).tolist() == [True, True]


def test_the_false_discovery_rate_is_kept_and_members_are_found():
    rng, shares, found = np.random.default_rng(2), [], []
    for _ in range(200):
        control, nulls, members = rng.normal(size=400), rng.normal(size=80), rng.normal(4, 1, 20)
        listed = discoveries(p_values(np.concatenate([members, nulls]), control), 0.1)
        shares.append(listed[20:].sum() / max(1, listed.sum()))
        found.append(listed[:20].mean())
    assert np.mean(shares) <= 0.1 + 3 * np.std(shares) / np.sqrt(200)
    assert np.mean(found) > 0.8


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: p_values(np.ones(2), np.empty(0)), "control must be one score at least, got 0"),
        (lambda: p_values(np.array([np.nan]), np.ones(2)), "scores must be finite"),
        (lambda: p_values(np.ones(2), np.array([np.inf])), "control must be finite"),
        (lambda: discoveries(np.ones(2), 0.0), r"rate must be in \(0, 1\), got 0.0"),
        (lambda: discoveries(np.ones(2), 1.0), r"rate must be in \(0, 1\), got 1.0"),
    ],
)
def test_bad_input_is_refused(call, rule):
    with pytest.raises(ValueError, match=rule):
        call()
