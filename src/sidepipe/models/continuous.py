"""Schedulers of continuous time: EDM, score-based (VE) and rectified flow.

From their config come the levels of noise at which the network is called, and the steps that the
scheduler would take. Their solver is not used: `generate.sampler` takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidepipe.base.pretrained import one_line
from sidepipe.base.settings import require, require_known
from sidepipe.diffusion.timesteps import StepRule

if TYPE_CHECKING:
    from sidepipe.diffusion.continuous import Levels

EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
SCORE, KARRAS_VE = "ScoreSdeVeScheduler", "KarrasVeScheduler"
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
CONTINUOUS = (*EDM, SCORE, KARRAS_VE, *FLOW)
# Pipelines of diffusers with these schedulers; EDM and flow have none without text.
PIPELINES = {SCORE: "ScoreSdeVePipeline", KARRAS_VE: "KarrasVePipeline"}
DYNAMIC = (
    "the shift depends on the size of images, which no pipeline without text states; set shift and "
    '"use_dynamic_shifting": false there'
)


def read_continuous(config: Mapping[str, Any], kind: str, where: str) -> Any:
    """The scheduler of this config, of a class in CONTINUOUS, after every check.

    Raises ValueError for the first setting that is not supported; where: its file.
    """
    import diffusers

    try:
        scheduler: Any = getattr(diffusers, kind).from_config(dict(config))
    except Exception as error:  # of many classes
        raise ValueError(f"{where} cannot be built: {one_line(error)}") from None
    settings = scheduler.config
    if kind in FLOW:
        _check_flow(settings, where)
        return scheduler
    least, most = settings["sigma_min"], settings["sigma_max"]
    fits = all(_is_positive(sigma) for sigma in (least, most)) and least < most and most >= 1
    rule = "numbers above 0, the latter larger and at least 1"
    require(fits, f"sigma_min and sigma_max of {where}", rule, [least, most])
    if kind in EDM:
        data, predicts = settings["sigma_data"], settings["prediction_type"]
        require(_is_positive(data), f"sigma_data of {where}", "a number above 0", data)
        require_known(f"prediction_type of {where}", predicts, ("epsilon", "v_prediction"))
        thresholding = settings.get("thresholding")
        remedy = "dynamic thresholding is not supported"
        require(not thresholding, f"thresholding of {where}", "false", thresholding, remedy)
    return scheduler


def _check_flow(settings: Mapping[str, Any], where: str) -> None:
    steps, shift = settings["num_train_timesteps"], settings["shift"]
    whole = isinstance(steps, int) and steps >= 2
    require(whole, f"num_train_timesteps of {where}", "a whole number >= 2", steps)
    require(_is_positive(shift), f"shift of {where}", "a number above 0", shift)
    dynamic = settings.get("use_dynamic_shifting")
    require(not dynamic, f"use_dynamic_shifting of {where}", "false", dynamic, DYNAMIC)
    inverted, remedy = settings.get("invert_sigmas"), "time 1 has to be pure noise"
    require(not inverted, f"invert_sigmas of {where}", "false", inverted, remedy)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def check_called(scheduler: Any, config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where the network of this config cannot be called at any time."""
    if type(scheduler).__name__ in CONTINUOUS:
        kind, remedy = config.get("time_embedding_type"), "a learned one has whole timesteps alone"
        require(kind != "learned", f"time_embedding_type of {where}", "another", kind, remedy)
        found, channels = config["out_channels"], config["in_channels"]
        rule, remedy = f"{channels}, as in_channels", "only models of betas predict a variance"
        require(found in (None, channels), f"out_channels of {where}", rule, found, remedy)


def levels_of(scheduler: Any) -> Levels:
    """How a network is called that was trained for this scheduler."""
    from sidepipe.diffusion.continuous import edm_levels, flow_levels, ve_levels

    kind, config = type(scheduler).__name__, scheduler.config
    if kind in FLOW:
        return flow_levels(float(config["num_train_timesteps"]))
    if kind in EDM:
        predicts_v = config["prediction_type"] == "v_prediction"
        return edm_levels(config["sigma_data"], config["sigma_max"], predicts_v)
    return ve_levels(_sigmas(scheduler)[1])


def _sigmas(scheduler: Any) -> tuple[float, float]:
    """The least and the most noise of images in [-1, 1]."""
    # diffusers' ScoreSdeVePipeline has images in [0, 1], and half their noise.
    unit = 2.0 if type(scheduler).__name__ == SCORE else 1.0
    return unit * scheduler.config["sigma_min"], unit * scheduler.config["sigma_max"]


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnSteps(StepRule):
    """The levels nearest to those of the scheduler; with a spacing, evenly spaced levels."""

    scheduler: Any
    levels: Levels

    def timesteps(
        self, num_train_timesteps: int, num_inference_steps: int, spacing: str | None = None
    ) -> list[int]:
        from sidepipe.diffusion.continuous import nearest_levels

        if spacing is not None or not 1 <= num_inference_steps <= num_train_timesteps:
            return super().timesteps(num_train_timesteps, num_inference_steps, spacing)
        alphas_cumprod = self.levels.alphas_cumprod
        return nearest_levels(alphas_cumprod, self._ratios(num_inference_steps))

    def _ratios(self, num_inference_steps: int) -> list[float]:
        """s / a of the scheduler's steps."""
        from sidepipe.diffusion.continuous import noise_ratio

        kind = type(self.scheduler).__name__
        if kind in (SCORE, KARRAS_VE):
            least, most = noise_ratio(self.levels.alphas_cumprod)[[0, -1]].tolist()
            least = max(least, _sigmas(self.scheduler)[0])
            # Both schedules are geometric. KarrasVePipeline takes the squares for sigmas.
            step = (least / most) ** (1 / max(num_inference_steps - 1, 1))
            return [most * step**i for i in range(num_inference_steps)]
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(num_inference_steps)
        if kind in EDM:
            return scheduler.sigmas[:-1].tolist()
        return flow_ratios(scheduler)


def flow_ratios(scheduler: Any) -> list[float]:
    """s / a of the steps that are set in the scheduler of a flow."""
    # A Heun scheduler has most of its timesteps twice.
    units = scheduler.config["num_train_timesteps"]
    times = [time / units for time in dict.fromkeys(scheduler.timesteps.tolist())]
    return [time / (1 - time) if time < 1 else math.inf for time in times]


def own_steps(scheduler: Any, levels: Levels) -> OwnSteps:
    """The scheduler's steps, and the noise after the last: none, or `sigma_min` of EDM."""
    from sidepipe.diffusion.continuous import nearest_levels

    last = 1.0
    if scheduler.config.get("final_sigmas_type") == "sigma_min":
        t = nearest_levels(levels.alphas_cumprod, [scheduler.config["sigma_min"]])[0]
        last = float(levels.alphas_cumprod[t])
    return OwnSteps(scheduler=scheduler, levels=levels, last_alpha_bar=last)
