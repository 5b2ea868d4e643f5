"""One attack: plain samples, or samples that a surrogate guides toward labels.

`tune` runs it on trial, and `extract` runs it for its result.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from jaxtyping import Int64

from sidepipe.base.files import write_json
from sidepipe.base.images import Images
from sidepipe.base.settings import require
from sidepipe.diffusion.timesteps import StepRule
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.attack.guidance import AttackGuidance
from sidepipe.stages.attack.schedule import schedule_factors
from sidepipe.stages.attack.strategies import Material, Surrogate
from sidepipe.stages.classifier.stage import load_quality
from sidepipe.stages.dpm.stage import DPM
from sidepipe.stages.dpm.trained import TrainedDPM
from sidepipe.stages.generate.stage import Sampling, load_denoiser
from sidepipe.stages.label.stage import load_cohesion, load_images, load_sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sidepipe.diffusion.denoiser import Denoiser

log = logging.getLogger(__name__)

# The file, in an artifact or in a round's folder, with the cost of a gradient.
COST = "gradient_cost.json"
# The parts of an attack's cost in its summary.
SPENT = ("unet_forwards", "surrogate_gradients", "network_evaluations")
# Settings that trials can choose: those of guidance, and those of `refine` after this prefix.
GUIDANCE = tuple(field.name for field in fields(AttackGuidance))
REFINE = "refine."
# The number of images whose labels count for a gradient's cost; at most so many are timed at once.
COUNTED = 64


@dataclass(frozen=True)
class Aim:
    """The labeled images of a surrogate, and the labels at which it aims.

    label: the artifact (or a round's folder) with the labels of the images. targets: the label of
    every image that is sampled; num_targets: the number of labels that could have been drawn. All
    are None, and 0, for a surrogate without labels.
    """

    images: Images | None = None
    label: Path | None = None
    targets: Int64[np.ndarray, "n"] | None = None
    num_targets: int = 0


@dataclass(frozen=True, kw_only=True)
class Attack(Sampling):
    """Samples from a model, plain or guided.

    surrogate: the source of guidance (see `strategies`). guidance: its strength, timesteps and
    targets; unused for the surrogate "none".
    """

    name: ClassVar[str] = "extract"
    version: ClassVar[int] = 5
    surrogate: Surrogate
    guidance: AttackGuidance

    def __post_init__(self) -> None:
        super().__post_init__()
        self.surrogate.check_guidance(self.guidance)
        plain = not self.surrogate.has_labels
        remedy = "a surrogate replaces prompts; or surrogate=none"
        require(plain or not self.prompts, "extract.prompts", "null", self.prompts, remedy)

    @property
    def can_be_tuned(self) -> bool:
        """Whether trials can choose a setting; plain sampling without refinement has none."""
        refines = bool(self.refine.chains) and self.surrogate.samples
        return self.surrogate.guides or refines

    def with_tried(self, tried: Mapping[str, Any]) -> Self:
        """This attack with some settings of guidance and of `refine` changed."""
        of_guidance = {name: value for name, value in tried.items() if name in GUIDANCE}
        of_refine = {n.removeprefix(REFINE): v for n, v in tried.items() if n.startswith(REFINE)}
        guidance = replace(self.guidance, **of_guidance)
        return replace(self, guidance=guidance, refine=replace(self.refine, **of_refine))

    def tried_settings(self) -> dict[str, Any]:
        """The settings that trials can choose, by the names of `with_tried`."""
        of_refine = {f"{REFINE}{name}": value for name, value in vars(self.refine).items()}
        return {**vars(self.guidance), **of_refine}

    def inputs(self) -> tuple[str, ...]:
        return (*super().inputs(), *self.surrogate.reads)

    def unused(self) -> tuple[str, ...]:
        return super().unused() if self.surrogate.guides else (*super().unused(), "guidance")

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        used = super().key_settings(settings)
        if "guidance" in used and self.guidance.targets != "top_cohesion":
            own = {n: v for n, v in used["guidance"].items() if n != "target_fraction"}
            return {**used, "guidance": own}
        return used

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        self.surrogate.check(upstream)
        dpm = upstream["dpm"]
        guides = self.surrogate.guides and self.guidance.guidance_scale > 0
        if not guides or not isinstance(dpm, TrainedDPM):
            return
        steps = dpm.noise_schedule["num_train_timesteps"]
        spacing = dpm.noise_schedule.get("timestep_spacing", "leading")
        step_rule = StepRule(
            spacing=spacing, steps_offset=dpm.noise_schedule.get("steps_offset", 0)
        )
        timesteps = step_rule.timesteps(steps, self.num_inference_steps, self.timestep_spacing)
        self.guidance.check_guides_somewhere(timesteps, steps)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check_parts(upstream, runtime)
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        found, remedy = dpm.num_classes(), "its classes are conditions already"
        plain = not self.surrogate.has_labels or found is None
        takes_null = dpm.has_null_class() and "lora" not in self.surrogate.reads
        rule = f"none for a model of {found} classes"
        require(plain or takes_null, "extract.surrogate", rule, self.surrogate.name, remedy)

    def run(self, job: Job) -> dict[str, Any]:
        """Makes all images at once."""
        if not self.surrogate.has_labels:
            np.save(job.folder / "targets.npy", np.full(self.num_images, -1, np.int64))
            if not self.surrogate.guides:
                return self.sample_plain(job)
            return self.sample_guided(job, Aim(), job.folder / COST)
        label = job.inputs["label"]
        targets, num_targets = self.draw_targets(label)
        np.save(job.folder / "targets.npy", targets)
        aim = Aim(load_images(label, job.inputs["generate"]), label, targets, num_targets)
        return {
            **self.sample_guided(job, aim, job.folder / COST),
            "num_targets": num_targets,
        }

    def sample_plain(self, job: Job, first: int = 0) -> dict[str, Any]:
        """As `sample_guided`, without guidance."""
        from sidepipe.stages.attack.cost import with_evaluations

        return with_evaluations(self.sample(job, first=first), 0.0)

    def sample_guided(self, job: Job, aim: Aim, cost_file: Path, first: int = 0) -> dict[str, Any]:
        """Writes the images' shards; returns the cost, in evaluations.

        cost_file: keeps the cost of a gradient, so that a resumed run does not count it again.
        first: the number of images that an earlier call made, and accounted for.
        """
        from sidepipe.stages.attack.cost import with_evaluations

        denoiser = load_denoiser(
            job.inputs["dpm"], self.precision, by_class=not self.surrogate.has_labels
        )
        alphas_cumprod = denoiser.alphas_cumprod
        factors = self._factors(job.inputs, len(alphas_cumprod))
        guided = self._guided_timesteps(denoiser, factors)
        device = job.runtime.torch_device()
        material = Material(job.inputs, denoiser, self.precision, aim.images, aim.label, device)
        surrogate = self.surrogate.build(material)
        own = self.surrogate.summary(surrogate, material, guided, self.seed, device)
        if not cost_file.exists():
            of_each = np.zeros(self.num_images, np.int64) if aim.targets is None else aim.targets
            cost = self._gradient_cost(denoiser, surrogate, guided, of_each[first:], job.runtime)
            write_json(cost_file, cost)
        shaped = self._shaped(surrogate, factors, alphas_cumprod)
        # From the first to the last of the guided timesteps: networks are compiled at the first.
        ends = (guided[-1], guided[0]) if guided else (self.guidance.t_min, self.guidance.t_max)
        guidance = self.guidance.between(first=ends[0], last=ends[1])
        if not self.surrogate.has_labels:  # away from the eps of the base
            guidance = replace(guidance, guidance_scale=-guidance.guidance_scale)
        spent = self.sample(job, shaped, guidance, aim.targets, first)
        spent["surrogate_gradients"] = spent["num_images"] * self._count(denoiser, guided)
        cost = json.loads(cost_file.read_text())["gradient_cost"]
        return {**with_evaluations(spent, cost), **own}

    def draw_targets(
        self, label: Path, excluded: Sequence[int] | Int64[np.ndarray, "e"] = ()
    ) -> tuple[Int64[np.ndarray, "n"], int]:
        """The label of each image, and the number of labels that could have been drawn.

        excluded: labels that are not drawn.
        """
        from sidepipe.stages.attack.targets import (
            allowed_targets,
            draw_targets,
            draw_weighted_targets,
            target_weights,
        )

        how, share = self.guidance.targets, self.guidance.target_fraction
        cohesion = load_cohesion(label)
        allowed = allowed_targets(how, share, cohesion, excluded)
        if how != "weighted":
            return draw_targets(allowed, self.num_images, self.seed), len(allowed)
        weights = target_weights(cohesion, load_sizes(label))
        weights[list(excluded)] = 0
        weights /= weights.sum()
        return draw_weighted_targets(weights, self.num_images, self.seed), len(allowed)

    def _factors(self, inputs: Mapping[str, Path], num_train_timesteps: int) -> Tensor:
        """The factor of lambda at each t."""
        schedule = self.guidance.guidance_schedule
        measured = schedule == "classifier_quality"
        quality = load_quality(inputs["classifier"]) if measured else []
        return schedule_factors(schedule, quality, num_train_timesteps)

    def _guided_timesteps(self, denoiser: Denoiser, factors: Tensor) -> list[int]:
        """Timesteps at which the surrogate is evaluated, most noise first."""
        timesteps = denoiser.timesteps(self.num_inference_steps, self.timestep_spacing)
        guided = [t for t in self.guidance.within(timesteps) if factors[t] > 0]
        if not guided and self.guidance.guidance_scale > 0:
            log.warning("nothing is guided: at no timestep in the interval is the factor above 0")
        return guided

    def _count(self, denoiser: Denoiser, guided: Sequence[int]) -> int:
        """Evaluations of the surrogate per image."""
        from sidepipe.diffusion.sampler import evaluated

        timesteps = denoiser.timesteps(self.num_inference_steps, self.timestep_spacing)
        every = evaluated(self.sampler, timesteps, denoiser.alphas_cumprod)
        return sum(t in guided for t in every)

    def _shaped(self, surrogate: nn.Module, factors: Tensor, alphas_cumprod: Tensor) -> nn.Module:
        """The surrogate with all settings applied, from the inside out."""
        from sidepipe.diffusion.shaping import ClippedNorm, ScaledByNoise

        surrogate = self.surrogate.shaped(surrogate, alphas_cumprod)
        scale, limit = self.guidance.guidance_scale, self.guidance.max_guidance_norm
        if self.guidance.guidance_schedule != "constant":
            surrogate = ScaledByNoise(surrogate, factors)
        if limit is not None and scale > 0:
            surrogate = ClippedNorm(surrogate, scale, limit, alphas_cumprod)
        return surrogate

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

        from sidepipe.stages.attack.cost import gradient_cost, gradient_seconds

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
            "a surrogate gradient counts as %.3g evaluations of the network, by FLOPs; on this "
            "device it takes the time of %s",
            cost,
            f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}",
        )
        return {"gradient_cost": cost, "gradient_seconds": seconds}


def refine_of(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an attack's refinement, with what trials chose; of a finished artifact."""
    tuned = summary.get("tuned", {}).items()
    chosen = {name.removeprefix(REFINE): v for name, v in tuned if name.startswith(REFINE)}
    return {**settings["refine"], **chosen}


def load_gradient_seconds(folder: Path) -> float | None:
    """The time of a gradient, in forwards of the model; None without one, and for rounds."""
    path = folder / COST
    return json.loads(path.read_text())["gradient_seconds"] if path.exists() else None
