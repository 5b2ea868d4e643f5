import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from sidepipe.diffusion.sampler import (
    SAMPLERS,
    ddim,
    dpm_solver_pp,
    evaluated,
    heun,
    sampling_timesteps,
)
from sidepipe.diffusion.schedule import clip_x_0


def make_schedule(T: int) -> torch.Tensor:
    """DDPM's linear schedule, stretched to T steps, in float64 so that equality can be tight."""
    betas = torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)
    return (1 - betas).cumprod(0)


def wiggly_eps(x_t, t):
    """A nonlinear stand-in for a network, large enough that pred_x_0 often leaves [-1, 1]."""
    return torch.sin(2 * x_t) + 0.3 * x_t.flip(-1) - 0.01 * t


def double(scheduler, alphas_cumprod):
    """The diffusers scheduler on our float64 schedule."""
    scheduler.alphas_cumprod = alphas_cumprod
    return scheduler


def x_T_of(shape=(3, 2, 4, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noise_source(like, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=rng, dtype=like.dtype)


def recorded(eps_fn, seen):
    """`eps_fn` that also keeps every x_t it is given: the sampler's whole path."""

    def recording(x_t, t):
        seen.append(x_t)
        return eps_fn(x_t, t)

    return recording


def assert_equal_paths(ours, theirs):
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_equals_diffusers_at_every_step(spacing, eta, clip):
    T, n = 1000, 20
    alphas_cumprod, x_T = make_schedule(T), x_T_of()
    scheduler = double(DDIMScheduler(T, timestep_spacing=spacing, clip_sample=clip), alphas_cumprod)
    scheduler.set_timesteps(n)
    draw, x_t, expected = noise_source(x_T), x_T, []
    for t in scheduler.timesteps:
        expected.append(x_t)
        eps = wiggly_eps(x_t, int(t))
        z = draw() if eta else None
        step = scheduler.step(eps, int(t), x_t, eta, True, variance_noise=z)
        x_t = step.prev_sample
    expected.append(x_t)

    eps_fn = clip_x_0(wiggly_eps, alphas_cumprod) if clip else wiggly_eps
    path = []
    timesteps = sampling_timesteps(T, n, spacing)
    x_0 = ddim(recorded(eps_fn, path), x_T, timesteps, alphas_cumprod, eta, noise_source(x_T))
    assert_equal_paths([*path, x_0], expected)


@pytest.mark.parametrize("clip", [False, True])
def test_eta_1_over_all_timesteps_equals_diffusers_ddpm(clip):
    T = 50
    alphas_cumprod, x_T = make_schedule(T), x_T_of()
    scheduler = DDPMScheduler(T, variance_type="fixed_small", clip_sample=clip)
    scheduler = double(scheduler, alphas_cumprod)
    rng, x_t, expected = torch.Generator().manual_seed(1), x_T, []
    for t in range(T - 1, -1, -1):
        expected.append(x_t)
        eps = wiggly_eps(x_t, t)
        x_t = scheduler.step(eps, t, x_t, generator=rng).prev_sample
    expected.append(x_t)

    eps_fn = clip_x_0(wiggly_eps, alphas_cumprod) if clip else wiggly_eps
    path = []
    timesteps = sampling_timesteps(T, T, "leading")
    x_0 = ddim(recorded(eps_fn, path), x_T, timesteps, alphas_cumprod, 1.0, noise_source(x_T))
    assert_equal_paths([*path, x_0], expected)


@pytest.mark.parametrize("clip_range", [0.5, 1.0, 2.0, None])
def test_the_range_to_which_pred_x_0_is_clipped_equals_diffusers_ddim(clip_range):
    T, n = 50, 10
    alphas_cumprod, x_T = make_schedule(T), x_T_of()
    clips = {"clip_sample": clip_range is not None, "clip_sample_range": clip_range or 1.0}
    scheduler = double(DDIMScheduler(T, **clips), alphas_cumprod)
    scheduler.set_timesteps(n)
    x_t, expected = x_T, []
    for t in scheduler.timesteps.tolist():
        expected.append(x_t)
        eps = wiggly_eps(x_t, t)
        x_t = scheduler.step(eps, t, x_t, use_clipped_model_output=True).prev_sample
    expected.append(x_t)
    path = []
    eps_fn = recorded(clip_x_0(wiggly_eps, alphas_cumprod, clip_range), path)
    x_0 = ddim(eps_fn, x_T, sampling_timesteps(T, n, "leading"), alphas_cumprod)
    assert_equal_paths([*path, x_0], expected)
    if clip_range is not None:
        torch.testing.assert_close(x_0.abs().max(), torch.tensor(clip_range, dtype=x_0.dtype))


def test_leading_timesteps_have_the_offset_of_diffusers():
    scheduler = DDIMScheduler(50, steps_offset=1)
    scheduler.set_timesteps(10)
    assert sampling_timesteps(50, 10, "leading", 1) == scheduler.timesteps.tolist()
    assert sampling_timesteps(50, 10, "trailing", 1) == sampling_timesteps(50, 10, "trailing")
    assert sampling_timesteps(50, 50, "leading", 1)[:2] == [49, 49]  # there is no t = 50


@pytest.mark.parametrize("eta", [0.0, 0.4])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_the_last_step_keeps_the_noise_that_diffusers_keeps(offset, eta):
    """With `set_alpha_to_one=False` it ends at t = 0, not at the image without noise."""
    T, n = 50, 10
    alphas_cumprod, x_T = make_schedule(T), x_T_of()
    settings = {"set_alpha_to_one": False, "clip_sample": False, "steps_offset": offset}
    scheduler = double(DDIMScheduler(T, **settings), alphas_cumprod)
    scheduler.final_alpha_cumprod = alphas_cumprod[0]
    scheduler.set_timesteps(n)
    draw, x_t, expected = noise_source(x_T), x_T, []
    for t in scheduler.timesteps.tolist():
        expected.append(x_t)
        z = draw() if eta else None
        x_t = scheduler.step(wiggly_eps(x_t, t), t, x_t, eta, variance_noise=z).prev_sample
    expected.append(x_t)
    path, last = [], float(alphas_cumprod[0])
    timesteps = sampling_timesteps(T, n, "leading", offset)
    eps_fn, noise_fn = recorded(wiggly_eps, path), noise_source(x_T)
    x_0 = ddim(eps_fn, x_T, timesteps, alphas_cumprod, eta, noise_fn, last)
    assert_equal_paths([*path, x_0], expected)
    without_noise = ddim(wiggly_eps, x_T, timesteps, alphas_cumprod, eta, noise_source(x_T))
    assert (x_0 - without_noise).abs().max() > 1e-3


@pytest.mark.parametrize(("eta", "draws"), [(0.0, 0), (1.0, 9)])
def test_every_step_but_the_last_draws_noise_once_and_only_when_eta_is_positive(eta, draws):
    alphas_cumprod, x_T = make_schedule(100), x_T_of()
    calls = []

    def noise_fn():
        calls.append(1)
        return torch.zeros_like(x_T)

    ddim(wiggly_eps, x_T, sampling_timesteps(100, 10, "trailing"), alphas_cumprod, eta, noise_fn)
    assert len(calls) == draws


def test_the_last_step_returns_pred_x_0():
    alphas_cumprod, x_T = make_schedule(100), x_T_of()
    eps = wiggly_eps(x_T, 60)
    pred_x_0 = (x_T - (1 - alphas_cumprod[60]).sqrt() * eps) / alphas_cumprod[60].sqrt()
    torch.testing.assert_close(ddim(wiggly_eps, x_T, [60], alphas_cumprod, 0.0), pred_x_0)


def test_eps_is_asked_for_at_every_timestep_by_its_number():
    alphas_cumprod, x_T, seen = make_schedule(100), x_T_of(), []

    def eps_fn(x_t, t):
        seen.append(t)
        return torch.zeros_like(x_t)

    for name, sampler in SAMPLERS.items():
        sampler(eps_fn, x_T, [70, 30, 0], alphas_cumprod)
        assert seen == ([70, 30, 30, 0, 0] if name == "heun" else [70, 30, 0])
        assert seen == evaluated(name, [70, 30, 0], alphas_cumprod)
        assert all(type(t) is int for t in seen)
        seen.clear()


@pytest.mark.parametrize("T", [50, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_sampling_timesteps_equal_diffusers_for_every_count(spacing, T):
    scheduler = DDIMScheduler(T, timestep_spacing=spacing)
    for n in range(1, T + 1):
        scheduler.set_timesteps(n)
        # numpy's arange makes diffusers append a timestep -1 for some counts (61 of 1000).
        expected = [t for t in scheduler.timesteps.tolist() if t >= 0]
        # And it rounds some exact halves the other way (48 of 1000), where either is as right.
        halves = [i for i in range(n) if spacing == "trailing" and 2 * T * i % (2 * n) == n]
        ours = sampling_timesteps(T, n, spacing)
        assert len(ours) == len(expected) == n
        off = {i: abs(a - b) for i, (a, b) in enumerate(zip(ours, expected, strict=True)) if a != b}
        assert set(off) <= set(halves), n
        assert all(distance == 1 for distance in off.values()), n


@pytest.mark.parametrize("n", [1, 10, 20, 25, 50, 64, 100, 128, 200, 250, 500, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_sampling_timesteps_equal_diffusers_exactly_for_the_usual_counts(spacing, n):
    scheduler = DDIMScheduler(1000, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    assert sampling_timesteps(1000, n, spacing) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_timesteps_fall_strictly_within_the_schedule(spacing):
    for n in range(1, 251):
        timesteps = sampling_timesteps(250, n, spacing)
        assert len(timesteps) == n
        assert all(a > b for a, b in pairwise(timesteps))
        assert (timesteps[-1] == 0) if spacing == "leading" else (timesteps[0] == 249)
        assert min(timesteps) >= 0
        assert max(timesteps) <= 249


MEANS = torch.tensor([-1.5, 1.0], dtype=torch.float64)
STDS = torch.tensor([0.2, 0.4], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


def exact_eps(alphas_cumprod):
    """eps of the Gaussian mixture: -sqrt(1 - ab_t) times the score of its noised density."""

    def eps_fn(x_t, t):
        alpha_bar = alphas_cumprod[t]
        variances = alpha_bar * STDS**2 + 1 - alpha_bar
        offsets = x_t - alpha_bar.sqrt() * MEANS
        log_joint = WEIGHTS.log() - offsets**2 / (2 * variances) - variances.log() / 2
        score = (log_joint.softmax(1) * -offsets / variances).sum(1, keepdim=True)
        return -(1 - alpha_bar).sqrt() * score

    return eps_fn


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_a_gaussian_mixture_have_its_means_stds_and_weights(eta):
    alphas_cumprod = make_schedule(1000)
    x_T = x_T_of((20_000, 1))
    timesteps = sampling_timesteps(1000, 200, "trailing")
    x_0 = ddim(exact_eps(alphas_cumprod), x_T, timesteps, alphas_cumprod, eta, noise_source(x_T))
    side = (x_0[:, 0] > -0.6).long()
    for component in (0, 1):
        of_it = x_0[side == component]
        assert len(of_it) / len(x_0) == pytest.approx(float(WEIGHTS[component]), abs=0.015)
        assert float(of_it.mean()) == pytest.approx(float(MEANS[component]), abs=0.02)
        assert float(of_it.std()) == pytest.approx(float(STDS[component]), abs=0.02)


def test_a_schedule_that_ends_in_pure_noise_still_samples_finite_images():
    alphas_cumprod = torch.cos(torch.linspace(0, math.pi / 2, 51)[1:]) ** 2
    alphas_cumprod[-1] = 0.0
    eps_fn = clip_x_0(wiggly_eps, alphas_cumprod)
    x_T = x_T_of().float()
    timesteps = sampling_timesteps(50, 50, "trailing")
    x_0 = ddim(eps_fn, x_T, timesteps, alphas_cumprod, 1.0, noise_source(x_T))
    assert x_0.isfinite().all()
    assert x_0.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("n", [0, -1, 101])
def test_an_impossible_number_of_steps_is_refused(n):
    with pytest.raises(ValueError, match=rf"num_inference_steps must be in \[1, 100\], got {n}"):
        sampling_timesteps(100, n, "leading")


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="leading, trailing, linspace, got 'karras'"):
        sampling_timesteps(100, 10, "karras")


def test_noise_is_needed_when_eta_is_positive_and_only_then():
    alphas_cumprod, x_T = make_schedule(100), x_T_of()
    with pytest.raises(ValueError, match=r"noise_fn is needed when eta > 0, got eta = 0.5"):
        ddim(wiggly_eps, x_T, [50, 0], alphas_cumprod, 0.5)
    assert ddim(wiggly_eps, x_T, [50, 0], alphas_cumprod, 0.0).isfinite().all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_dpm_solver_pp_equals_diffusers_at_every_step(spacing, n, clip):
    T = 1000
    alphas_cumprod, x_T = make_schedule(T), x_T_of()
    timesteps = sampling_timesteps(T, n, spacing)
    scheduler = DPMSolverMultistepScheduler(T, final_sigmas_type="zero")
    # Its own timesteps are others, and its schedule is in float32.
    scheduler.set_timesteps(n)
    scheduler.timesteps = torch.tensor(timesteps)
    sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()[timesteps]
    scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    eps_fn = clip_x_0(wiggly_eps, alphas_cumprod) if clip else wiggly_eps
    x_t, expected = x_T, []
    for t in timesteps:
        expected.append(x_t)
        x_t = scheduler.step(eps_fn(x_t, t), t, x_t).prev_sample
    expected.append(x_t)
    path = []
    x_0 = dpm_solver_pp(recorded(eps_fn, path), x_T, timesteps, alphas_cumprod)
    # diffusers goes on in float32 from step to step.
    ours, theirs = torch.stack([*path, x_0]), torch.stack(expected).double()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-3)


def test_dpm_solver_pp_comes_nearer_to_the_exact_solution_in_as_many_steps():
    alphas_cumprod, x_T = make_schedule(1000), x_T_of((2000, 1))
    eps_fn = exact_eps(alphas_cumprod)
    exact = ddim(eps_fn, x_T, sampling_timesteps(1000, 1000, "leading"), alphas_cumprod)
    timesteps = sampling_timesteps(1000, 50, "trailing")
    errors = {
        name: float((sampler(eps_fn, x_T, timesteps, alphas_cumprod) - exact).abs().mean())
        for name, sampler in SAMPLERS.items()
    }
    assert errors["dpm_solver_pp"] < 0.3 * errors["ddim"]


def test_dpm_solver_pp_knows_no_added_noise():
    with pytest.raises(ValueError, match=r"eta must be 0 for dpm_solver_pp, got 0.5; remedy"):
        dpm_solver_pp(wiggly_eps, x_T_of(), [50, 0], make_schedule(100), 0.5)


def test_dpm_solver_pp_from_pure_noise_samples_finite_images():
    alphas_cumprod = torch.cos(torch.linspace(0, math.pi / 2, 51)[1:]) ** 2
    alphas_cumprod[-1] = 0.0
    timesteps = sampling_timesteps(50, 50, "trailing")
    eps_fn = clip_x_0(wiggly_eps, alphas_cumprod)
    x_0 = dpm_solver_pp(eps_fn, x_T_of().float(), timesteps, alphas_cumprod)
    assert x_0.isfinite().all()
    assert x_0.abs().max() <= 1 + 1e-4


def edm_algorithm_1(denoised, x, sigmas):
    """Karras et al., 2022, algorithm 1, line by line, with sigma(t) = t and s(t) = 1."""
    for now, following in pairwise(sigmas):
        d = (x - denoised(x, now)) / now
        end = x + (following - now) * d
        if following != 0:
            d_end = (end - denoised(end, following)) / following
            end = x + (following - now) * (d / 2 + d_end / 2)
        x = end
    return x


def test_heun_is_algorithm_1_of_edm_at_every_noise():
    alphas_cumprod, x_T, seen = make_schedule(1000), x_T_of(), []
    timesteps = sampling_timesteps(1000, 12, "trailing")
    sigmas = [float(((1 - a) / a).sqrt()) for a in alphas_cumprod[timesteps]]
    at_sigma = dict(zip(sigmas, timesteps, strict=True))

    def denoised(x, sigma):
        return x - sigma * wiggly_eps(x / math.hypot(1, sigma), at_sigma[sigma])

    expected = edm_algorithm_1(denoised, x_T * math.hypot(1, sigmas[0]), [*sigmas, 0])
    found = heun(recorded(wiggly_eps, seen), x_T, timesteps, alphas_cumprod)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(seen) == 2 * 12 - 1


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("heun", 2)])
def test_the_error_of_a_sampler_falls_with_its_order(sampler, order):
    """The exact x_0 of a Gaussian is x_T stretched to the standard deviation of the data."""
    T, mean, deviation = 100_000, 0.3, 0.4
    alphas_cumprod, x_T = make_schedule(T), x_T_of()

    def exact_eps(x_t, t):
        alpha_bar = alphas_cumprod[t]
        spread = alpha_bar * deviation**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * mean) / spread

    first, last = 60_000, 10_000  # to some noise, as the last step to none is of first order
    signal, end = alphas_cumprod[first], alphas_cumprod[last]
    scale = ((end * deviation**2 + 1 - end) / (signal * deviation**2 + 1 - signal)).sqrt()
    exact = end.sqrt() * mean + scale * (x_T - signal.sqrt() * mean)
    errors = []
    for n in (20, 40, 80):
        log_snr = (alphas_cumprod / (1 - alphas_cumprod)).log()
        wanted = torch.linspace(float(log_snr[first]), float(log_snr[last]), n + 1)
        timesteps = [int((log_snr - value).abs().argmin()) for value in wanted]
        found = []
        SAMPLERS[sampler](recorded(exact_eps, found), x_T, timesteps, alphas_cumprod)
        errors.append(float((found[-1] - exact).abs().max()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates == pytest.approx([order, order], abs=0.15)


def test_heun_has_no_added_noise():
    with pytest.raises(ValueError, match=r"eta must be 0 for heun, got 0.5; remedy: sampler=ddim"):
        heun(wiggly_eps, x_T_of(), [50, 0], make_schedule(100), 0.5)


def test_heun_leaves_pure_noise_by_a_step_of_first_order():
    """In sigma that step is infinitely long, and a mean over its ends means nothing."""
    alphas_cumprod = torch.cat([make_schedule(99), torch.zeros(1)])
    seen, timesteps = [], [99, 60, 20]

    def eps_fn(x_t, t):
        seen.append(t)
        return x_t

    heun(eps_fn, x_T_of(), timesteps, alphas_cumprod)
    assert seen == evaluated("heun", timesteps, alphas_cumprod) == [99, 60, 20, 20]
