"""The score divergence where the score is known."""

import numpy as np
import pytest
import torch
from tests.memory import ALPHAS, Memory

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.score_divergence import score_divergence
from sidepipe.models.divergence import image_divergences

CLEAN = torch.ones(1)  # alphas_cumprod whose signal is the image itself


def noise(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def toward(mean):
    """eps of a normal distribution around `mean`, up to a factor that a cosine does not have."""
    return lambda x_t, t: x_t - mean


@pytest.mark.parametrize("offset", [0.0, 0.05, 0.1, 0.4, 3.0])
def test_it_is_the_flux_of_a_point_s_pull_through_a_sphere(offset):
    """In 3 dimensions by the divergence -2 / r of -x / r, whose mean in a ball is known.

    It is the potential of a uniform ball at the distance `offset` from its center.
    """
    count, radius = 20_000, 0.1 * 3**0.5
    x = torch.zeros(count, 3)
    x[:, 0] = offset
    found = score_divergence(toward(torch.zeros(3)), x, 0, CLEAN, 4, noise((count, 3))).mean()
    inside = -(1 - offset**2 / (3 * radius**2))
    exact = inside if offset <= radius else -2 * radius / (3 * offset)
    assert found == pytest.approx(exact, abs=0.01)


def test_it_is_one_where_the_scores_point_away_and_zero_where_they_are_parallel():
    x, shape = torch.zeros(3, 1, 4, 4), (3, 1, 4, 4)
    away = score_divergence(lambda x, t: -x, x, 0, CLEAN, 3, noise(shape))
    torch.testing.assert_close(away, torch.ones(3))
    parallel = score_divergence(lambda x, t: torch.ones_like(x), x, 0, CLEAN, 400, noise(shape))
    assert parallel.abs().max() < 0.05


def test_it_evaluates_the_network_once_per_probe_on_the_sphere_around_the_noised_scale():
    seen = []

    def eps_fn(x, t):
        seen.append(x)
        assert t == 1
        return x

    x = torch.full((3, 1, 4, 4), 2.0)
    score_divergence(eps_fn, x, 1, torch.tensor([1.0, 0.25]), 6, noise(x.shape))
    assert len(seen) == 6
    for y in seen:
        # sqrt(0.25) of the image, and 0.1 sqrt(16) from there
        assert (y - 1).flatten(1).norm(dim=1) == pytest.approx(torch.full((3,), 0.4), rel=1e-5)


def test_memorized_images_of_a_model_in_closed_form_have_the_lowest_divergence():
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 1)).astype(np.uint8)
    model = Denoiser(Memory(images[:4]), ALPHAS, "sample", (1, 6, 6))
    settings = {"t": 10, "probes": 16, "seed": 0}
    found = image_divergences(model, images, first=0, **settings)
    assert found[:4] == pytest.approx(-1, abs=1e-3)
    # Elsewhere all scores point to a memorized image far away.
    assert found[4:].min() > -0.3
    again = image_divergences(model, images[3:], first=3, **settings)
    np.testing.assert_allclose(again, found[3:], atol=1e-6)
