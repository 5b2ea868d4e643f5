"""Images of a known distribution: their statistics, and settings that would clip them."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from sidepipe.stages.data.mixtures import Mixtures

SETTINGS = {
    "num_images": 6000,
    "components": 3,
    "size": 4,
    "deviation": 0.1,
    "spread": 0.15,
    "slope": 1.0,
    "seed": 0,
}


def images(source):
    read = np.stack([np.asarray(entry.read()) for entry in source.entries()])
    return (read / 127.5 - 1).reshape(len(read), -1)


def test_images_have_the_mean_and_the_covariance_of_their_component():
    source = Mixtures(**SETTINGS)
    found, mixture = images(source), source.mixture()
    identities = np.array([int(entry.identity) for entry in source.entries()])
    covariance = (mixture.basis @ mixture.variances.diag() @ mixture.basis.T).numpy()
    for component in range(3):
        own = found[identities == component]
        assert len(own) == pytest.approx(2000, abs=150)
        np.testing.assert_allclose(own.mean(0), mixture.means[component], atol=0.015)
        np.testing.assert_allclose(np.cov(own.T), covariance, atol=0.0015)


def test_the_spectrum_falls_and_its_mean_variance_is_the_pixels():
    variances = Mixtures(**SETTINGS).mixture().variances
    assert variances.mean().item() == pytest.approx(0.1**2)
    assert variances[0] == variances.max()
    white = Mixtures(**SETTINGS | {"slope": 0.0}).mixture()
    assert (white.basis @ white.basis.T - torch.eye(16)).abs().max() < 1e-12
    torch.testing.assert_close(white.variances, torch.full((16,), 0.1**2).double())


def test_equal_settings_give_equal_images_and_another_seed_others():
    first, again = (images(Mixtures(**SETTINGS | {"num_images": 5})) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, images(Mixtures(**SETTINGS | {"num_images": 5, "seed": 1})))
    longer = images(Mixtures(**SETTINGS | {"num_images": 5}))
    np.testing.assert_array_equal(first, longer)
    assert asdict(Mixtures(**SETTINGS)) == SETTINGS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 0}, "data.source.num_images must be >= 1, got 0"),
        ({"components": 0}, "data.source.components must be >= 1, got 0"),
        ({"deviation": 0.0}, "data.source.deviation and spread must be"),
        ({"spread": -0.1}, "data.source.deviation and spread must be"),
        ({"spread": 0.18}, "<= 0.2, or images are clipped, got (0.1, 0.18)"),
    ],
)
def test_settings_that_give_no_such_images_are_refused(changes, message):
    with pytest.raises(ValueError, match="must be") as error:
        Mixtures(**SETTINGS | changes)
    assert message in str(error.value)
