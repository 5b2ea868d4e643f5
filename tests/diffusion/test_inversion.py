"""InvMM where the model is known: one image, several, and a distribution without images."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sidepipe.diffusion.inversion import CHECK_EVERY, divergence_from_normal, inversion_measure

ALPHAS = torch.linspace(0.999, 1e-3, 50)
IMAGES = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def measured(pred_x_0_fn, given_back, x_0, steps=2000):
    noise = torch.Generator().manual_seed(1)
    return inversion_measure(
        pred_x_0_fn,
        given_back,
        x_0,
        ALPHAS,
        lambda: torch.randn(x_0.shape, generator=noise),
        torch.Generator().manual_seed(2),
        steps,
    )


def mixture(images):
    """The optimal prediction for a model that has memorized `images`."""

    def pred_x_0(x_t, t):
        gap = x_t[:, None] - ALPHAS[t] ** 0.5 * images[None]
        weight = (-gap.flatten(2).square().sum(2) / (2 * (1 - ALPHAS[t]))).softmax(1)
        return torch.einsum("nk,kchw->nchw", weight, images)

    return pred_x_0


def sampled(pred_x_0_fn, x_0):
    """Whether DDIM over ten timesteps gives the image back."""

    def given_back(noise):
        x = noise
        timesteps = list(range(49, -1, -5))
        for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
            pred = pred_x_0_fn(x, t)
            eps = (x - ALPHAS[t] ** 0.5 * pred) / (1 - ALPHAS[t]) ** 0.5
            ab = 1.0 if after is None else float(ALPHAS[after])
            x = ab**0.5 * pred + (1 - ab) ** 0.5 * eps
        return (x - x_0).square().flatten(1).mean(1).sqrt() < 0.05

    return given_back


def test_the_only_image_of_a_model_comes_back_from_ordinary_noise():
    model = mixture(IMAGES[:1])
    found = measured(model, sampled(model, IMAGES[:1]), IMAGES[:1])
    # At the first attempt, while the noise has hardly moved.
    assert 0 <= found[0] < 0.02


def test_memorized_images_are_found_and_others_never():
    model = mixture(IMAGES[:3])
    found = measured(model, sampled(model, IMAGES), IMAGES, steps=400)
    assert torch.isfinite(found[:3]).all()
    assert (found[:3] > 0).all()
    assert torch.isinf(found[3])


def test_a_normal_population_gives_no_image_back():
    """x_0 ~ N(0, I): every noise is some image, so only noise without spread would be one."""
    model = lambda x_t, t: ALPHAS[t] ** 0.5 * x_t  # noqa: E731
    found = measured(model, sampled(model, IMAGES), IMAGES, steps=200)
    assert torch.isinf(found).all()


def test_an_attempt_needs_all_draws_and_its_divergence_is_kept():
    calls = []

    def given_back(noise):
        calls.append(noise)
        # The first attempt fails at its last draw; the second one succeeds.
        return torch.full((len(noise),), len(calls) != 8)

    found = measured(mixture(IMAGES), given_back, IMAGES[:1])
    assert len(calls) == 16
    later = measured(mixture(IMAGES), given_back, IMAGES[:1], steps=2 * CHECK_EVERY)
    assert torch.isfinite(found).all()
    assert torch.isfinite(later).all()


def test_the_divergence_is_that_of_torch():
    mean, log_sigma = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3))
    exact = kl_divergence(Normal(mean, log_sigma.exp()), Normal(0.0, 1.0)).mean(1)
    assert divergence_from_normal(mean, log_sigma).tolist() == pytest.approx(exact.tolist())
