"""EDM, score-based and flow models give the samples of diffusers' schedulers at the same noise."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DiTTransformer2DModel,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    KarrasVeScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from tests.models.tiny_pipelines import dit, latent, of_images

import sidepipe
from sidepipe.diffusion.continuous import noise_ratio
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import SAMPLERS, ddim
from sidepipe.models.checkpoint import check_checkpoint, denoiser_of, load_checkpoint, save_parts

N = 6
# The largest difference that is allowed; of a flow 2**-16 of its pure noise, see `LEAST_SIGNAL`.
EDM, FLOW = 2e-5, 1e-4
# NCSN++ in the layout of google/ncsnpp-*, with fewer blocks and channels.
NCSNPP = {
    "time_embedding_type": "fourier",
    "block_out_channels": [32, 32],
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
    "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
    "center_input_sample": True,
    "mid_block_scale_factor": math.sqrt(2),
    "norm_num_groups": None,
    "in_channels": 3,
    "out_channels": 3,
}


def loaded(folder):
    return denoiser_of(load_checkpoint(str(folder), None, None))


def noise(shape):
    return image_noise(0, "generate", range(N), shape)()


def sampled(denoiser, timesteps, y=None, sampler="ddim", **settings):
    """From the same noise as `noise`, without clipping."""
    y = torch.zeros(N, dtype=torch.int64) if y is None else y
    x_T, alphas_cumprod = noise(denoiser.shape), denoiser.alphas_cumprod
    last = denoiser.step_rule.last_alpha_bar
    settings = {"last_alpha_bar": last, **settings}
    return SAMPLERS[sampler](denoiser.eps_fn(y), x_T, timesteps, alphas_cumprod, **settings)


def network(folder, kind=UNet2DModel, name="unet"):
    return kind.from_pretrained(folder, subfolder=name).eval()


@torch.no_grad()
def edm_steps(scheduler, unet, x, sigmas, **conditions):
    """diffusers' Euler steps at these sigmas, as its pipelines of EDM models call them."""
    scheduler.set_timesteps(len(sigmas))
    last = scheduler.sigmas[-1:] if scheduler.config["final_sigmas_type"] == "zero" else sigmas[-1:]
    scheduler.sigmas = torch.cat([sigmas.float(), last.float()])
    scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])
    for time in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(x, time), time, **conditions).sample
        x = scheduler.step(output, time, x).prev_sample
    return x


@pytest.mark.parametrize("last", ["zero", "sigma_min"])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("classes", [None, 4])
def test_an_edm_model_gives_the_samples_of_diffusers(tmp_path, predicts, classes, last):
    scheduler = EDMEulerScheduler(
        prediction_type=predicts, sigma_data=0.6, sigma_max=40.0, final_sigmas_type=last
    )
    denoiser = loaded(of_images(tmp_path, scheduler, num_class_embeds=classes))
    timesteps, y = denoiser.timesteps(12), torch.tensor([0, 1, 2, 3, 0, 1])
    sigmas = noise_ratio(denoiser.alphas_cumprod)[timesteps]
    own = EDMEulerScheduler(sigma_max=40.0)
    own.set_timesteps(12)
    torch.testing.assert_close(sigmas[:8].float(), own.sigmas[:8], rtol=0.02, atol=0)
    x = noise(denoiser.shape) * math.hypot(1, sigmas[0])
    conditions = {} if classes is None else {"class_labels": y}
    expected = edm_steps(scheduler, network(tmp_path), x, sigmas, **conditions)
    found = sampled(denoiser, timesteps, y)
    if last == "sigma_min":  # x itself, and x_t
        expected = expected / math.hypot(1, sigmas[-1])
    torch.testing.assert_close(found, expected, rtol=0, atol=EDM)
    assert denoiser.num_classes == classes
    assert found.std() > 0.1


def test_edms_multistep_scheduler_has_the_same_levels(tmp_path):
    denoiser = loaded(of_images(tmp_path / "a", EDMEulerScheduler()))
    other = loaded(of_images(tmp_path / "b", EDMDPMSolverMultistepScheduler()))
    assert denoiser.timesteps(18) == other.timesteps(18)
    torch.testing.assert_close(sampled(denoiser, [900, 60]), sampled(other, [900, 60]))


