"""Responses of maps whose Jacobian is known."""

import numpy as np
import pytest
import torch

from sidepipe.diffusion.fixed_points import (
    LENGTH,
    POWER_STEPS,
    PROBES,
    denoising_error,
    responses,
    rms,
)
from sidepipe.diffusion.noise import image_noise

SHAPE = (1, 4, 4)


def noise(count, first=0):
    return image_noise(0, "verdict", range(first, first + count), SHAPE)


def images(count):
    return torch.from_numpy(np.random.default_rng(1).normal(size=(count, *SHAPE))).float()


def linear(matrix):
    """x -> matrix x + 0.1, for flattened images."""

    def step(x):
        return (x.flatten(1) @ matrix.T).reshape(x.shape) + 0.1

    return step


def test_a_uniform_contraction_has_its_factor_as_both_gains():
    x = images(3)
    found = responses(linear(0.3 * torch.eye(16)), x, noise(3))
    for name in ("mean_gain", "top_gain"):
        torch.testing.assert_close(found[name], torch.full((3,), 0.3), rtol=1e-4, atol=0)
    torch.testing.assert_close(found["residual"], rms(0.3 * x + 0.1 - x))


def test_the_top_gain_is_the_largest_singular_value_of_a_symmetric_map():
    values = torch.tensor([0.9, 0.2, *[0.1] * 14])
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(16, 16))).float())
    found = responses(linear(turn[0] * values @ turn[0].T), images(5), noise(5))
    torch.testing.assert_close(found["top_gain"], torch.full((5,), 0.9), rtol=1e-3, atol=0)
    # Sign vectors are isotropic: the mean square response is the mean of squared singular values.
    expected = float(values.square().mean().sqrt())
    assert float(found["mean_gain"].square().mean().sqrt()) == pytest.approx(expected, rel=0.2)


def test_a_constant_map_has_no_gain():
    found = responses(lambda x: torch.zeros_like(x), images(2), noise(2))
    assert found["mean_gain"].tolist() == found["top_gain"].tolist() == [0, 0]


def test_an_image_has_the_same_scores_in_any_batch():
    step = linear(torch.diag(torch.linspace(0, 1, 16)))
    together = responses(step, images(4), noise(4))
    alone = responses(step, images(4)[3:], noise(1, first=3))
    for name, values in together.items():
        torch.testing.assert_close(values[3:], alone[name], rtol=1e-4, atol=1e-6)


def test_the_map_is_called_as_often_as_evaluations_says():
    calls = []

    def step(x):
        calls.append(len(x))
        return 0.5 * x

    responses(step, images(2), noise(2))
    assert calls == [2] * (1 + PROBES + POWER_STEPS)
    assert LENGTH < 0.1


def test_the_denoising_error_is_the_mean_over_draws():
    x, drawn = images(3), []

    def step(x, noise):
        drawn.append(noise)
        return x + noise

    found = denoising_error(step, x, noise(3), draws=4)
    torch.testing.assert_close(found, torch.stack([rms(some) for some in drawn]).mean(0))
    assert len({some.sum().item() for some in drawn}) == 4
