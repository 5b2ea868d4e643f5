"""The noise at which two memorized images merge, against its closed forms."""

import math

import pytest
import torch

from sidepipe.diffusion.cycles import cyclic, fixed_point
from sidepipe.diffusion.mixtures import Mixture
from sidepipe.diffusion.refine import iterates
from sidepipe.memorization.levels import returning

DISTANCE = 1.6
PAIR = torch.tensor([[-DISTANCE / 2], [DISTANCE / 2]], dtype=torch.float64)


def alphas_for(noise_to_signal, steps=100):
    """A schedule that ends at this noise, with levels evenly spaced on a log scale below it."""
    ratios = torch.logspace(-4, math.log10(noise_to_signal), steps, dtype=torch.float64)
    return 1 / (1 + ratios)


def eps_fn_of(alphas):
    return lambda x_t, t: Mixture(PAIR, torch.zeros(1)).eps(x_t, alphas[t].expand(len(x_t)))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_refinement_keeps_two_images_apart_below_a_quarter_of_their_squared_distance(share):
    alphas = alphas_for(share * DISTANCE**2 / 4)
    end = list(iterates(eps_fn_of(alphas), PAIR, fixed_point(99, 800), alphas))[-1]
    # The mean shift of a pair is x <- (d / 2) tanh(d x / (2 q)); q = share * d^2 / 4.
    x = float(end[1]) / (DISTANCE / 2)
    assert x == pytest.approx(math.tanh(x / share), abs=1e-9)
    assert float(end[1]) == -float(end[0]) > 0.1


@pytest.mark.parametrize("share", [1.02, 1.5, 4.0])
def test_refinement_merges_them_above_it(share):
    alphas = alphas_for(share * DISTANCE**2 / 4)
    end = list(iterates(eps_fn_of(alphas), PAIR, fixed_point(99, 800), alphas))[-1]
    assert end.abs().max() < 1e-6


@pytest.mark.parametrize("noise_to_signal", [0.1, 0.3, 1.0])
def test_a_cycle_returns_an_image_with_its_posterior_probability_and_the_bound_is_below(
    noise_to_signal,
):
    alphas, starts = alphas_for(noise_to_signal, 400), PAIR.repeat(4000, 1)
    draw = torch.Generator().manual_seed(0)

    def noise_fn():
        return torch.randn(starts.shape, generator=draw, dtype=torch.float64)

    cycle = cyclic(399, 1, noise=1.0, denoising_steps=399, eta=1.0)
    end = list(iterates(eps_fn_of(alphas), starts, cycle, alphas, noise_fn))[-1]
    share = float((end.sign() == starts.sign()).double().mean())
    # x_t / sqrt(ab) = x_i + sqrt(q) eps has the log odds d (d / 2 + sqrt(q) eps) / q for x_i.
    eps = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    odds = DISTANCE * (DISTANCE / 2 + noise_to_signal**0.5 * eps) / noise_to_signal
    density = (-eps.square() / 2).exp()
    exact = float((odds.sigmoid() * density).sum() / density.sum())
    deviation = math.sqrt(exact * (1 - exact) / len(starts))
    assert share == pytest.approx(exact, abs=4 * deviation + 0.003)  # 400 steps are not infinite
    assert float(returning(PAIR.numpy(), noise_to_signal).max()) <= exact