def test_a_score_model_gives_the_means_of_diffusers_predictor(tmp_path):
    """Its pipeline adds noise; the mean of each step is that of DDIM with eta = 1."""
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0)
    denoiser, unet = loaded(of_images(tmp_path, scheduler, **NCSNPP)), network(tmp_path)
    steps, alphas_cumprod = 5, denoiser.alphas_cumprod
    timesteps = denoiser.timesteps(steps)
    sigmas = noise_ratio(alphas_cumprod)[timesteps].float() / 2  # of images in [0, 1]
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    scheduler.discrete_sigmas = sigmas.flip(0)
    x_t, eps_fn = noise(denoiser.shape), denoiser.eps_fn(torch.zeros(N, dtype=torch.int64))
    for i in range(steps - 1):
        image = (x_t * math.hypot(1, 2 * sigmas[i]) + 1) / 2
        with torch.no_grad():
            score = unet(image, sigmas[i].expand(N)).sample
        made = scheduler.step_pred(score, scheduler.timesteps[i], image)
        ends = {"last_alpha_bar": float(alphas_cumprod[timesteps[i + 1]])}
        x_t = ddim(
            eps_fn, x_t, timesteps[i : i + 1], alphas_cumprod, 1.0, lambda: torch.zeros(1), **ends
        )
        found = (x_t * math.hypot(1, 2 * sigmas[i + 1]) + 1) / 2
        # Relative to the size of x, which is up to 50.
        gap = (found - made.prev_sample_mean).abs().max() / made.prev_sample_mean.abs().max()
        assert gap < 1e-6


def test_a_score_model_samples_by_heun_as_diffusers_karras_scheduler(tmp_path):
    scheduler = KarrasVeScheduler(sigma_max=80.0, s_churn=0)
    denoiser, unet = loaded(of_images(tmp_path, scheduler, **NCSNPP)), network(tmp_path)
    timesteps = denoiser.timesteps(8)
    sigmas = [*noise_ratio(denoiser.alphas_cumprod)[timesteps].tolist(), 0.0]
    x = noise(denoiser.shape) * math.hypot(1, sigmas[0])

    @torch.no_grad()
    def output(x, sigma):
        """As KarrasVePipeline calls its network."""
        return sigma / 2 * unet((x + 1) / 2, torch.full((N,), sigma / 2)).sample

    for now, following in pairwise(sigmas):
        made = scheduler.step(output(x, now), now, following, x)
        if following:
            again = output(made.prev_sample, following)
            ends = (made.prev_sample, made.derivative)
            made = scheduler.step_correct(again, now, following, x, *ends)
        x = made.prev_sample
    found = sampled(denoiser, timesteps, sampler="heun")
    assert (found - x).abs().max() / x.abs().max() < 1e-5
    ratios = [a / b for a, b in pairwise(sigmas[:-1])]
    assert ratios == pytest.approx([(80 / 0.02) ** (1 / 7)] * 7, rel=0.1)


@torch.no_grad()
def flow_steps(scheduler, network, x, times, **conditions):
    """diffusers' Euler steps at these times."""
    scheduler.set_timesteps(len(times))
    scheduler.sigmas = torch.cat([times, torch.zeros(1)]).float()
    scheduler.timesteps = scheduler.sigmas[:-1] * scheduler.config["num_train_timesteps"]
    for time in scheduler.timesteps:
        output = network(x, time.expand(N), **conditions).sample
        x = scheduler.step(output, time, x).prev_sample
    return x


def times_of(denoiser, timesteps):
    ratio = noise_ratio(denoiser.alphas_cumprod)[timesteps]
    return torch.where(ratio.isinf(), 1.0, ratio / (1 + ratio))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("classes", [None, 4])
