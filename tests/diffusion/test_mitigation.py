"""Changes of training, against brute force, their limits and the known minimum of their loss."""

import pytest
import torch

from sidepipe.diffusion.mitigation import ambient, noise_weights, shifted
from sidepipe.diffusion.schedule import add_noise

ALPHAS = torch.linspace(0.99, 0.01, 50)


def test_an_image_moves_by_whole_pixels_and_its_edge_is_repeated():
    x = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 2, 3, 4).repeat(3, 1, 1, 1)
    moved = shifted(x, torch.tensor([0, 1, -2]), torch.tensor([0, -1, 2]))
    assert moved[0].equal(x[0])
    for k, (down, right) in enumerate(((1, -1), (-2, 2)), start=1):
        for i in range(3):
            for j in range(4):
                source = x[k, :, min(max(i - down, 0), 2), min(max(j - right, 0), 3)]
                assert moved[k, :, i, j].equal(source)


def test_only_the_loss_at_medium_noise_weighs_less():
    weights = noise_weights(torch.tensor([9, 10, 15, 20, 21]), t_min=10, t_max=20, weight=0.25)
    assert weights.tolist() == [1, 0.25, 0.25, 0.25, 1]


def batch(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 1, 2, 2, generator=generator) for _ in range(3)]


def test_at_little_noise_ambient_training_is_training():
    x_0, fixed, eps = batch()
    t = torch.tensor([0, 5, 10, 20])
    x_t, factor = ambient(x_0, fixed, eps, t, 20, ALPHAS)
    assert x_t.equal(add_noise(x_0, eps, t, ALPHAS))
    assert (factor == 1).all()


def test_at_more_noise_x_t_depends_on_the_noisy_image_alone():
    """Two images with the same noisy version give the same x_t."""
    x_0, fixed, eps = batch(n=1)
    ab = ALPHAS[20]
    other = x_0 + 0.3
    same = fixed - ab.sqrt() * 0.3 / (1 - ab).sqrt()
    t = torch.tensor([40])
    one, _ = ambient(x_0, fixed, eps, t, 20, ALPHAS)
    two, _ = ambient(other, same, eps, t, 20, ALPHAS)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("t", [21, 35, 49])
def test_x_t_has_the_usual_distribution_and_the_best_eps_is_the_usual_one(t):
    """For images from N(0, 4) the best eps is sqrt(1 - ab) x_t / (4 ab + 1 - ab)."""
    generator = torch.Generator().manual_seed(1)
    x_0, fixed, eps = (torch.randn(400_000, 1, generator=generator) for _ in range(3))
    x_t, factor = ambient(2 * x_0, fixed, eps, torch.full((400_000,), t), 20, ALPHAS)
    ab = ALPHAS[t]
    variance = 4 * ab + 1 - ab
    assert x_t.var() == pytest.approx(float(variance), rel=0.01)
    # Least squares of eps on factor * x_t.
    best = (eps * factor * x_t).mean() / (factor * x_t).square().mean()
    assert best == pytest.approx(float((1 - ab).sqrt() / variance), rel=0.05)
