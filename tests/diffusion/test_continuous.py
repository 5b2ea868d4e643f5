"""One distribution, a mixture of Gaussians, as models of four families, each with its own formula.

Each network below is the exact one of its paper, in the coordinates and the time of its family.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from sidepipe.diffusion.continuous import (
    Preconditioned,
    edm_levels,
    flow_levels,
    level_grid,
    nearest_levels,
    noise_ratio,
    ve_levels,
)
from sidepipe.diffusion.guidance import Posterior, guided
from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.sampler import SAMPLERS, ddim
from sidepipe.diffusion.schedule import eps_of

MEANS = torch.tensor([[0.9, -0.8, 0.1], [-0.7, 0.2, 0.6], [-0.6, 0.3, 0.5]], dtype=torch.float64)
SPREAD = 0.05  # of each Gaussian
SIGMA_DATA = 0.5


def mean_of_x_0(x, signal, noise):
    """E[x_0 | x = signal * x_0 + noise * eps] of the mixture, and its density's score."""
    variance = (signal * SPREAD) ** 2 + noise**2
    away = x[:, None] - signal * MEANS
    weights = (-away.square().sum(-1) / (2 * variance)).softmax(1)
    score = -(weights[..., None] * away).sum(1) / variance
    return (x + noise**2 * score) / signal if signal else weights @ MEANS, score


def network(answer):
    """A network that gets x and the time of each image, in float64."""

    def call(x, time):
        assert len(set(time.tolist())) == 1
        return SimpleNamespace(sample=answer(x.double(), float(time[0])).to(x.dtype))

    return call


@network
def flow(x, time):
    t = time / 1000
    x_0, _ = mean_of_x_0(x, 1 - t, t)
    return (x - x_0) / t  # of E[eps - x_0], as x = x_0 + t (eps - x_0)


@network
def edm(scaled, c_noise):
    sigma = math.exp(4 * c_noise)
    total = math.hypot(sigma, SIGMA_DATA)
    x = scaled * total
    denoised, _ = mean_of_x_0(x, 1.0, sigma)
    return (denoised - SIGMA_DATA**2 / total**2 * x) / (sigma * SIGMA_DATA / total)


@network
def edm_v(scaled, c_noise):
    return -edm(scaled, torch.tensor([c_noise])).sample


@network
def ve(image, sigma):
    """The score of images in [0, 1]; that of x = 2 * image - 1 has half its size."""
    return 2 * mean_of_x_0(2 * image - 1, 1.0, 2 * sigma)[1]


FAMILIES = {
    "flow": (flow, flow_levels()),
    "edm": (edm, edm_levels(SIGMA_DATA, 80.0)),
    "edm_v": (edm_v, edm_levels(SIGMA_DATA, 80.0, predicts_v=True)),
    "ve": (ve, ve_levels(2 * 1348.0)),
}


def exact_eps_fn(alphas_cumprod):
    """eps of the same mixture by the formula of variance preserving models, in float64."""

    def eps_fn(x_t, t):
        alpha_bar = float(alphas_cumprod[t])
        signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        return -noise * mean_of_x_0(x_t.double(), signal, noise)[1]

    return eps_fn


def eps_fn_of(name):
    net, levels = FAMILIES[name]
    eps_fn = eps_of(Preconditioned(net, levels), levels.prediction_type, levels.alphas_cumprod)
    return eps_fn, levels.alphas_cumprod


def draw(seed=0):
    return torch.randn(64, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FAMILIES)
