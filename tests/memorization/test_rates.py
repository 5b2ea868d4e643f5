"""Shares and means with their intervals."""

import numpy as np
import pytest

from sidepipe.memorization.rates import mean, rate


def test_the_exact_interval_of_a_share_is_that_of_the_tables():
    # Clopper and Pearson, of 3 in 20 and of none in 10.
    found = rate(np.array([True] * 3 + [False] * 17))
    assert (found["count"], found["of"], found["share"]) == (3, 20, 0.15)
    np.testing.assert_allclose(found["interval"], [0.0321, 0.3789], atol=1e-4)
    np.testing.assert_allclose(rate(np.zeros(10, bool))["interval"], [0, 0.3085], atol=1e-4)


def test_the_interval_of_a_mean_is_about_two_errors_wide_and_skips_what_is_not_known():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = mean(np.append(values, np.nan))
    assert found["of"] == 400
    assert found["mean"] == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    np.testing.assert_allclose(
        found["interval"], values.mean() + error * np.array([-1, 1]), atol=0.03
    )


def test_of_nothing_there_is_neither_share_nor_mean():
    assert rate(np.empty(0, bool)) == {"count": 0, "of": 0, "share": None, "interval": None}
    assert mean(np.array([np.nan])) == {"of": 0, "mean": None, "interval": None}
