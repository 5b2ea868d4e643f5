"""Noise schedules of diffusers' schedulers: which are supported, and why others are not.

A scheduler holds properties of a model (betas, what the network predicts, the range of its images),
which timesteps it takes and where the last step ends. All are read from its config. Its solver is
not: `generate.sampler` takes its place. `continuous` has the schedulers without betas.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sidepipe.base.pretrained import one_line
from sidepipe.base.settings import require, require_known, tried
from sidepipe.diffusion.timesteps import SPACINGS, StepRule
from sidepipe.models.continuous import (
    CONTINUOUS,
    FLOW,
    levels_of,
    own_steps,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sidepipe.diffusion.continuous import Levels

log = logging.getLogger(__name__)

SCHEDULER = "scheduler_config.json"
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Schedulers of models with betas at discrete timesteps, for any rule of steps.
DISCRETE = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler"),
    *("PNDMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler"),
    "SASolverScheduler",
)
DISTILLED = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")
# Settings of other schedulers than DDPMScheduler that are honored.
OF_OTHERS = ("set_alpha_to_one", "final_sigmas_type")
# Settings of solvers: the value that needs no message, and the setting that replaces the solver.
REPLACED = {
    **{
        f"use_{name}": (False, "generate.sampler")
        for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
    },
    "variance_type": ("fixed_small", "generate.eta"),
    "stochastic_sampling": (False, "generate.eta"),
}
WITH_BETAS = (
    "a scheduler of betas does not take it; flow models are supported with a FlowMatch scheduler"
)


class Schedule(NamedTuple):
    """The properties of a model that its scheduler holds.

    levels: of a network of continuous time, None for one with betas. The rest as in `Denoiser`.
    """

    alphas_cumprod: Tensor
    prediction_type: str
    step_rule: StepRule
    clip_range: float | None
    levels: Levels | None = None

    def called(self, network: Any) -> Any:
        """The network, as samplers call it."""
        from sidepipe.diffusion.continuous import Preconditioned

        return network if self.levels is None else Preconditioned(network, self.levels)


def schedule_from(scheduler: Any) -> Schedule:
    """The properties that a scheduler of `read_schedule` or `read_continuous` holds."""
    if type(scheduler).__name__ in CONTINUOUS:
        levels = levels_of(scheduler)
        steps = own_steps(scheduler, levels)
        return Schedule(levels.alphas_cumprod, levels.prediction_type, steps, None, levels)
    kind, limit = scheduler.config["prediction_type"], clip_range(scheduler)
    return Schedule(scheduler.alphas_cumprod, kind, step_rule(scheduler), limit)


def check_scheduler(
    config: Mapping[str, Any], kind: str, where: str, learned_variance: bool = False
) -> None:
    """Raises ValueError for the first setting that is not supported; kind: the class."""
    remedy = f"for dpm=pretrained it may also be one of {', '.join(CONTINUOUS)}"
    if kind in DISTILLED:
        remedy = "models distilled for a few steps are not supported"
    rule = "one with betas at discrete timesteps, such as DDPM or DDIM"
    require(kind in DISCRETE, f"the scheduler of {where}", rule, kind, remedy)
    steps = config.get("num_train_timesteps")
    whole = isinstance(steps, int) and steps >= 1
    require(whole, f"num_train_timesteps of {where}", "a whole number >= 1", steps)
    predicts = str(config.get("prediction_type"))
    name, rule = f"prediction_type of {where}", f"one of {', '.join(PREDICTIONS)}"
    require(not predicts.startswith("flow"), name, rule, predicts, WITH_BETAS)
    require_known(name, predicts, PREDICTIONS)
    require_known(f"timestep_spacing of {where}", str(config.get("timestep_spacing")), SPACINGS)
    offset = config.get("steps_offset")
    whole = isinstance(offset, int) and offset >= 0
    require(whole, f"steps_offset of {where}", "a whole number >= 0", offset)
    learned = config.get("variance_type") in ("learned", "learned_range") and not learned_variance
    remedy = "models that predict their variance are not supported"
    require(not learned, f"variance_type of {where}", "fixed", config.get("variance_type"), remedy)
    flows = config.get("use_flow_sigmas")
    require(not flows, f"use_flow_sigmas of {where}", "false", flows, WITH_BETAS)
    continuous = config.get("timestep_type") == "continuous"
    remedy = "continuous timesteps are not supported"
    require(not continuous, f"timestep_type of {where}", "discrete", "continuous", remedy)
    remedy = (
        "dynamic thresholding is not supported; set it to false there to sample with clip_sample"
    )
    thresholding = config.get("thresholding")
    require(not thresholding, f"thresholding of {where}", "false", thresholding, remedy)
    limit = config.get("clip_sample_range", 1.0)
    fits = isinstance(limit, int | float) and limit > 0
    require(fits, f"clip_sample_range of {where}", "a number above 0", limit)


def check_noise_schedule(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a scheduler of the config group `diffusion` that is not supported."""
    scheduler = tried("diffusion", config)
    check_scheduler(scheduler.config, type(scheduler).__name__, "diffusion")
    check_alphas(scheduler, "diffusion")


