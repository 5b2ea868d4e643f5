import math

import numpy as np
import pytest
import torch

from sidepipe.diffusion.cycles import Cycle, annealed, cyclic, fixed_point
from sidepipe.diffusion.refine import iterates, seek_mode, settled
from sidepipe.diffusion.sampler import ddim

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


@pytest.mark.parametrize("relaxation", [1.0, 1.5, 1.9])
def test_relaxed_steps_toward_a_mean_shrink_by_their_own_factor(relaxation):
    """x - mean shrinks by f in a step, and by 1 - r (1 - f) in a step that is r times as long."""
    mean, variance, t = 0.4, 0.25, 7
    alpha_bar = float(ALPHAS_CUMPROD[t])
    spread = alpha_bar * variance + 1 - alpha_bar
    x_0 = torch.tensor([[-0.9, 0.2], [0.8, 0.5]])

    def eps_fn(x_t, t):
        return (1 - alpha_bar) ** 0.5 * (x_t - alpha_bar**0.5 * mean) / spread

    found = iterates(eps_fn, x_0, fixed_point(t, 4, relaxation), ALPHAS_CUMPROD)
    step = alpha_bar * variance / spread
    relaxed = 1 - relaxation * (1 - step)
    for number, x in enumerate(found):
        torch.testing.assert_close(x, mean + step * relaxed**number * (x_0 - mean))


def test_relaxed_steps_arrive_sooner_at_the_same_memorized_images():
    eps_fn, t = memorizing_eps_fn(TRAINING[:2]), 4
    start = TRAINING[:2] * 0.53 + TRAINING[:2].flip(0) * 0.47

    def chain(relaxation):
        return torch.stack(
            [*iterates(eps_fn, start, fixed_point(t, 30, relaxation), ALPHAS_CUMPROD)]
        )

    plain, relaxed = chain(1.0), chain(1.6)
    torch.testing.assert_close(relaxed[-1], plain[-1], atol=1e-4, rtol=0)
    assert (plain[-1] - TRAINING[:2]).norm(dim=1).max() < 0.05
    arrived = [((x - plain[-1]).norm(dim=2).amax(1) < 0.1).tolist() for x in (plain, relaxed)]
    assert arrived[1].index(True) < arrived[0].index(True)


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


def test_a_cycle_of_several_steps_is_noise_and_then_a_sampler():
    eps_fn, x_0, ab = memorizing_eps_fn(TRAINING), torch.tensor([[0.3, -0.2, 0.4]]), ALPHAS_CUMPROD
    noise = [torch.randn(1, 3, generator=torch.manual_seed(i)) for i in range(4)]
    cycle = Cycle(8, noise=0.7, denoising_steps=4, eta=1.0)
    assert cycle.timesteps == [8, 6, 4, 2]
    (found,) = iterates(eps_fn, x_0, [cycle], ab, iter(noise).__next__)
    x_t = ab[8] ** 0.5 * x_0 + 0.7 * (1 - ab[8]) ** 0.5 * noise[0]
    expected = ddim(eps_fn, x_t, [8, 6, 4, 2], ab, 1.0, iter(noise[1:]).__next__)
    torch.testing.assert_close(found, expected)


def test_a_cycle_of_every_timestep_evaluates_each_once():
    assert Cycle(5, denoising_steps=5).timesteps == [5, 4, 3, 2, 1]
    assert Cycle(7, denoising_steps=3).timesteps == [7, 5, 3]


def test_full_cycles_draw_from_the_posterior_of_the_exact_model():
    """From level t the exact model of two points returns each with its posterior probability."""
    points, t = torch.tensor([[-0.5], [0.5]]), 9
    eps_fn, rng = memorizing_eps_fn(points), torch.manual_seed(0)
    x_0 = points[:1].repeat(4000, 1)
    cycles = cyclic(t, 1, 1.0, 9, 1.0)
    (found,) = iterates(
        eps_fn, x_0, cycles, ALPHAS_CUMPROD, lambda: torch.randn(4000, 1, generator=rng)
    )
    alpha_bar = float(ALPHAS_CUMPROD[t])
    x_t = alpha_bar**0.5 * -0.5 + (1 - alpha_bar) ** 0.5 * torch.randn(200_000, generator=rng)
    chance = torch.sigmoid(2 * alpha_bar**0.5 * x_t * 0.5 / (1 - alpha_bar)).mean()
    assert float((found > 0).float().mean()) == pytest.approx(float(chance), abs=0.03)


def test_annealing_takes_each_level_once_and_keeps_images_apart_at_the_last():
    assert [cycle.t for cycle in annealed([7, 4, 1])] == [7, 4, 1]
    close = torch.tensor([[-0.7, 0.2, 0.6], [-0.4, 0.5, 0.3]])
    eps_fn, start = memorizing_eps_fn(close), close + 0.01
    merged = [*iterates(eps_fn, start, annealed([6] * 60), ALPHAS_CUMPROD)][-1]
    kept = [*iterates(eps_fn, start, annealed([6, 0, 0, 0, 0]), ALPHAS_CUMPROD)][-1]
    assert torch.dist(merged[0], merged[1]) < 1e-3
    torch.testing.assert_close(kept, close, atol=1e-3, rtol=0)


def test_noise_without_a_source_of_it_is_an_error():
    with pytest.raises(ValueError, match=r"noise_fn is needed when noise > 0, got noise = 0\.5"):
        next(iterates(memorizing_eps_fn(TRAINING), TRAINING, [Cycle(3, 0.5)], ALPHAS_CUMPROD))


def walk(positions):
    """A step through the given positions of each image, which counts the images that it moves."""
    moved = []

    def step(x_0, rows):
        moved.append(rows.tolist())
        k = len(moved)
        return torch.tensor([[float(positions[row][k])] for row in rows])

    return step, moved


def test_an_image_leaves_once_it_hardly_moves_and_another_once_it_speeds_up():
    slow = [0.0, 1.0, 1.5, 1.51, 1.52, 9.0]  # moves by less than 0.1 in the third step
    passing = [0.0, 2.0, 3.0, 4.5, 7.0, 9.0]  # slowest in the second step, then faster
    steady = [0.0, 5.0, 9.0, 12.0, 14.0, 15.0]  # slows down to the end
    step, moved = walk([slow, passing, steady])
    best, taken = settled(step, torch.zeros(3, 1), 5, 0.1)
    assert best[:, 0].tolist() == pytest.approx([1.51, 3.0, 15.0])
    assert taken.tolist() == [3, 3, 5]
    assert moved == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [2], [2]], "or no evaluation is saved"


def test_images_settle_at_what_the_model_has_memorized_in_fewer_steps():
    far_apart = TRAINING[:2]
    start = far_apart.repeat(3, 1) + 0.15 * torch.randn(6, 3, generator=torch.manual_seed(0))
    eps_fn = memorizing_eps_fn(far_apart)

    def step(x_0, rows):
        return next(iterates(eps_fn, x_0, fixed_point(0, 1), ALPHAS_CUMPROD))

    best, taken = settled(step, start, 100, 1e-4)
    torch.testing.assert_close(best, far_apart.repeat(3, 1), atol=1e-3, rtol=0)
    assert taken.max() < 10
