"""Dataset inference where it is known whether the suspects differ from the control."""

import json

import numpy as np
import pytest
from scipy.stats import kstest, ttest_ind

from sidepipe.memorization.inference import FEWEST, dataset_inference, welch


def drawn(rng, count, shift=0.0):
    """One feature that training shifts, and two of noise, one of them of another scale."""
    noise = {"noise": rng.normal(size=count), "large": 1e3 * rng.normal(size=count)}
    return {"error": rng.normal(size=count) + shift, **noise}


def test_the_p_value_of_a_set_that_was_not_used_is_uniform():
    rng = np.random.default_rng(0)
    found = [
        dataset_inference(drawn(rng, 40), drawn(rng, 60), seed)["p_value"] for seed in range(60)
    ]
    assert kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) < 0.05) < 0.12


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_a_set_that_was_used_is_found_whatever_the_sign_of_its_features(shift):
    rng = np.random.default_rng(1)
    found = dataset_inference(drawn(rng, 200, shift), drawn(rng, 200))
    assert found["p_value"] < 1e-6
    assert (found["num_suspects"], found["num_control"]) == (100, 100)
    power = [row["power"] for row in found["power"]]
    assert [row["size"] for row in found["power"]] == [5, 10, 20, 50, 100]
    assert power[0] < 0.5
    assert power[-1] == 1
    assert json.loads(json.dumps(found)) == found


def test_welch_is_that_of_scipy():
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=7), 3 * rng.normal(size=19) + 1
    for pair in ((one, other), (other, one)):
        found = ttest_ind(*pair, equal_var=False, alternative="greater")
        assert welch(*pair) == pytest.approx((found.statistic, found.pvalue))
    assert welch(np.ones(5), np.ones(6)) == (0, 0.5)
    assert welch(np.ones(5), np.zeros(6)) == (np.inf, 0)


def test_few_images_and_other_features_are_refused():
    rng = np.random.default_rng(3)
    with pytest.raises(ValueError, match="suspects must be >= 10 images, got 9"):
        dataset_inference(drawn(rng, FEWEST - 1), drawn(rng, 20))
    with pytest.raises(ValueError, match="control must be features"):
        dataset_inference(drawn(rng, 20), {"error": np.zeros(20)})
