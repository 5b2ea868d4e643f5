"""Mixtures against automatic differentiation, samples, and normal distributions of torch."""

import numpy as np
import pytest
import torch

from sidepipe.diffusion.mixtures import Mixture

ALPHAS = torch.tensor([0.999, 0.5, 0.01], dtype=torch.float64)


def mixture(seed=0, n=5, d=6, turned=True):
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(n, d, generator=draw, dtype=torch.float64)
    variances = torch.rand(d, generator=draw, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64))[0]
    return Mixture(means, variances, basis if turned else None)


def covariance(of):
    basis = torch.eye(len(of.variances), dtype=torch.float64) if of.basis is None else of.basis
    return basis @ of.variances.diag() @ basis.T


@pytest.mark.parametrize("turned", [True, False])
def test_the_density_is_the_mean_of_normal_densities(turned):
    of, x = mixture(turned=turned), torch.randn(3, 6, dtype=torch.float64)
    for alpha_bar in ALPHAS:
        total = alpha_bar * covariance(of) + (1 - alpha_bar) * torch.eye(6)
        normals = [
            torch.distributions.MultivariateNormal(alpha_bar.sqrt() * mean, total).log_prob(x)
            for mean in of.means
        ]
        expected = torch.stack(normals).logsumexp(0) - np.log(5)
        torch.testing.assert_close(of.log_density(x, alpha_bar.repeat(3)), expected)


@pytest.mark.parametrize("turned", [True, False])
def test_eps_is_the_score_of_the_density(turned):
    """Tweedie: eps = -sqrt(1 - ab) grad log p_t."""
    of = mixture(turned=turned)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    of.log_density(x, ALPHAS).sum().backward()
    expected = -(1 - ALPHAS).sqrt()[:, None] * x.grad
    torch.testing.assert_close(of.eps(x.detach(), ALPHAS), expected)


def test_the_eps_of_a_point_leads_to_it():
    of = Mixture(torch.ones(1, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    x_t = torch.randn(3, 4, dtype=torch.float64)
    signal, noise = ALPHAS.sqrt()[:, None], (1 - ALPHAS).sqrt()[:, None]
    x_0 = (x_t - noise * of.eps(x_t, ALPHAS)) / signal
    torch.testing.assert_close(x_0, torch.ones_like(x_0))


def test_a_repeated_mean_weighs_as_often_as_it_is_there():
    two = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    of = Mixture(two[[0, 0, 0, 1]], torch.zeros(1, dtype=torch.float64))
    middle, alpha_bar = torch.zeros(1, 1, dtype=torch.float64), ALPHAS[1:2]
    x_0 = -(1 - alpha_bar).sqrt() * of.eps(middle, alpha_bar) / alpha_bar.sqrt()
    assert x_0.item() == pytest.approx(-0.5)


def test_weights_do_not_underflow_where_noise_is_small():
    of = Mixture(torch.eye(64, dtype=torch.float64) * 2 - 1, torch.zeros(64, dtype=torch.float64))
    alpha_bar = torch.full((64,), 1 - 1e-5, dtype=torch.float64)
    x_t = alpha_bar[:, None].sqrt() * of.means
    torch.testing.assert_close(of.eps(x_t, alpha_bar), torch.zeros(64, 64, dtype=torch.float64))


def test_samples_have_the_mean_and_the_covariance_of_the_mixture():
    of = mixture()
    samples = of.sample(200_000, torch.Generator().manual_seed(1))
    centered = of.means - of.means.mean(0)
    expected = covariance(of) + centered.T @ centered / len(of.means)
    assert (samples.mean(0) - of.means.mean(0)).abs().max() < 0.015
    assert (samples.T.cov() - expected).abs().max() < 0.03


def test_the_square_distance_is_the_integral():
    """On a fine grid of the plane."""
    p, q = mixture(n=3, d=2), mixture(seed=1, n=2, d=2, turned=False)
    line = torch.linspace(-9, 9, 601, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    whole = torch.ones(len(points), dtype=torch.float64)
    difference = p.log_density(points, whole).exp() - q.log_density(points, whole).exp()
    expected = difference.square().sum() * (line[1] - line[0]) ** 2
    assert p.square_distance(q) == pytest.approx(float(expected), rel=1e-6)
    assert p.square_distance(q) == pytest.approx(q.square_distance(p))
    assert p.square_distance(p) == pytest.approx(0, abs=1e-12)
