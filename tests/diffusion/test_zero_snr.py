"""Every prediction type, timestep spacing and schedule against diffusers, zero terminal SNR too."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from sidepipe.base.images import to_uint8
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.guidance import Posterior, conditioned, guided
from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.sampler import SAMPLERS, ddim, dpm_solver_pp, require_x_0
from sidepipe.diffusion.schedule import clip_x_0, eps_from_prediction
from sidepipe.diffusion.shaping import ThroughPredX0

TYPES = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "linspace", "trailing"]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
STEPS = 10
X_T = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(x_t, t):
    """A nonlinear stand-in, whose float32 output is the same for x_t in float64 of equal value."""
    return (torch.sin(2 * x_t) + 0.3 * x_t.flip(-1) - 0.0005 * t).to(x_t.dtype)


def eps_of(prediction_type, alphas_cumprod, predict=network):
    def eps_fn(x_t, t):
        return eps_from_prediction(prediction_type, predict(x_t, t), x_t, t, alphas_cumprod)

    return eps_fn


def scheduler_of(kind, prediction_type, spacing, schedule, rescale, **settings):
    scheduler = kind(
        1000,
        beta_schedule=schedule,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=rescale,
        **settings,
    )
    scheduler.set_timesteps(STEPS)
    return scheduler


def recorded(eps_fn, seen):
    def recording(x_t, t):
        seen.append(x_t)
        return eps_fn(x_t, t)

    return recording


COMBINATIONS = [
    (prediction_type, spacing, schedule, rescale)
    for prediction_type, spacing, schedule, rescale in itertools.product(
        TYPES, SPACINGS, SCHEDULES, [False, True]
    )
    # Where t = 999 is a step, eps does not give x_0: refused, see below.
    if not (prediction_type == "epsilon" and rescale and spacing != "leading")
]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("prediction_type", "spacing", "schedule", "rescale"), COMBINATIONS)
def test_ddim_equals_diffusers(prediction_type, spacing, schedule, rescale, clip):
    about = (DDIMScheduler, prediction_type, spacing, schedule, rescale)
    scheduler = scheduler_of(*about, clip_sample=clip)
    scheduler.alphas_cumprod = alphas_cumprod = scheduler.alphas_cumprod.double()
    timesteps = scheduler.timesteps.tolist()
    eps_fn = eps_of(prediction_type, alphas_cumprod)
    eps_fn = clip_x_0(eps_fn, alphas_cumprod) if clip else eps_fn
    path = []
    x_0 = ddim(recorded(eps_fn, path), X_T, timesteps, alphas_cumprod)
    for t, x_t, x_prev in zip(timesteps, path, [*path[1:], x_0], strict=True):
        step = scheduler.step(network(x_t, t), t, x_t, use_clipped_model_output=True)
        # With zero terminal SNR x_0 differs by 2**-16 of x_T at the first step.
        atol = 2**-16 * 5 if alphas_cumprod[t] == 0 else 1e-9
        ours = ddim(eps_fn, x_t, [t], alphas_cumprod)
        theirs = step.pred_original_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=atol)
        if spacing != "linspace":  # there diffusers steps to t - 100, not to the next timestep
            torch.testing.assert_close(x_prev, step.prev_sample, rtol=1e-9, atol=atol)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
@pytest.mark.parametrize(("prediction_type", "spacing", "schedule", "rescale"), COMBINATIONS)
def test_dpm_solver_pp_equals_diffusers(prediction_type, spacing, schedule, rescale):
    about = (DPMSolverMultistepScheduler, prediction_type, spacing, schedule, rescale)
    scheduler = scheduler_of(*about, final_sigmas_type="zero")
    alphas_cumprod = scheduler.alphas_cumprod.clone()
    if rescale:  # where diffusers has 2**-24
        alphas_cumprod[-1] = 0
    timesteps = scheduler.timesteps.tolist()
    x_t = x_T = X_T.float()
    expected = []
    for t in scheduler.timesteps:
        expected.append(x_t)
        x_t = scheduler.step(network(x_t, int(t)), t, x_t).prev_sample
    expected.append(x_t)
    path = []
    eps_fn = eps_of(prediction_type, alphas_cumprod)
    x_0 = dpm_solver_pp(recorded(eps_fn, path), x_T, timesteps, alphas_cumprod)
    # Both in float32; for zero terminal SNR diffusers takes 2**-12 of x_T for x_0.
    atol = 2e-3 if rescale and spacing != "leading" else 1e-4
    ours, theirs = torch.stack([*path, x_0]), torch.stack(expected)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)


ENDING_IN_NOISE = DDIMScheduler(1000, rescale_betas_zero_snr=True).alphas_cumprod
TRAILING = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("prediction_type", "value"), [("v_prediction", -0.5), ("sample", 0.5)])
def test_a_constant_x_0_of_a_half_is_pixel_191_from_the_first_step(
    prediction_type, value, sampler, clip
):
    eps_fn = eps_of(prediction_type, ENDING_IN_NOISE, lambda x_t, t: torch.full_like(x_t, value))
    eps_fn = clip_x_0(eps_fn, ENDING_IN_NOISE) if clip else eps_fn
    x_0 = SAMPLERS[sampler](eps_fn, X_T.float(), [999], ENDING_IN_NOISE)
    assert x_0.dtype == torch.float32
    torch.testing.assert_close(x_0, torch.full_like(x_0, 0.5), rtol=0, atol=1e-4)
    assert set(to_uint8(x_0).flatten().tolist()) == {191}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_keeps_the_network_s_x_0_at_every_noise(schedule, prediction_type, sampler):
    alphas_cumprod = DDIMScheduler(1000, beta_schedule=schedule).alphas_cumprod
    wanted = torch.linspace(-1, 1, X_T.numel()).reshape(X_T.shape)

    def predict(x_t, t):
        if prediction_type == "sample":
            return wanted
        alpha_bar = alphas_cumprod[t].double()
        return ((alpha_bar.sqrt() * x_t - wanted) / (1 - alpha_bar).sqrt()).float()

    eps_fn = eps_of(prediction_type, alphas_cumprod, predict)
    for t in (999, 990, 500, 10, 0):
        x_0 = SAMPLERS[sampler](eps_fn, X_T.float(), [t], alphas_cumprod)
        torch.testing.assert_close(x_0, wanted, rtol=0, atol=1e-5)


def test_refinement_at_pure_noise_gives_the_network_s_x_0():
    eps_fn = eps_of("v_prediction", ENDING_IN_NOISE, lambda x_t, t: torch.full_like(x_t, -0.5))
    refined = seek_mode(eps_fn, X_T.float(), 999, 1, ENDING_IN_NOISE)
    torch.testing.assert_close(refined, torch.full_like(refined, 0.5), rtol=0, atol=1e-4)


SYNTHETIC = torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_the_exact_posterior_leads_the_mean_of_all_images_to_that_of_a_label(prediction_type):
    mean, sign = SYNTHETIC.mean(0), -1 if prediction_type == "v_prediction" else 1
    eps_fn = eps_of(prediction_type, ENDING_IN_NOISE, lambda x_t, t: sign * mean.expand_as(x_t))
    posterior, y = Posterior(SYNTHETIC, LABELS, ENDING_IN_NOISE), torch.tensor([0, 1, 1])
    led = guided(eps_fn, posterior.grad_log_prob, y, 1.0, ENDING_IN_NOISE)
    x_0 = ddim(led, X_T.float(), [999], ENDING_IN_NOISE)
    expected = torch.stack([SYNTHETIC[label == LABELS].mean(0) for label in (0, 1, 1)])
    torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-4)


def test_a_condition_moves_x_0_at_pure_noise_by_its_scale():
    eps_fn, of_label = (
        eps_of("v_prediction", ENDING_IN_NOISE, lambda x_t, t, v=v: torch.full_like(x_t, v))
        for v in (-0.1, -0.3)
    )
    x_0 = ddim(conditioned(eps_fn, of_label, 2.0), X_T.float(), [999], ENDING_IN_NOISE)
    torch.testing.assert_close(x_0, torch.full_like(x_0, 0.5), rtol=0, atol=1e-4)


def test_guidance_through_pred_x_0_sees_the_network_s_x_0_in_the_sampler_s_dtype():
    seen = []

    class Surrogate(torch.nn.Module):
        def grad_log_prob(self, x_t, t, y):
            seen.append(x_t)
            return torch.zeros_like(x_t)

    x_T = X_T.float()
    eps = eps_of("v_prediction", ENDING_IN_NOISE, lambda x_t, t: torch.full_like(x_t, -0.5))
    ThroughPredX0(Surrogate(), ENDING_IN_NOISE)(x_T, 999, torch.zeros(3).long(), eps(x_T, 999))
    torch.testing.assert_close(seen[0], torch.full_like(x_T, 0.5), rtol=0, atol=1e-4)


def test_epsilon_prediction_at_pure_noise_is_refused_and_leading_timesteps_are_not():
    denoiser = Denoiser(torch.nn.Identity(), ENDING_IN_NOISE, "epsilon", (2, 4, 4))
    with pytest.raises(ValueError, match=r"got 'epsilon' at t = 999, .*; remedy: timestep_spacing"):
        denoiser.timesteps(10, "trailing")
    assert denoiser.timesteps(10, "leading")[0] == 900
    for prediction_type in ("v_prediction", "sample"):
        require_x_0(prediction_type, ENDING_IN_NOISE, TRAILING)
