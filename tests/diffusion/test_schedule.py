import pytest
import torch
from diffusers import DDPMScheduler

from sidepipe.diffusion.schedule import (
    add_noise,
    at,
    clip_x_0,
    eps_from_prediction,
    training_target,
)

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


@pytest.fixture
def scheduler():
    scheduler = DDPMScheduler(1000)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


@pytest.fixture
def batch():
    """x_0, eps and a different t for each image, both ends of the schedule included."""
    rng = torch.Generator().manual_seed(0)
    x_0 = torch.rand(5, 3, 4, 2, generator=rng, dtype=torch.float64) * 2 - 1
    eps = torch.randn(5, 3, 4, 2, generator=rng, dtype=torch.float64)
    return x_0, eps, torch.tensor([0, 1, 400, 998, 999])


def test_add_noise_equals_diffusers(scheduler, batch):
    x_0, eps, t = batch
    ours = add_noise(x_0, eps, t, scheduler.alphas_cumprod)
    torch.testing.assert_close(ours, scheduler.add_noise(x_0, eps, t), rtol=1e-12, atol=1e-12)


def test_the_target_of_v_prediction_equals_diffusers_velocity(scheduler, batch):
    x_0, eps, t = batch
    ours = training_target("v_prediction", x_0, eps, t, scheduler.alphas_cumprod)
    torch.testing.assert_close(ours, scheduler.get_velocity(x_0, eps, t), rtol=1e-12, atol=1e-12)


def test_the_targets_of_epsilon_and_sample_are_eps_and_x_0(scheduler, batch):
    x_0, eps, t = batch
    assert training_target("epsilon", x_0, eps, t, scheduler.alphas_cumprod).equal(eps)
    assert training_target("sample", x_0, eps, t, scheduler.alphas_cumprod).equal(x_0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_network_gives_back_eps(scheduler, batch, prediction_type):
    x_0, eps, t = batch
    alphas_cumprod = scheduler.alphas_cumprod
    x_t = scheduler.add_noise(x_0, eps, t)
    target = training_target(prediction_type, x_0, eps, t, alphas_cumprod)
    recovered = eps_from_prediction(prediction_type, target, x_t, t, alphas_cumprod)
    torch.testing.assert_close(recovered, eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_wrong_network_implies_the_x_0_that_diffusers_implies(prediction_type, batch):
    x_t, prediction, _ = batch
    scheduler = DDPMScheduler(1000, prediction_type=prediction_type, clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    t = torch.full((5,), 321)
    eps = eps_from_prediction(prediction_type, prediction, x_t, t, scheduler.alphas_cumprod)
    alpha_bar = scheduler.alphas_cumprod[321]
    pred_x_0 = (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    theirs = scheduler.step(prediction, 321, x_t).pred_original_sample
    torch.testing.assert_close(pred_x_0, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 1), (5, 3, 4, 2)])
def test_at_broadcasts_over_images_in_their_dtype(shape):
    like = torch.zeros(shape, dtype=torch.float64)
    values = at(torch.arange(10.0), torch.tensor([3, 1, 4, 1, 5]), like)
    assert values.shape == (5, *[1] * (len(shape) - 1))
    assert values.dtype == torch.float64
    assert values.flatten().tolist() == [3.0, 1.0, 4.0, 1.0, 5.0]
    alone = at(torch.arange(10.0), 7, like)  # one t for all
    assert (like + alone).equal(torch.full(shape, 7.0, dtype=torch.float64))


def implied_x_0(eps, x_t, t, alphas_cumprod):
    alpha_bar = at(alphas_cumprod, t, x_t)
    return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def test_clip_x_0_keeps_the_implied_image_in_range_and_its_noise_consistent(scheduler, batch):
    x_t, eps, t = batch
    alphas_cumprod = scheduler.alphas_cumprod
    before = implied_x_0(3 * eps, x_t, t, alphas_cumprod)
    assert (before.abs() > 1).any()
    assert (before.abs() < 1).any()
    clipped = clip_x_0(lambda x_t, t: 3 * eps, alphas_cumprod)(x_t, t)
    after = implied_x_0(clipped, x_t, t, alphas_cumprod)
    torch.testing.assert_close(after, before.clamp(-1, 1), rtol=1e-9, atol=1e-9)


def test_clip_x_0_leaves_an_image_in_range_alone(scheduler, batch):
    x_0, eps, t = batch
    x_t = scheduler.add_noise(x_0, eps, t)
    unclipped = clip_x_0(lambda x_t, t: eps, scheduler.alphas_cumprod)(x_t, t)
    torch.testing.assert_close(unclipped, eps, rtol=1e-9, atol=1e-9)


def test_clip_x_0_is_finite_where_the_schedule_ends_in_pure_noise():
    alphas_cumprod = torch.tensor([0.9, 0.0])
    x_t = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 1])
    clipped = clip_x_0(lambda x_t, t: x_t, alphas_cumprod)(x_t, t)  # all of x_t is noise
    torch.testing.assert_close(clipped.float(), x_t, rtol=0, atol=1e-4)
