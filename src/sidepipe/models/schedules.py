"""Noise schedules of diffusers' schedulers: which are supported, and why others are not.

A scheduler has properties of the model (betas, prediction type, range of images) and a rule for
steps. Its config gives the former; the settings of the sampling stages replace the latter.
"""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from sidepipe.base.pretrained import one_line
from sidepipe.base.settings import require, require_known

log = logging.getLogger(__name__)

PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Schedulers of models with betas at discrete timesteps, whichever steps they take.
DISCRETE = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler"),
    *("PNDMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler"),
    "SASolverScheduler",
)
DISTILLED = ("LCMScheduler", "TCDScheduler")
# Rules for steps: the value that is not logged, and the setting that replaces the rule.
REPLACED = {
    "timestep_spacing": ("leading", "generate.timestep_spacing"),
    **{
        f"use_{name}": (False, "generate.timestep_spacing")
        for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
    },
    "set_alpha_to_one": (True, "generate.sampler"),
    "final_sigmas_type": ("zero", "generate.sampler"),
    "variance_type": ("fixed_small", "generate.eta"),
}


def check_scheduler(config: Mapping[str, Any], kind: str, where: str) -> None:
    """Raises ValueError for the first setting that is not supported; kind: the class."""
    remedy = "score-based, consistency and flow models are not supported"
    if kind in DISTILLED:
        remedy = "models distilled for a few steps are not supported"
    rule = "one with betas at discrete timesteps, such as DDPM or DDIM"
    require(kind in DISCRETE, f"the scheduler of {where}", rule, kind, remedy)
    steps = config.get("num_train_timesteps")
    whole = isinstance(steps, int) and steps >= 1
    require(whole, f"num_train_timesteps of {where}", "a whole number >= 1", steps)
    require_known(f"prediction_type of {where}", str(config.get("prediction_type")), PREDICTIONS)
    learned = config.get("variance_type") in ("learned", "learned_range")
    remedy = "models that predict their variance are not supported"
    require(not learned, f"variance_type of {where}", "fixed", config.get("variance_type"), remedy)
    remedy = "flow models are not supported"
    flows = bool(config.get("use_flow_sigmas"))
    require(
        not flows, f"use_flow_sigmas of {where}", "false", config.get("use_flow_sigmas"), remedy
    )
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


def read_schedule(config: Mapping[str, Any], where: str) -> Any:
    """The DDPMScheduler of a scheduler's config, after every check; where: its file.

    A setting that the config lacks has the default of the scheduler's own class.
    """
    import diffusers

    kind = str(config.get("_class_name", "DDPMScheduler"))
    own = getattr(diffusers, kind, None) if kind in DISCRETE else None
    known = _defaults(diffusers.DDPMScheduler)
    defaults = known if own is None else {**known, **_defaults(own)}
    settings = {**defaults, **{k: v for k, v in config.items() if not k.startswith("_")}}
    check_scheduler(settings, kind, where)
    taken = {k: v for k, v in settings.items() if k in known and (v is not None)}
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
    """Logs the scheduler's rules for steps that the settings of sampling stages replace."""
    given = [k for k in REPLACED if config.get(k) not in (None, REPLACED[k][0])]
    if given:
        text = ", ".join(f"{name}={config[name]}" for name in given)
        by = " and ".join(sorted({REPLACED[name][1] for name in given}))
        log.info("%s: %s is a rule for steps, which %s replaces", where, text, by)


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


def clip_range(scheduler: Any) -> float | None:
    """The bound to which pred_x_0 of images is clipped, on both sides of 0; None for none."""
    config = scheduler.config
    return float(config["clip_sample_range"]) if config["clip_sample"] else None