def read_schedule(config: Mapping[str, Any], where: str, learned_variance: bool = False) -> Any:
    """The DDPMScheduler of a scheduler's config, after every check; where: its file.

    A setting that the config lacks has the default of the scheduler's own class.
    learned_variance: whether the network predicts a variance, so that the config may name it.
    """
    import diffusers

    kind = str(config.get("_class_name", "DDPMScheduler"))
    own = getattr(diffusers, kind, None) if kind in DISCRETE else None
    known = _defaults(diffusers.DDPMScheduler)
    defaults = known if own is None else {**known, **_defaults(own)}
    settings = {**defaults, **{k: v for k, v in config.items() if not k.startswith("_")}}
    check_scheduler(settings, kind, where, learned_variance)
    # diffusers keeps the settings of other schedulers in the config, and saves them again.
    taken = {k: settings[k] for k in (*known, *OF_OTHERS) if settings.get(k) is not None}
    try:
        scheduler: Any = diffusers.DDPMScheduler.from_config(taken)
    except Exception as error:  # of many classes
        raise ValueError(f"{where} cannot be built: {one_line(error)}") from None
    check_alphas(scheduler, where)
    return scheduler


def _defaults(kind: Any) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def log_replaced(config: Mapping[str, Any], where: str) -> None:
    """Logs the settings of a solver that the settings of sampling stages replace."""
    own = config.get("_class_name") in FLOW  # their sigmas are those of the steps
    replaced = [k for k in REPLACED if not (own and k.endswith("_sigmas"))]
    given = [k for k in replaced if config.get(k) not in (None, REPLACED[k][0])]
    if given:
        text = ", ".join(f"{name}={config[name]}" for name in given)
        by = " and ".join(sorted({REPLACED[name][1] for name in given}))
        log.info("%s: %s is a setting of its solver, which %s replaces", where, text, by)


def check_alphas(scheduler: Any, where: str) -> None:
    """Raises ValueError unless alphas_cumprod falls at every timestep, from below 1 to 0."""
    values, steps = scheduler.alphas_cumprod.double(), scheduler.config["num_train_timesteps"]
    name = f"trained_betas of {where}"
    require(len(values) == steps, name, f"num_train_timesteps = {steps} numbers", len(values))
    falls = [1.0, *values.tolist()]
    wrong = [t for t in range(steps) if not falls[t] > falls[t + 1] >= 0]
    if wrong:
        t = wrong[0]
        raise ValueError(
            f"alphas_cumprod of {where} must fall at every timestep, from below 1 to 0, got "
            f"{falls[t + 1]:.6g} after {falls[t]:.6g} at t = {t}; betas must lie in (0, 1): change "
            "beta_start, beta_end or trained_betas"
        )


def step_rule(scheduler: Any) -> StepRule:
    """Which timesteps the scheduler takes, and where its last step ends."""
    config = scheduler.config
    # `sigma_min`, of schedulers in sigmas, is the noise of t = 0 as well.
    keeps_noise = config.get("set_alpha_to_one") is False
    keeps_noise |= config.get("final_sigmas_type") == "sigma_min"
    return StepRule(
        spacing=config["timestep_spacing"],
        steps_offset=config["steps_offset"],
        last_alpha_bar=float(scheduler.alphas_cumprod[0]) if keeps_noise else 1.0,
    )


def clip_range(scheduler: Any) -> float | None:
    """The bound to which pred_x_0 of images is clipped, on both sides of 0; None for none."""
    config = scheduler.config
    return float(config["clip_sample_range"]) if config["clip_sample"] else None