def test_eps_is_that_of_the_same_distribution_at_every_level(name):
    eps_fn, alphas_cumprod = eps_fn_of(name)
    exact, x_t = exact_eps_fn(alphas_cumprod), draw()
    for t in [0, 1, 7, 60, 250, 500, 800, 920, len(alphas_cumprod) - 1]:
        found, expected = eps_fn(x_t, t).double(), exact(x_t, t)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_and_refined_images_are_those_of_the_same_distribution(name, sampler):
    eps_fn, alphas_cumprod = eps_fn_of(name)
    exact, x_T = exact_eps_fn(alphas_cumprod), draw()
    timesteps = [900, 700, 500, 350, 250, 150, 100, 60, 30, 10, 0]
    found = SAMPLERS[sampler](eps_fn, x_T, timesteps, alphas_cumprod)
    expected = SAMPLERS[sampler](exact, x_T.double(), timesteps, alphas_cumprod.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)
    assert torch.cdist(found.double(), MEANS).amin(1).median() < 0.2  # near the data
    refined = seek_mode(eps_fn, found, 60, 8, alphas_cumprod)
    expected = seek_mode(exact, found.double(), 60, 8, alphas_cumprod)
    torch.testing.assert_close(refined.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_guided_samples_are_those_of_the_same_distribution(name):
    """SIDE's step: the posterior of labels of synthetic images steers each family alike."""
    eps_fn, alphas_cumprod = eps_fn_of(name)
    levels = alphas_cumprod[:900]  # these are the same for all families
    images = (torch.rand(12, 1, 1, 3, generator=torch.Generator().manual_seed(1)) * 255).byte()
    posterior = Posterior(images, torch.arange(12) % 3, levels)
    y, settings = torch.arange(64) % 3, {"guidance_scale": 2.0, "t_min": 100, "t_max": 890}

    def grad(x_t, t, y):
        return posterior.grad_log_prob(x_t.reshape(-1, 3, 1, 1).float(), t, y).reshape(-1, 3)

    x_T, timesteps = draw(), [890, 700, 500, 350, 250, 150, 100, 60, 30, 10, 0]
    paths = []
    for fn in (eps_fn, exact_eps_fn(alphas_cumprod)):
        steered = guided(fn, grad, y, alphas_cumprod=levels, **settings)
        paths.append(ddim(steered, x_T, timesteps, levels))
    torch.testing.assert_close(paths[0], paths[1], rtol=0, atol=1e-3)
    assert not torch.allclose(paths[0], ddim(eps_fn, x_T, timesteps, levels), atol=0.05)


def test_ddim_is_eulers_method_in_sigma_of_diffusers_edm_scheduler():
    scheduler = EDMEulerScheduler(sigma_data=SIGMA_DATA, sigma_max=80.0)
    eps_fn, alphas_cumprod = eps_fn_of("edm")
    timesteps = [len(alphas_cumprod) - 1, 800, 600, 400, 200, 60, 0]
    scheduler.set_timesteps(len(timesteps))
    scheduler.sigmas = torch.cat([noise_ratio(alphas_cumprod)[timesteps], torch.zeros(1)])
    scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])
    x_T = draw()
    x = x_T.double() * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        output = edm(scheduler.scale_model_input(x, time), time[None]).sample
        x = scheduler.step(output, time, x).prev_sample
    found = ddim(eps_fn, x_T, timesteps, alphas_cumprod)
    torch.testing.assert_close(found.double(), x, rtol=0, atol=1e-5)


def test_ddim_is_eulers_method_in_time_of_diffusers_flow_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler()
    eps_fn, alphas_cumprod = eps_fn_of("flow")
    timesteps = [999, 900, 800, 600, 400, 200, 60, 0]
    time = flow_levels(1.0).time[timesteps]
    assert time[0] == 1
    scheduler.set_timesteps(len(timesteps), sigmas=time.tolist())
    x_T = draw()
    x = x_T.double()
    for t in scheduler.timesteps:
        x = scheduler.step(flow(x, t[None]).sample, t, x).prev_sample
    found = ddim(eps_fn, x_T, timesteps, alphas_cumprod)
    torch.testing.assert_close(found.double(), x, rtol=0, atol=1e-4)


def test_at_time_1_the_image_of_a_flow_is_pure_noise_less_its_velocity():
    eps_fn, alphas_cumprod = eps_fn_of("flow")
    assert alphas_cumprod[-1] == 0
    net = network(lambda x, time: x.flip(-1) - 0.3 * time / 1000)
    levels, x_T = flow_levels(), draw()
    eps_fn = eps_of(Preconditioned(net, levels), levels.prediction_type, alphas_cumprod)
    found = ddim(eps_fn, x_T, [999], alphas_cumprod)
    torch.testing.assert_close(found, x_T - (x_T.flip(-1) - 0.3), rtol=0, atol=1e-4)


def test_levels_are_those_of_ddpm():
    ddpm = DDPMScheduler().alphas_cumprod
    for levels in (level_grid(80.0), level_grid(1e6), level_grid()):
        assert torch.equal(levels[:-1], ddpm[: len(levels) - 1])
        assert (levels.diff() < 0).all()
    assert torch.equal(level_grid(1e6), ddpm)
    assert float(noise_ratio(level_grid(80.0))[-1]) == pytest.approx(80, rel=1e-4)


def test_own_levels_become_the_nearest_ones_each_once():
    alphas_cumprod = level_grid(80.0)
    sigma = noise_ratio(alphas_cumprod)
    assert nearest_levels(alphas_cumprod, sigma.flip(0).tolist()) == list(range(931))[::-1]
    between = [float((sigma[t] * sigma[t + 1]).sqrt()) * 1.001 for t in (500, 60, 7)]
    assert nearest_levels(alphas_cumprod, between) == [501, 61, 8]
    beyond = [500, 90, 80, 1e-4, 1e-5, 1e-6]
    assert nearest_levels(alphas_cumprod, beyond) == [930, 929, 928, 2, 1, 0]
    equal = int((level_grid() - 0.5).abs().argmin())  # as much noise as signal
    assert nearest_levels(level_grid(), [math.inf, 1.0, 0.0]) == [999, equal, 0]
