"""Guided sampling of one labeled set of images: where and how hard a surrogate steers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from sidepipe.base.files import write_json
from sidepipe.base.settings import require
from sidepipe.diffusion.timesteps import Guidance, StepRule
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.classifier.stage import load_quality
from sidepipe.stages.dpm.stage import TrainedDPM
from sidepipe.stages.extract.schedule import (
    Schedule,
    check_schedule,
    factors_between,
    schedule_factors,
)
from sidepipe.stages.generate.stage import Sampling, load_denoiser
from sidepipe.stages.lora.stage import Lora, load_training_evaluations

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sidepipe.diffusion.denoiser import Denoiser

log = logging.getLogger(__name__)

# Images over whose labels a gradient's cost is counted; so many are timed at once at most.
COUNTED = 64


@dataclass(frozen=True)
class Aim:
    """What a surrogate is made of, and what it aims at.

    images, and the artifact (or a round's folder) with their labels; targets: of every image that
    is sampled, its label; num_targets: how many labels could have been drawn.
    """

    images: UInt8[np.ndarray, "m h w c"]
    label: Path
    targets: Int64[np.ndarray, "n"]
    num_targets: int


@dataclass(frozen=True, kw_only=True)
class GuidedSampling(Sampling):
    """Settings of guidance.

    surrogate: "classifier" (the paper's), "posterior" (closed form over the labeled images, no
    training), "lora" (the model itself, adapted to labels: the paper's of large models) or "none"
    (plain sampling). posterior_neighbors: images, of the label and of all, that the posterior's
    sums are cut to; None for no cut. guidance_scale: lambda; of "lora" s in eps + s (eps_label -
    eps), 1 for the label alone, where eps need not be evaluated.
    guidance_schedule: what lambda is multiplied by at t: "constant", 1; "classifier_quality",
    max(0, 1 - CE(t) / H(labels)); or points [t, factor] with ascending t, linear between them and
    constant beyond. max_guidance_norm: longest move of eps by guidance, in lengths of eps; None for
    no limit. guide_through: what the surrogate sees, "x_t" or "pred_x_0". t_min, t_max: timesteps
    that are guided, both included; t_max None for no upper end.
    """

    name: ClassVar[str] = "extract"
    surrogate: Literal["classifier", "posterior", "lora", "none"]
    posterior_neighbors: int | None
    guidance_scale: float
    guidance_schedule: Schedule
    max_guidance_norm: float | None
    guide_through: Literal["x_t", "pred_x_0"]
    t_min: int
    t_max: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.guidance_scale >= 0, "extract.guidance_scale", ">= 0", self.guidance_scale)
        require(self.t_min >= 0, "extract.t_min", ">= 0", self.t_min)
        if self.t_max is not None:
            rule = f">= extract.t_min = {self.t_min}"
            require(
                self.t_max >= self.t_min, "extract.t_max", rule, self.t_max, "swap or widen them"
            )
        norm, count = self.max_guidance_norm, self.posterior_neighbors
        require(norm is None or norm > 0, "extract.max_guidance_norm", "> 0 or null", norm)
        require(count is None or count >= 1, "extract.posterior_neighbors", ">= 1 or null", count)
        if self.surrogate == "posterior":
            self._require_only("guide_through", "x_t", "it is exact there and knows the noise")
        if self.surrogate == "lora":
            self._require_only("guidance_schedule", "constant", "there is no gradient")
            self._require_only("guide_through", "x_t", "there is no gradient")
            self._require_only("max_guidance_norm", None, "there is no gradient")
        check_schedule(self.guidance_schedule, self.surrogate)
        prompts, remedy = self.prompts, "a surrogate takes the place of prompts; or surrogate=none"
        require(self.surrogate == "none" or not prompts, "extract.prompts", "null", prompts, remedy)

    def _require_only(self, name: str, only: str | None, why: str) -> None:
        value = getattr(self, name)
        rule = f"{only!r} where extract.surrogate is {self.surrogate!r}"
        require(value == only, f"extract.{name}", rule, value, f"{why}; or surrogate=classifier")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        if isinstance(lora := upstream.get("lora"), Lora):
            lora.check_peft()
        dpm = upstream["dpm"]
        if self.surrogate == "none" or self.guidance_scale == 0 or not isinstance(dpm, TrainedDPM):
            return
        steps = dpm.noise_schedule["num_train_timesteps"]
        rule = f"< diffusion.num_train_timesteps = {steps}, or nothing is guided"
        require(self.t_min < steps, "extract.t_min", rule, self.t_min)
        spacing = dpm.noise_schedule.get("timestep_spacing", "leading")
        offset = dpm.noise_schedule.get("steps_offset", 0)
        self._check_guides_somewhere(steps, StepRule(spacing=spacing, steps_offset=offset))

    def _check_guides_somewhere(self, num_train_timesteps: int, step_rule: StepRule) -> None:
        timesteps = step_rule.timesteps(
            num_train_timesteps, self.num_inference_steps, self.timestep_spacing
        )
        within = self._guidance().within(timesteps)
        require(
            len(within) > 0,
            "[extract.t_min, extract.t_max]",
            f"an interval with one of the {len(timesteps)} timesteps from {timesteps[-1]} to "
            f"{timesteps[0]} that are evaluated, or nothing is guided",
            [self.t_min, self.t_max],
        )
        if isinstance(self.guidance_schedule, list):
            factors = factors_between(self.guidance_schedule, num_train_timesteps)
            rule = f"above 0 at one of the guided timesteps, {within[-1]} to {within[0]}"
            above = any(factors[t] > 0 for t in within)
            require(above, "extract.guidance_schedule", rule, self.guidance_schedule)

    def sample_guided(self, job: Job, aim: Aim, cost_file: Path, first: int = 0) -> dict[str, Any]:
        """Writes the images' shards; returns what was spent, in evaluations.

        cost_file: keeps what a gradient costs, which a run that is resumed does not count again.
        first: how many images an earlier call made, and accounted for.
        """
        from sidepipe.stages.extract.cost import with_evaluations
        from sidepipe.stages.extract.surrogates import load_surrogate

        denoiser = load_denoiser(job.inputs["dpm"], self.precision)
        alphas_cumprod = denoiser.alphas_cumprod
        factors = self._factors(job.inputs, len(alphas_cumprod))
        guided = self._guided_timesteps(denoiser, factors)
        assert self.surrogate != "none"
        surrogate = load_surrogate(
            self.surrogate,
            job.inputs,
            denoiser,
            self.precision,
            aim.images,
            aim.label,
            neighbors=self.posterior_neighbors,
        )
        cut = self._cut_error(surrogate, aim, guided, job.runtime)
        if not cost_file.exists():
            cost = self._gradient_cost(
                denoiser, surrogate, guided, aim.targets[first:], job.runtime
            )
            write_json(cost_file, cost)
        shaped, guidance = self._shaped(surrogate, factors, alphas_cumprod), self._guidance()
        if guided:  # from the first to the last of them, for at the first networks are compiled
            guidance = replace(guidance, t_min=guided[-1], t_max=guided[0])
        spent = self.sample(job, shaped, guidance, aim.targets, first)
        spent["surrogate_gradients"] = spent["num_images"] * len(guided)
        if self.surrogate == "lora":
            spent["training_evaluations"] = load_training_evaluations(job.inputs["lora"])
        cost = json.loads(cost_file.read_text())["gradient_cost"]
        return {**with_evaluations(spent, cost), **cut}

    def _guidance(self) -> Guidance:
        return Guidance(guidance_scale=self.guidance_scale, t_min=self.t_min, t_max=self.t_max)

    def _factors(self, inputs: Mapping[str, Path], num_train_timesteps: int) -> Tensor:
        """What lambda is multiplied by at each t."""
        measured = self.guidance_schedule == "classifier_quality"
        quality = load_quality(inputs["classifier"]) if measured else []
        return schedule_factors(self.guidance_schedule, quality, num_train_timesteps)

    def _guided_timesteps(self, denoiser: Denoiser, factors: Tensor) -> list[int]:
        """Timesteps at which the surrogate is evaluated, most noise first."""
        timesteps = denoiser.timesteps(self.num_inference_steps, self.timestep_spacing)
        guided = [t for t in self._guidance().within(timesteps) if factors[t] > 0]
        if not guided and self.guidance_scale > 0:
            log.warning("nothing is guided: at no timestep in the interval is the factor above 0")
        return guided

    def _shaped(self, surrogate: nn.Module, factors: Tensor, alphas_cumprod: Tensor) -> nn.Module:
        """The surrogate in what the settings ask for, from the inside out."""
        from sidepipe.diffusion.shaping import ClippedNorm, ScaledByNoise, ThroughPredX0

        if self.guide_through == "pred_x_0":
            surrogate = ThroughPredX0(surrogate, alphas_cumprod)
        if self.guidance_schedule != "constant":
            surrogate = ScaledByNoise(surrogate, factors)
        if self.max_guidance_norm is not None and self.guidance_scale > 0:
            surrogate = ClippedNorm(
                surrogate, self.guidance_scale, self.max_guidance_norm, alphas_cumprod
            )
        return surrogate

    def _cut_error(
        self, surrogate: nn.Module, aim: Aim, guided: list[int], runtime: Runtime
    ) -> dict[str, Any]:
        """For the summary: the error of a cut posterior at some of the guided timesteps."""
        from sidepipe.diffusion.guidance import Posterior
        from sidepipe.diffusion.nearest import NearestPosterior
        from sidepipe.stages.extract.surrogates import judge_cut, labeled_images

        if not isinstance(surrogate, NearestPosterior) or not guided:
            return {}
        full = Posterior(*labeled_images(aim.images, aim.label), surrogate.alphas_cumprod)
        rng = np.random.default_rng(self.seed)
        return {"cut_error": judge_cut(surrogate, full, guided, rng, runtime.torch_device())}

    def _gradient_cost(
        self,
        denoiser: Denoiser,
        surrogate: nn.Module,
        guided: list[int],
        targets: Int64[np.ndarray, "n"],
        runtime: Runtime,
    ) -> dict[str, float]:
        """A gradient in forwards of the model, by operations and by seconds; 0 if none is taken."""
        if not guided:
            return {"gradient_cost": 0.0, "gradient_seconds": 0.0}
        import torch

        from sidepipe.stages.extract.cost import gradient_cost, gradient_seconds

        device, middle = runtime.torch_device(), guided[len(guided) // 2]
        y = torch.from_numpy(targets[:COUNTED]).to(device)
        size = runtime.sampling_batch_size or COUNTED
        denoiser.to(device)
        surrogate.to(device)
        cost = gradient_cost(denoiser, surrogate, y, middle)
        seconds = gradient_seconds(denoiser, surrogate, y[:size], middle, self.precision)
        # Not on a device: it may be sent to other processes, and the model is loaded once more.
        surrogate.cpu()
        denoiser.cpu()
        log.info(
            "a gradient of the surrogate costs %.3g forwards of the UNet; here it takes %.2g times "
            "as long as one",
            *(cost, seconds),
        )
        return {"gradient_cost": cost, "gradient_seconds": seconds}