def test_a_flow_model_gives_the_samples_of_diffusers(tmp_path, shift, classes):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    denoiser = loaded(of_images(tmp_path, scheduler, num_class_embeds=classes))
    timesteps, y = denoiser.timesteps(10), torch.tensor([0, 1, 2, 3, 0, 1])
    times = times_of(denoiser, timesteps)
    own = FlowMatchEulerDiscreteScheduler(shift=shift)
    own.set_timesteps(10)
    torch.testing.assert_close(times.float()[:-1], own.sigmas[:-2], rtol=0.02, atol=0)
    assert times[0] == 1
    conditions = {} if classes is None else {"class_labels": y}
    x_T = noise(denoiser.shape)
    expected = flow_steps(scheduler, network(tmp_path), x_T, times, **conditions)
    found = sampled(denoiser, timesteps, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOW)


def test_a_flow_model_of_latents_decodes_the_samples_of_diffusers(tmp_path):
    scheduler = FlowMatchEulerDiscreteScheduler()
    denoiser = loaded(latent(tmp_path, AutoencoderKL, scheduler))
    timesteps = denoiser.timesteps(10)
    times = times_of(denoiser, timesteps)
    made = flow_steps(scheduler, network(tmp_path), noise((3, 4, 4)), times)
    found = sampled(denoiser, timesteps)
    torch.testing.assert_close(found, made, rtol=0, atol=FLOW)
    assert denoiser.decode(found).shape == (N, 8, 8, 1)


