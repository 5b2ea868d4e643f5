import math

import numpy as np
import pytest
import torch

from sidepipe.diffusion.refine import seek_mode

ALPHAS_CUMPROD = torch.linspace(0.99, 0.3, 10)
TRAINING = torch.tensor([[0.9, -0.8, 0.1], [-0.7, 0.2, 0.6], [-0.6, 0.3, 0.5]])


def memorizing_eps_fn(training):
    """eps of a model that knows exactly these images: what E[s | x_t] leaves of x_t."""

    def eps_fn(x_t, t):
        alpha_bar = float(ALPHAS_CUMPROD[t])
        squares = (x_t[:, None] - alpha_bar**0.5 * training).square().sum(-1)
        weights = (-squares / (2 * (1 - alpha_bar))).softmax(1)
        return (x_t - alpha_bar**0.5 * weights @ training) / (1 - alpha_bar) ** 0.5

    return eps_fn


def test_one_step_is_a_mean_shift_on_what_the_model_has_memorized():
    x_0, t = torch.tensor([[0.3, -0.2, 0.4], [-0.5, 0.1, 0.9]]), 4
    alpha_bar = float(ALPHAS_CUMPROD[t])
    bandwidth = (1 - alpha_bar) / alpha_bar  # of a Gaussian kernel around each training image
    expected = []
    for x in x_0.tolist():
        kernel = [
            math.exp(-sum((a - b) ** 2 for a, b in zip(x, s, strict=True)) / (2 * bandwidth))
            for s in TRAINING.tolist()
        ]
        expected.append(np.average(TRAINING.numpy(), axis=0, weights=kernel))
    moved = seek_mode(memorizing_eps_fn(TRAINING), x_0, t, 1, ALPHAS_CUMPROD)
    np.testing.assert_allclose(moved.numpy(), np.stack(expected), rtol=1e-5)


def test_many_steps_end_at_the_memorized_image_that_is_near():
    far_apart = TRAINING[:2]
    start = far_apart.repeat(3, 1) + 0.15 * torch.randn(6, 3, generator=torch.manual_seed(0))
    moved = seek_mode(memorizing_eps_fn(far_apart), start, 0, 20, ALPHAS_CUMPROD)
    torch.testing.assert_close(moved, far_apart.repeat(3, 1), atol=1e-5, rtol=0)


def test_at_too_much_noise_images_that_are_alike_merge():
    moved = seek_mode(memorizing_eps_fn(TRAINING), TRAINING[1:], 5, 50, ALPHAS_CUMPROD)
    assert torch.dist(moved[0], moved[1]) < 1e-3 < torch.dist(TRAINING[1], TRAINING[2])


@pytest.mark.parametrize(("t", "num_steps"), [(2, 1), (7, 3)])
def test_a_model_of_a_gaussian_moves_images_toward_its_mean_alone(t, num_steps):
    mean, variance, alpha_bar = 0.4, 0.25, float(ALPHAS_CUMPROD[t])

    def eps_fn(x_t, t):
        spread = alpha_bar * variance + 1 - alpha_bar
        return (1 - alpha_bar) ** 0.5 * (x_t - alpha_bar**0.5 * mean) / spread

    x_0 = torch.tensor([[-0.9, 0.2], [0.8, 0.5]])
    factor = alpha_bar * variance / (alpha_bar * variance + 1 - alpha_bar)
    moved = seek_mode(eps_fn, x_0, t, num_steps, ALPHAS_CUMPROD)
    torch.testing.assert_close(moved, mean + factor**num_steps * (x_0 - mean))


def test_no_steps_leave_images_as_they_are():
    x_0 = torch.randn(2, 3, generator=torch.manual_seed(1))
    assert seek_mode(memorizing_eps_fn(TRAINING), x_0, 3, 0, ALPHAS_CUMPROD) is x_0


def test_with_noise_each_step_denoises_a_noised_image():
    draws, x_0, t = [torch.tensor([[0.5, -1.0, 0.2]]), torch.tensor([[-0.3, 0.8, 1.1]])], 0.2, 4
    eps_fn, alpha_bar = memorizing_eps_fn(TRAINING), float(ALPHAS_CUMPROD[t])
    start = torch.full((1, 3), x_0)
    moved = seek_mode(eps_fn, start, t, 2, ALPHAS_CUMPROD, 0.5, iter(draws).__next__)
    expected = start
    for eps in draws:
        x_t = alpha_bar**0.5 * expected + 0.5 * (1 - alpha_bar) ** 0.5 * eps
        expected = (x_t - (1 - alpha_bar) ** 0.5 * eps_fn(x_t, t)) / alpha_bar**0.5
    torch.testing.assert_close(moved, expected)
