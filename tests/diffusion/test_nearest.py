import numpy as np
import pytest
import torch

from sidepipe.diffusion import guidance
from sidepipe.diffusion.guidance import Posterior, grad_of
from sidepipe.diffusion.nearest import NearestPosterior, cut_error

ALPHAS_CUMPROD = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
M = 300
# Labels of 10 to 90 images, and 20 images of none.
LABELS = torch.repeat_interleave(
    torch.tensor([2, 0, 1, 3, 4, -1]), torch.tensor([10, 30, 60, 90, 90, 20])
)
LABELS = LABELS[torch.randperm(M, generator=torch.Generator().manual_seed(0))]
IMAGES = (
    torch.rand(M, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
)
T = torch.tensor([0, 20, 150, 400, 700, 999])
Y = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.fixture
def x_t():
    eps = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alpha_bar = ALPHAS_CUMPROD[T].reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt() * IMAGES[:6] + (1 - alpha_bar).sqrt() * eps


def cut(neighbors):
    return NearestPosterior(IMAGES, LABELS, ALPHAS_CUMPROD, neighbors)


FULL = Posterior(IMAGES, LABELS, ALPHAS_CUMPROD)


def by_sorting(x, t, y, neighbors):
    """log p(y | x_t) and its gradient for one x_t, from sorted distances to every image."""
    alpha_bar = ALPHAS_CUMPROD[t]
    square = (x - alpha_bar.sqrt() * IMAGES).square().flatten(1).sum(1)
    log_sums, means = [], []
    for members in ((y == LABELS).nonzero()[:, 0], torch.arange(M)):
        best = members[square[members].argsort()[:neighbors]]
        w = -square[best] / (2 * (1 - alpha_bar))
        log_sums.append(w.logsumexp(0))
        means.append(torch.tensordot(w.softmax(0), IMAGES[best], 1))
    gradient = alpha_bar.sqrt() / (1 - alpha_bar) * (means[0] - means[1])
    return log_sums[0] - log_sums[1], gradient


@pytest.mark.parametrize("neighbors", [1, 7, 45])
@pytest.mark.parametrize("block", [guidance.BLOCK_ELEMENTS, 24 * 50, 24 * 6])
def test_the_cut_sums_are_over_the_nearest_of_the_label_and_of_all(
    x_t, neighbors, block, monkeypatch
):
    monkeypatch.setattr(guidance, "BLOCK_ELEMENTS", block)
    expected = [by_sorting(*row, neighbors) for row in zip(x_t, T, Y, strict=True)]
    log_prob, gradient = (torch.stack(part) for part in zip(*expected, strict=True))
    ours = cut(neighbors)
    torch.testing.assert_close(ours.log_prob(x_t, T, Y), log_prob, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.grad_log_prob(x_t, T, Y), gradient, rtol=1e-8, atol=1e-10)


def test_the_cut_gradient_is_autograd_s_of_the_cut_log_prob(x_t):
    ours = cut(7)
    expected = grad_of(ours.log_prob)(x_t, T, Y)
    torch.testing.assert_close(ours.grad_log_prob(x_t, T, Y), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("neighbors", [M, M + 1])
def test_without_anything_to_cut_it_is_the_full_posterior(x_t, neighbors):
    ours = cut(neighbors)
    torch.testing.assert_close(ours.log_prob(x_t, T, Y), FULL.log_prob(x_t, T, Y))
    gradient = FULL.grad_log_prob(x_t, T, Y)
    torch.testing.assert_close(ours.grad_log_prob(x_t, T, Y), gradient, rtol=1e-9, atol=1e-10)


def test_a_label_that_no_image_has_is_impossible(x_t):
    assert cut(5).log_prob(x_t, T, torch.full((6,), 7)).tolist() == [-torch.inf] * 6


def test_a_sampler_s_autocast_does_not_choose_other_neighbors():
    """Images a thousandth apart, which bf16 cannot tell from one another."""
    base = torch.rand(1, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    images = base + 1e-3 * torch.randn(50, 64, generator=torch.Generator().manual_seed(4))
    ours = NearestPosterior(images, torch.arange(50) % 2, ALPHAS_CUMPROD.float(), 1)
    t, y = torch.zeros(8, dtype=torch.int64), torch.arange(8) % 2
    plain = ours.grad_log_prob(images[10:18], t, 1 - y)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.grad_log_prob(images[10:18], t, 1 - y).equal(plain)
    assert plain.abs().max() > 0


def test_the_error_is_that_of_the_gradient_over_samples_of_the_noised_images():
    steps, rng = [900, 600, 350], torch.Generator().manual_seed(6)
    rows = cut_error(cut(20), FULL, steps, np.random.default_rng(5), num_samples=2000)
    assert [row["t"] for row in rows] == steps
    for row in rows:
        x_0 = IMAGES[torch.randint(0, M, (2000,), generator=rng)]
        y = LABELS[LABELS >= 0][torch.randint(0, 280, (2000,), generator=rng)]
        t, alpha_bar = torch.full((2000,), row["t"]), ALPHAS_CUMPROD[row["t"]]
        eps = torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
        full = FULL.grad_log_prob(x_t, t, y)
        difference = cut(20).grad_log_prob(x_t, t, y) - full
        expected = (difference.square().sum() / full.square().sum()).sqrt()
        assert row["relative_error"] == pytest.approx(float(expected), rel=0.15)


def test_the_error_falls_with_noise_and_with_neighbors_to_nothing():
    errors = {
        k: [
            r["relative_error"]
            for r in cut_error(cut(k), FULL, [999, 400, 20], np.random.default_rng(0))
        ]
        for k in (10, 100, M)
    }
    assert errors[10][0] > 1 > 0.01 > errors[10][2]
    assert errors[10] == sorted(errors[10], reverse=True)
    assert errors[10][0] > errors[100][0] > 0.1
    assert max(errors[M]) < 1e-6
