"""Stage `extract`: N_G samples, each guided toward a surrogate label (SIDE, part 2)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from sidepipe.classifier.stage import load as load_classifier
from sidepipe.classifier.stage import load_quality
from sidepipe.diffusion.guidance import Posterior
from sidepipe.diffusion.nearest import NearestPosterior
from sidepipe.diffusion.sampler import sampling_timesteps
from sidepipe.diffusion.shaping import ClippedNorm, ScaledByNoise, ThroughPredX0
from sidepipe.dpm.stage import TrainDPM
from sidepipe.dpm.stage import load as load_dpm
from sidepipe.extract.cost import gradient_cost, with_evaluations
from sidepipe.extract.surrogates import ClassifierSurrogate, judge_cut, quality_factors
from sidepipe.extract.targets import (
    allowed_targets,
    draw_targets,
    draw_weighted_targets,
    target_weights,
)
from sidepipe.extract.tuning import Tuning, best
from sidepipe.generate.stage import Sampling
from sidepipe.generate.stage import load as load_synthetic
from sidepipe.label.stage import load as load_labels
from sidepipe.label.stage import load_cohesion, load_sizes
from sidepipe.sampling import Guidance, network_timesteps
from sidepipe.settings import bind, check_field_types, require
from sidepipe.shards import load_shards
from sidepipe.stage import Runtime, Stage

log = logging.getLogger(__name__)

# Images in which a gradient's cost is measured where the runtime leaves the batch open.
MEASURED_BATCH = 64

SPENT = ("unet_forwards", "surrogate_gradients", "network_evaluations")

_INPUTS = {
    "none": ("dpm",),
    "posterior": ("dpm", "generate", "label"),
    "classifier": ("dpm", "generate", "label", "classifier"),
}
_GUIDANCE = (
    *("guidance_scale", "guidance_schedule", "max_guidance_norm", "guide_through"),
    *("t_min", "t_max", "targets", "target_fraction", "posterior_neighbours", "tuning"),
)


@dataclass(frozen=True, kw_only=True)
class Extract(Sampling):
    """One attack: guided samples, or plain ones through the same code.

    surrogate: "classifier" (the paper's), "posterior" (closed form over the labelled synthetic
    images, no training) or "none" (the unconditional baseline). posterior_neighbours: synthetic
    images, of the label and of all, that the posterior's sums are cut to; None for no cut.
    guidance_scale: lambda. guidance_schedule: "constant", or "classifier_quality", lambda times
    max(0, 1 - CE(t) / H(labels)). max_guidance_norm: longest move of eps by guidance, in lengths of
    eps; None for no limit. guide_through: what the surrogate sees, "x_t" or "pred_x_0". t_min,
    t_max: timesteps that are guided, both included; t_max None for no upper end. targets: "uniform"
    over the labels, "top_cohesion", the target_fraction most cohesive of them, or "weighted", by
    cohesion rank and cluster size. tuning: settings of a `Tuning` that chooses some of these by
    trials without the training set; None to take them as they are.
    """

    name: ClassVar[str] = "extract"
    version: ClassVar[int] = 2
    surrogate: Literal["classifier", "posterior", "none"]
    posterior_neighbours: int | None
    guidance_scale: float
    guidance_schedule: Literal["constant", "classifier_quality"]
    max_guidance_norm: float | None
    guide_through: Literal["x_t", "pred_x_0"]
    t_min: int
    t_max: int | None
    targets: Literal["uniform", "top_cohesion", "weighted"]
    target_fraction: float
    tuning: dict[str, Any] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.guidance_scale >= 0, "extract.guidance_scale", ">= 0", self.guidance_scale)
        require(self.t_min >= 0, "extract.t_min", ">= 0", self.t_min)
        if self.t_max is not None:
            rule = f">= extract.t_min = {self.t_min}"
            require(
                self.t_max >= self.t_min, "extract.t_max", rule, self.t_max, "swap or widen them"
            )
        share, norm = self.target_fraction, self.max_guidance_norm
        require(0 < share <= 1, "extract.target_fraction", "in (0, 1]", share)
        require(norm is None or norm > 0, "extract.max_guidance_norm", "> 0 or null", norm)
        count = self.posterior_neighbours
        require(count is None or count >= 1, "extract.posterior_neighbours", ">= 1 or null", count)
        if self.surrogate == "posterior":
            self._require_of_posterior(
                "guidance_schedule", "constant", "it has no measured quality"
            )
            self._require_of_posterior(
                "guide_through", "x_t", "it is exact there and knows the noise"
            )

    def _require_of_posterior(self, name: str, only: str, why: str) -> None:
        value = getattr(self, name)
        rule = f"{only!r} where extract.surrogate is 'posterior'"
        require(value == only, f"extract.{name}", rule, value, f"{why}; or surrogate=classifier")

    @property
    def _tuning(self) -> Tuning | None:
        if self.tuning is None or self.surrogate == "none":
            return None
        bind("extract.tuning", f"{Tuning.__module__}.{Tuning.__qualname__}", self.tuning)
        return Tuning(**check_field_types("extract.tuning", Tuning, self.tuning))

    def _trial(self, point: Mapping[str, Any], num_images: int) -> "Extract":
        """This attack with some settings changed, and nothing left to tune."""
        fitting = check_field_types("extract.tuning.grid", Extract, point)
        return replace(self, **fitting, num_images=num_images, tuning=None)

    def inputs(self) -> tuple[str, ...]:
        return _INPUTS[self.surrogate]

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        # Plain samples do not change with lambda, so neither does their key; nor do others with
        # the fraction of top_cohesion, or the posterior's cut, where there is none.
        unused = _GUIDANCE if self.surrogate == "none" else ()
        if self.targets != "top_cohesion":
            unused = (*unused, "target_fraction")
        if self.surrogate != "posterior":
            unused = (*unused, "posterior_neighbours")
        return {name: value for name, value in settings.items() if name not in unused}

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        if tuning := self._tuning:
            tuning.encoder.check()
            for point in tuning.points:
                self._trial(point, tuning.num_images).check(upstream, runtime)
            return
        dpm = upstream["dpm"]
        if self.surrogate == "none" or self.guidance_scale == 0 or not isinstance(dpm, TrainDPM):
            return
        steps = dpm.noise_schedule["num_train_timesteps"]
        rule = f"< diffusion.num_train_timesteps = {steps}, or nothing is guided"
        require(self.t_min < steps, "extract.t_min", rule, self.t_min)
        timesteps, guided = network_timesteps(
            steps, self.num_inference_steps, self.timestep_spacing, self._guidance()
        )
        require(
            guided > 0,
            "[extract.t_min, extract.t_max]",
            f"an interval with one of the {len(timesteps)} timesteps from {timesteps[-1]} to "
            f"{timesteps[0]} that are evaluated, or nothing is guided",
            [self.t_min, self.t_max],
        )

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        if tuning := self._tuning:
            return self._run_tuned(tuning, folder, inputs, runtime)
        if self.surrogate == "none":
            np.save(folder / "targets.npy", np.full(self.num_images, -1, np.int64))
            return with_evaluations(self.sample(folder, inputs["dpm"], runtime), 0.0)
        targets, num_targets = self._draw_targets(inputs["label"])
        np.save(folder / "targets.npy", targets)
        unet, scheduler = load_dpm(inputs["dpm"])
        alphas_cumprod = scheduler.alphas_cumprod
        factors = self._factors(inputs, len(alphas_cumprod))
        guided = self._guided_timesteps(factors)
        surrogate = self._surrogate(inputs, alphas_cumprod)
        cut = self._cut_error(surrogate, inputs, guided, runtime)
        cost = self._gradient_cost(unet, surrogate, guided, targets, runtime)
        shaped = self._shaped(surrogate, factors, alphas_cumprod)
        spent = self.sample(folder, inputs["dpm"], runtime, shaped, self._guidance(), targets)
        spent["surrogate_gradients"] = self.num_images * len(guided)
        return {**with_evaluations(spent, cost), "num_targets": num_targets, **cut}

    def _run_tuned(
        self, tuning: Tuning, folder: Path, inputs: Mapping[str, Path], runtime: Runtime
    ) -> dict[str, Any]:
        """Samples with the settings whose trial repeats itself most; the trials' cost counts."""
        trials: list[dict[str, Any]] = []
        for i, point in enumerate(tuning.points):
            place = folder / "trials" / f"{i:03d}"
            place.mkdir(parents=True, exist_ok=True)
            spent = self._trial(point, tuning.num_images).run(place, inputs, runtime)
            score = tuning.score(load(place), runtime.torch_device())
            trials.append({**point, "score": score, **{name: spent[name] for name in SPENT}})
            log.info("trial %d of %d, %s: score %.4f", i + 1, len(tuning.points), point, score)
        pd.DataFrame(trials).to_csv(folder / "trials.csv", index=False)
        chosen = tuning.points[best(trials)]
        log.info("chosen without the training set: %s", chosen)
        summary = self._trial(chosen, self.num_images).run(folder, inputs, runtime)
        spent = {name: summary[name] + sum(trial[name] for trial in trials) for name in SPENT}
        return {**summary, **spent, "tuned": chosen}

    def _guidance(self) -> Guidance:
        return Guidance(guidance_scale=self.guidance_scale, t_min=self.t_min, t_max=self.t_max)

    def _draw_targets(self, label: Path) -> tuple[Int64[np.ndarray, "n"], int]:
        """Each image's label, and how many labels could have been drawn."""
        cohesion = load_cohesion(label)
        if self.targets == "weighted":
            weights = target_weights(cohesion, load_sizes(label))
            return draw_weighted_targets(weights, self.num_images, self.seed), len(weights)
        allowed = allowed_targets(self.targets, self.target_fraction, cohesion)
        return draw_targets(allowed, self.num_images, self.seed), len(allowed)

    def _factors(self, inputs: Mapping[str, Path], num_train_timesteps: int) -> Tensor:
        """What lambda is multiplied by at each t."""
        if self.guidance_schedule == "constant":
            return torch.ones(num_train_timesteps)
        return quality_factors(load_quality(inputs["classifier"]), num_train_timesteps)

    def _guided_timesteps(self, factors: Tensor) -> list[int]:
        """Timesteps at which the surrogate is evaluated, most noise first."""
        timesteps = sampling_timesteps(
            len(factors), self.num_inference_steps, self.timestep_spacing
        )
        guided = [t for t in self._guidance().within(timesteps) if factors[t] > 0]
        if not guided and self.guidance_scale > 0:
            log.warning("nothing is guided: at no timestep in the interval is the factor above 0")
        return guided

    def _surrogate(self, inputs: Mapping[str, Path], alphas_cumprod: Tensor) -> nn.Module:
        if self.surrogate == "classifier":
            return ClassifierSurrogate(load_classifier(inputs["classifier"]))
        if self.posterior_neighbours is None:
            return Posterior(*_labelled(inputs), alphas_cumprod)
        return NearestPosterior(*_labelled(inputs), alphas_cumprod, self.posterior_neighbours)

    def _shaped(self, surrogate: nn.Module, factors: Tensor, alphas_cumprod: Tensor) -> nn.Module:
        """The surrogate in what the settings ask for, from the inside out."""
        if self.guide_through == "pred_x_0":
            surrogate = ThroughPredX0(surrogate, alphas_cumprod)
        if self.guidance_schedule == "classifier_quality":
            surrogate = ScaledByNoise(surrogate, factors)
        if self.max_guidance_norm is not None and self.guidance_scale > 0:
            surrogate = ClippedNorm(
                surrogate, self.guidance_scale, self.max_guidance_norm, alphas_cumprod
            )
        return surrogate

    def _cut_error(
        self, surrogate: nn.Module, inputs: Mapping[str, Path], guided: list[int], runtime: Runtime
    ) -> dict[str, Any]:
        """For the summary: the error of a cut posterior at some of the guided timesteps."""
        if not isinstance(surrogate, NearestPosterior) or not guided:
            return {}
        full = Posterior(*_labelled(inputs), surrogate.alphas_cumprod)
        rng = np.random.default_rng(self.seed)
        return {"cut_error": judge_cut(surrogate, full, guided, rng, runtime.torch_device())}

    def _gradient_cost(
        self,
        unet: nn.Module,
        surrogate: nn.Module,
        guided: list[int],
        targets: Int64[np.ndarray, "n"],
        runtime: Runtime,
    ) -> float:
        """A surrogate gradient in UNet forwards, in batches as they are sampled; 0 if none is."""
        if not guided:
            return 0.0
        size = runtime.sampling_batch_size
        count = min(MEASURED_BATCH if size is None else size, self.shard_size)
        y, middle = torch.from_numpy(targets[:count]), guided[len(guided) // 2]
        cost = gradient_cost(unet, surrogate, y, middle, self.precision, runtime.torch_device())
        # Not on a device: it may be sent to other processes.
        surrogate.cpu()
        log.info("a gradient of the surrogate costs %.2f forwards of the UNet", cost)
        return cost


def _labelled(inputs: Mapping[str, Path]) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, "n"]]:
    """The synthetic images and their labels."""
    images = torch.from_numpy(load_synthetic(inputs["generate"])).permute(0, 3, 1, 2)
    return images, torch.from_numpy(load_labels(inputs["label"]))


def load_trials(folder: Path) -> list[tuple[dict[str, Any], UInt8[np.ndarray, "n h w c"]]]:
    """Of every trial of a tuned attack its settings, blind score and cost, and its images."""
    path = folder / "trials.csv"
    if not path.exists():
        return []
    rows: Any = pd.read_csv(path).to_dict("records")
    return [(row, load_shards(folder / "trials" / f"{i:03d}")) for i, row in enumerate(rows)]


def load(folder: Path) -> UInt8[np.ndarray, "n h w c"]:
    """The extracted images, in index order."""
    return load_shards(folder)


def load_targets(folder: Path) -> Int64[np.ndarray, "n"]:
    """Each image's target label, -1 without a surrogate."""
    return np.load(folder / "targets.npy")
