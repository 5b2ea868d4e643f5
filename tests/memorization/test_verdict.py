"""Verdicts where the distributions of scores are known."""

import numpy as np
import pytest

from sidepipe.memorization.verdict import FEWEST, promised, verdicts, with_own_share

NAMES = ("residual_60", "error_60")


def drawn(hit, seed, shift=2.0):
    """Two log-normal scores per candidate; those of hits are smaller by `shift` in logarithm."""
    rng = np.random.default_rng(seed)
    return {name: np.exp(rng.normal(size=len(hit)) - shift * hit) for name in NAMES}


def hits(count, share, seed):
    return np.random.default_rng([seed, 9]).random(count) < share


def exact(scores, share, shift=2.0):
    """The probability of a hit by Bayes' rule."""
    logs = np.log([scores[name] for name in NAMES])
    ratio = np.exp((-0.5 * (logs + shift) ** 2 + 0.5 * logs**2).sum(0))
    return share * ratio / (share * ratio + 1 - share)


def test_probabilities_are_those_of_bayes_rule():
    shadow_hit, hit = hits(4000, 0.5, 0), hits(4000, 0.5, 1)
    scores = drawn(hit, 2)
    found = verdicts(scores, drawn(shadow_hit, 3), shadow_hit)
    np.testing.assert_allclose(found.probability, exact(scores, 0.5), atol=0.06)
    assert found.share == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_the_share_of_hits_of_the_candidates_is_estimated(share):
    shadow_hit, hit = hits(4000, 0.5, 0), hits(4000, share, 1)
    found = verdicts(drawn(hit, 2), drawn(shadow_hit, 3), shadow_hit)
    assert found.share == pytest.approx(share, abs=0.02)
    assert found.probability.sum() == pytest.approx(hit.sum(), rel=0.25, abs=5)
    # The precision that a list promises is the precision that it has.
    listed = promised(found.probability, 0.9)
    assert listed.sum() > 10
    assert hit[listed].mean() == pytest.approx(found.probability[listed].mean(), abs=0.06)


def test_p_values_of_candidates_that_are_no_hits_are_uniform():
    shadow_hit = hits(4000, 0.5, 0)
    found = verdicts(drawn(np.zeros(2000), 2), drawn(shadow_hit, 3), shadow_hit)
    for level in (0.01, 0.05, 0.5):
        assert (found.p_value <= level).mean() == pytest.approx(level, abs=0.03)


def test_scores_that_tell_nothing_leave_the_share_of_the_shadow():
    shadow_hit = hits(4000, 0.3, 0)
    found = verdicts(drawn(hits(500, 0.5, 1), 2, shift=0), drawn(shadow_hit, 3, 0), shadow_hit)
    assert found.probability.std() < 0.1


def test_the_order_of_scores_does_not_count():
    shadow_hit = hits(500, 0.5, 0)
    scores, shadow = drawn(hits(100, 0.5, 1), 2), drawn(shadow_hit, 3)
    turned = dict(reversed(scores.items()))
    first, second = verdicts(scores, shadow, shadow_hit), verdicts(turned, shadow, shadow_hit)
    np.testing.assert_array_equal(first.probability, second.probability)


@pytest.mark.parametrize("few", ["hits", "other candidates"])
def test_a_shadow_with_too_few_of_a_kind_is_refused(few):
    shadow_hit = np.arange(100) < FEWEST - 1
    shadow_hit = shadow_hit if few == "hits" else ~shadow_hit
    with pytest.raises(ValueError, match=f"the shadow model's {few} must be >= 10, got 9"):
        verdicts(drawn(np.zeros(5), 0), drawn(shadow_hit, 1), shadow_hit)


def test_own_share_solves_the_likelihood_equation():
    probability = np.random.default_rng(0).random(300)
    found, share = with_own_share(probability, 0.4)
    assert found.mean() == pytest.approx(share, abs=1e-6)
    grid = np.linspace(0.001, 0.999, 999)
    ratio = probability / (1 - probability) * 0.6 / 0.4
    likelihood = np.log(grid[:, None] * ratio + 1 - grid[:, None]).sum(1)
    assert share == pytest.approx(grid[likelihood.argmax()], abs=0.002)


def test_lists_are_the_longest_with_the_promised_mean():
    probability = np.array([0.2, 0.99, 0.9, 0.8, 0.1])
    assert promised(probability, 0.9).tolist() == [False, True, True, False, False]
    assert promised(probability, 0.89).tolist() == [False, True, True, True, False]
    assert promised(probability, 0.1).all()
    assert not promised(probability, 0.999).any()
    assert promised(np.array([]), 0.9).tolist() == []