def test_a_transformer_of_classes_with_a_flow_gives_the_samples_of_diffusers(tmp_path):
    """SiT's layout: DiT without a variance, in velocities."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    denoiser = loaded(dit(tmp_path, scheduler=scheduler, out_channels=3))
    y, timesteps = torch.tensor([0, 1, 2, 3, 4, 0]), denoiser.timesteps(6)
    transformer = network(tmp_path, DiTTransformer2DModel, "transformer")
    times = times_of(denoiser, timesteps)
    made = flow_steps(scheduler, transformer, noise((3, 4, 4)), times, class_labels=y)
    torch.testing.assert_close(sampled(denoiser, timesteps, y), made, rtol=0, atol=FLOW)


def test_a_heun_scheduler_of_flow_has_each_of_its_timesteps_once(tmp_path):
    heun = loaded(of_images(tmp_path / "a", FlowMatchHeunDiscreteScheduler(shift=2.0)))
    euler = loaded(of_images(tmp_path / "b", FlowMatchEulerDiscreteScheduler(shift=2.0)))
    assert heun.timesteps(9) == euler.timesteps(9)
    torch.testing.assert_close(sampled(heun, [999, 60]), sampled(euler, [999, 60]))


SCHEDULERS = {
    "edm": (EDMEulerScheduler(sigma_data=0.6), {}, "DDPMPipeline"),
    "flow": (FlowMatchEulerDiscreteScheduler(shift=3.0), {}, "DDPMPipeline"),
    "score": (ScoreSdeVeScheduler(sigma_max=50.0), NCSNPP, "ScoreSdeVePipeline"),
    "karras": (KarrasVeScheduler(sigma_max=50.0), NCSNPP, "KarrasVePipeline"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_saved_parts_are_read_again_and_by_diffusers(tmp_path, name):
    scheduler, changes, kind = SCHEDULERS[name]
    parts = load_checkpoint(str(of_images(tmp_path / "theirs", scheduler, **changes)), None, None)
    save_parts(parts, tmp_path / "ours")
    before, after = denoiser_of(parts), loaded(tmp_path / "ours")
    assert before.timesteps(7) == after.timesteps(7)
    torch.testing.assert_close(
        sampled(before, [800, 60]), sampled(after, [800, 60]), rtol=0, atol=0
    )
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(theirs).__name__ == kind
    assert type(theirs.scheduler) is type(scheduler)
    kept = {name: theirs.scheduler.config[name] for name in scheduler.config if name[0] != "_"}
    assert kept == {name: value for name, value in scheduler.config.items() if name[0] != "_"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_api_samples_by_every_sampler_refines_and_audits_it(tmp_path, name):
    scheduler, changes, _ = SCHEDULERS[name]
    model = sidepipe.load(of_images(tmp_path, scheduler, **changes), device="cpu")
    settings = {"precision": "32-true"}
    for sampler in SAMPLERS:
        images = model.sample(40, num_inference_steps=5, sampler=sampler, **settings)
        assert len(np.unique(images)) > 20
    refined = model.refine(images, t=60, steps=2, **settings)
    assert refined.shape == images.shape
    assert not np.array_equal(refined, images)
    sets = {"train": images[:20], "heldout": images[20:], "sampled": 100}
    found = sidepipe.audit(model, steps=1, **sets, **settings)
    assert found.num_train == found.num_heldout == 20
    assert np.isfinite(found.scores[["gamma", "probability"]]).all(axis=None)
    with pytest.raises(ValueError, match="num_inference_steps must be in"):
        model.sample(1, num_inference_steps=model.num_train_timesteps + 1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_number_of_steps_has_as_many_levels_from_the_most_noise_on(tmp_path, name):
    scheduler, changes, _ = SCHEDULERS[name]
    denoiser = loaded(of_images(tmp_path, scheduler, **changes))
    T = len(denoiser.alphas_cumprod)
    for steps in (1, 2, 18, 100, T):
        timesteps = denoiser.timesteps(steps)
        assert timesteps == sorted(set(timesteps), reverse=True)
        assert (len(timesteps), timesteps[0]) == (steps, T - 1)
        if name != "flow" and steps > 1:
            assert timesteps[-1] <= 4
    assert denoiser.timesteps(10, "leading")[-1] == 0


def changed(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("edm", {"sigma_data": 0}, "sigma_data of .* must be a number above 0, got 0"),
        ("edm", {"sigma_max": 0.001}, r"sigma_min and sigma_max of .*, got \[0.002, 0.001\]"),
        ("edm", {"sigma_min": "x"}, "cannot be built: TypeError"),
        ("edm", {"prediction_type": "sample"}, "prediction_type of .* does not accept 'sample'"),
        ("edm", {"sigma_schedule": "x"}, "cannot be built: ValueError"),
        ("score", {"sigma_max": 0.5}, "sigma_min and sigma_max of"),
        ("flow", {"use_dynamic_shifting": True}, "must be false, got True; the shift depends on"),
        ("flow", {"invert_sigmas": True}, "invert_sigmas of .* must be false, got True"),
        ("flow", {"shift": -1.0}, "shift of .* must be a number above 0, got -1.0"),
        ("flow", {"num_train_timesteps": 1}, "num_train_timesteps of .* must be a whole number >="),
        ("flow", {"_class_name": "FlowMatchLCMScheduler"}, "models distilled for a few steps"),
        ("flow", {"_class_name": "CMStochasticIterativeScheduler"}, "it may also be one of EDMEu"),
    ],
)
def test_settings_that_are_not_honored_are_refused_by_name(tmp_path, name, values, message):
    scheduler, changes, _ = SCHEDULERS[name]
    folder = of_images(tmp_path, scheduler, **changes)
    changed(folder, "scheduler/scheduler_config.json", **values)
    with pytest.raises(ValueError, match=message) as error:
        check_checkpoint(folder, None, None, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_embedding_type": "learned", "num_train_timesteps": 50}, "time_embedding_type of"),
        (
            {"out_channels": 2},
            "out_channels of .* must be 1, as in_channels, got 2; only models of",
        ),
    ],
)
def test_networks_that_have_no_continuous_time_are_refused(tmp_path, changes, message):
    folder = of_images(tmp_path, FlowMatchEulerDiscreteScheduler(), **changes)
    with pytest.raises(ValueError, match=message):
        check_checkpoint(folder, None, None, None)


def test_a_score_model_of_latents_is_refused(tmp_path):
    folder = latent(tmp_path, scheduler=ScoreSdeVeScheduler())
    with pytest.raises(ValueError, match=r"got 'ScoreSdeVeScheduler'; it is of images in \[0, 1\]"):
        check_checkpoint(folder, None, None, None)
