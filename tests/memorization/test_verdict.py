"""Verdicts where the distributions of scores are known."""

import numpy as np
import pytest
from scipy.special import ndtri

from sidepipe.memorization.verdict import FEWEST, probabilities, promised, share_of_hits, verdicts

NAMES = ("residual_60", "error_60")


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    """With thousands of candidates, the fit hardly depends on which of them are left out."""
    monkeypatch.setattr("sidepipe.memorization.verdict.PARTS", 20)


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
    # Isotonic regression has steps, so neighbors in the order are compared together. The rule has
    # the estimated share, whose own error is the next test's.
    by_rule = exact(scores, found.share)
    order = np.argsort(by_rule)
    expected, own = (some[order].reshape(20, -1).mean(1) for some in (by_rule, found.probability))
    # 200 candidates at a time: two standard errors of a share are 0.07, and as much is due to the
    # density of the candidates, which the increments of the curve follow.
    np.testing.assert_allclose(own, expected, atol=0.1)
    assert np.abs(own - expected).mean() < 0.03


@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_the_share_of_hits_of_the_candidates_is_estimated(share):
    shadow_hit, hit = hits(4000, 0.5, 0), hits(4000, share, 1)
    found = verdicts(drawn(hit, 2), drawn(shadow_hit, 3), shadow_hit)
    # Above the upper quartile of the hits lie a quarter of the hits, and hardly any other: two
    # standard errors of a count of 4000 over the difference of both shares.
    above = 0.25 * share
    error = 2 * (above * (1 - above) / 4000) ** 0.5 / 0.25
    assert found.share == pytest.approx(hit.mean(), abs=error)
    assert found.probability.sum() == pytest.approx(4000 * found.share, rel=0.03)
    # The precision that a list promises is the precision that it has, within three standard errors.
    listed = promised(found.probability, 0.9)
    assert listed.sum() > 10
    within = 3 * (0.9 * 0.1 / listed.sum()) ** 0.5 + error / share * 0.9
    assert hit[listed].mean() >= found.probability[listed].mean() - within


def test_a_promise_is_kept_where_the_others_score_lower_than_those_of_the_shadow():
    """The shadow's others are near copies of its training images in part; the model's are not."""
    shadow_hit, hit = hits(4000, 0.5, 0), hits(4000, 0.3, 1)
    near = hits(4000, 0.1, 5) & ~shadow_hit
    shadow = drawn(shadow_hit | near, 3)
    found = verdicts(drawn(hit, 2), shadow, shadow_hit)
    listed = promised(found.probability, 0.9)
    assert found.share < 0.3
    assert listed.sum() > 100
    assert hit[listed].mean() >= 0.9


@pytest.mark.parametrize("others", [0.0, 1.0])
def test_nothing_is_listed_where_no_candidate_is_a_hit(others):
    """The others may score as those of the shadow, or lower, by the shift of `others`."""
    shadow_hit = hits(2000, 0.5, 0)
    scores = {name: s * np.exp(others) for name, s in drawn(np.zeros(2000), 2).items()}
    found = verdicts(scores, drawn(shadow_hit, 3), shadow_hit)
    assert found.share < 0.01
    assert promised(found.probability, 0.9).sum() <= 2


def test_p_values_of_candidates_that_are_no_hits_are_uniform():
    shadow_hit = hits(4000, 0.5, 0)
    found = verdicts(drawn(np.zeros(2000), 2), drawn(shadow_hit, 3), shadow_hit)
    for level in (0.01, 0.05, 0.5):
        assert (found.p_value <= level).mean() == pytest.approx(level, abs=0.03)


def test_scores_that_tell_nothing_list_nothing():
    shadow_hit = hits(4000, 0.3, 0)
    found = verdicts(drawn(hits(500, 0.5, 1), 2, shift=0), drawn(shadow_hit, 3, 0), shadow_hit)
    assert found.share == 0
    assert not promised(found.probability, 0.5).any()


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


def test_the_share_is_that_of_exact_quantiles():
    grid = (np.arange(4000) + 0.5) / 4000
    kinds = {"hits": ndtri(grid) + 3, "others": ndtri(grid)}
    mixed = np.concatenate([kinds["hits"][::4], kinds["others"]])  # a fifth are hits
    share = share_of_hits(mixed, kinds["hits"], kinds["others"])
    assert share == pytest.approx(0.2, abs=1e-3)
    found = probabilities(mixed, kinds["hits"], share)
    assert found.sum() == pytest.approx(1000, rel=0.01)
    assert (np.diff(found[np.argsort(mixed)]) >= 0).all()


def test_lists_are_the_longest_with_the_promised_mean():
    probability = np.array([0.2, 0.99, 0.9, 0.8, 0.1])
    assert promised(probability, 0.9).tolist() == [False, True, True, False, False]
    assert promised(probability, 0.89).tolist() == [False, True, True, True, False]
    assert promised(probability, 0.1).all()
    assert not promised(probability, 0.999).any()
    assert promised(np.array([]), 0.9).tolist() == []
