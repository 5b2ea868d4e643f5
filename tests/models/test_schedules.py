"""A scheduler's config is honored or refused, setting by setting."""

import logging

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.schedulers import KarrasDiffusionSchedulers

from sidepipe.diffusion.timesteps import StepRule
from sidepipe.models.schedules import (
    DISCRETE,
    check_alphas,
    clip_range,
    log_replaced,
    read_schedule,
    step_rule,
)


def config_of(kind=DDPMScheduler, **settings):
    """As `save_pretrained` writes it."""
    return {"_class_name": kind.__name__, **kind(**{"num_train_timesteps": 50, **settings}).config}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.001},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"beta_schedule": "sigmoid"},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
)
def test_betas_and_the_target_are_honored(settings):
    kind = DDPMScheduler if settings.get("beta_schedule") == "sigmoid" else DDIMScheduler
    config = config_of(kind, **settings)
    scheduler = read_schedule(config, "there")
    expected = kind(**{"num_train_timesteps": 50, **settings}).alphas_cumprod
    torch.testing.assert_close(scheduler.alphas_cumprod, expected)
    assert scheduler.config["prediction_type"] == config["prediction_type"]


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("kind", DISCRETE)
def test_every_scheduler_of_discrete_betas_gives_its_own(kind):
    own = getattr(diffusers, kind)
    config = {"_class_name": kind, "num_train_timesteps": 50}
    scheduler = read_schedule(config, "there")
    assert isinstance(scheduler, DDPMScheduler)
    if kind != "DPMSolverSDEScheduler":  # it needs torchsde
        theirs = own(num_train_timesteps=50).alphas_cumprod
        torch.testing.assert_close(scheduler.alphas_cumprod, theirs)


def test_every_karras_scheduler_but_edm_is_known():
    assert {e.name for e in KarrasDiffusionSchedulers} - set(DISCRETE) == {"EDMEulerScheduler"}


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of diffusers
def test_what_a_config_leaves_out_is_its_own_classs_default():
    heun = read_schedule({"_class_name": "HeunDiscreteScheduler", "num_train_timesteps": 50}, "")
    expected = HeunDiscreteScheduler(num_train_timesteps=50).alphas_cumprod
    torch.testing.assert_close(heun.alphas_cumprod, expected)
    assert clip_range(heun) is None
    assert clip_range(read_schedule({}, "")) == 1


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (DDPMScheduler, {}, 1),
        (DDIMScheduler, {"clip_sample": False}, None),
        (DDIMScheduler, {"clip_sample_range": 2.5}, 2.5),
        (PNDMScheduler, {}, 1),  # without the setting, as DDPMScheduler
    ],
)
def test_the_range_of_images_is_honored(kind, settings, expected):
    assert clip_range(read_schedule(config_of(kind, **settings), "there")) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "LCMScheduler"}, "'LCMScheduler'; models distilled for a few steps"),
        ({"_class_name": "TCDScheduler"}, "'TCDScheduler'; models distilled for a few steps"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "for dpm=pretrained it may also be"),
        ({"_class_name": "EDMEulerScheduler"}, "must be one with betas at discrete timesteps"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "got 'ScoreSdeVeScheduler'; for dpm=pretrained"),
        ({"_class_name": "MyScheduler"}, "got 'MyScheduler'"),
        ({"_class_name": None}, "got 'None'"),
        (
            {"prediction_type": "flow_prediction"},
            "'flow_prediction'; a scheduler of betas does not take it; flow models are supported",
        ),
        ({"timestep_spacing": "karras"}, "timestep_spacing of there does not accept 'karras'"),
        ({"steps_offset": -1}, "steps_offset of there must be a whole number >= 0, got -1"),
        ({"prediction_type": None}, "prediction_type of there does not accept 'None'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas of there must be false, got True"),
        ({"thresholding": True}, "thresholding of there must be false, got True; dynamic thres"),
        ({"variance_type": "learned_range"}, "variance_type of there must be fixed, got 'learned_"),
        ({"variance_type": "learned"}, "models that predict their variance"),
        ({"timestep_type": "continuous"}, "timestep_type of there must be discrete"),
        ({"clip_sample_range": 0}, "clip_sample_range of there must be a number above 0, got 0"),
        ({"clip_sample_range": "x"}, "clip_sample_range of there must be a number above 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps of there must be a whole number >= 1"),
        ({"num_train_timesteps": 50.5}, "num_train_timesteps of there must be a whole number"),
        ({"beta_schedule": "unknown"}, "there cannot be built: NotImplementedError: unknown"),
        ({"beta_start": "x"}, "there cannot be built: TypeError"),
        (
            {"beta_end": 2},
            r"alphas_cumprod of there must fall .* got -.* at t = 2\d; betas must",
        ),
        ({"beta_end": 1.0, "num_train_timesteps": 1000}, "must fall at every timestep"),
        ({"beta_start": 0.0}, "got 1 after 1 at t = 0; betas must lie in"),
        ({"beta_start": -0.1}, "got 1.1 after 1 at t = 0"),
        ({"beta_start": float("nan")}, "got nan after 1 at t = 0"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas of there must be num_train_timesteps = 50"),
    ],
)
def test_what_is_not_honored_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read_schedule(config_of() | changes, "there")
    assert "\n" not in str(error.value)


def test_zero_terminal_snr_is_a_schedule_and_zero_before_the_end_is_none():
    check_alphas(DDIMScheduler(50, rescale_betas_zero_snr=True), "there")
    with pytest.raises(ValueError, match=r"got 0 after 0 at t = 2"):
        check_alphas(DDPMScheduler(3, trained_betas=[0.1, 1.0, 0.5]), "there")


def test_settings_of_a_solver_are_logged_as_replaced(caplog):
    with caplog.at_level(logging.INFO):
        log_replaced(config_of(), "there")
        log_replaced(config_of(DDIMScheduler, timestep_spacing="trailing"), "there")
    assert not caplog.text
    with caplog.at_level(logging.INFO):
        log_replaced(config_of(EulerDiscreteScheduler, use_karras_sigmas=True), "there")
    assert "use_karras_sigmas=True is a setting of its solver, which generate.s" in caplog.text


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize(
    ("config", "spacing", "offset", "keeps_noise"),
    [
        (config_of(), "leading", 0, False),
        (config_of(DDIMScheduler, timestep_spacing="trailing"), "trailing", 0, False),
        (config_of(DDIMScheduler, set_alpha_to_one=False, steps_offset=1), "leading", 1, True),
        (config_of(PNDMScheduler), "leading", 0, True),
        ({"_class_name": "PNDMScheduler"}, "leading", 0, True),
        ({"_class_name": "EulerDiscreteScheduler"}, "linspace", 0, False),
        (config_of(EulerDiscreteScheduler, final_sigmas_type="sigma_min"), "linspace", 0, True),
    ],
)
def test_a_scheduler_keeps_its_timesteps_and_its_last_noise(config, spacing, offset, keeps_noise):
    scheduler = read_schedule(config, "there")
    last = float(scheduler.alphas_cumprod[0]) if keeps_noise else 1.0
    expected = StepRule(spacing=spacing, steps_offset=offset, last_alpha_bar=last)
    assert step_rule(scheduler) == expected
    again = read_schedule({"_class_name": "DDPMScheduler", **scheduler.config}, "there")
    assert step_rule(again) == expected  # as an artifact keeps it
