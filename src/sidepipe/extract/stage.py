"""Stage `extract`: N_G samples, each guided toward a surrogate label (SIDE, part 2)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import nn

from sidepipe.classifier.stage import load as load_classifier
from sidepipe.diffusion.guidance import Posterior
from sidepipe.diffusion.noise import generator
from sidepipe.dpm.stage import TrainDPM
from sidepipe.dpm.stage import load as load_dpm
from sidepipe.extract.surrogates import ClassifierSurrogate
from sidepipe.generate.stage import Sampling
from sidepipe.generate.stage import load as load_synthetic
from sidepipe.images import to_model
from sidepipe.label.stage import load as load_labels
from sidepipe.label.stage import load_cohesion
from sidepipe.sampling import Guidance, network_timesteps
from sidepipe.settings import require
from sidepipe.shards import load_shards
from sidepipe.stage import Runtime, Stage

_INPUTS = {
    "none": ("dpm",),
    "posterior": ("dpm", "generate", "label"),
    "classifier": ("dpm", "generate", "label", "classifier"),
}
_GUIDANCE = ("guidance_scale", "t_min", "t_max", "targets", "target_fraction")


@dataclass(frozen=True, kw_only=True)
class Extract(Sampling):
    """One attack: guided samples, or plain ones through the same code.

    surrogate: "classifier" (the paper's), "posterior" (closed form over the labelled synthetic
    images, no training) or "none" (the unconditional baseline). guidance_scale: lambda. t_min,
    t_max: timesteps that are guided, both included; t_max None for no upper end. targets: "uniform"
    over the labels, or "top_cohesion", the target_fraction most cohesive of them.
    """

    name: ClassVar[str] = "extract"
    surrogate: Literal["classifier", "posterior", "none"]
    guidance_scale: float
    t_min: int
    t_max: int | None
    targets: Literal["uniform", "top_cohesion"]
    target_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.guidance_scale >= 0, "extract.guidance_scale", ">= 0", self.guidance_scale)
        require(self.t_min >= 0, "extract.t_min", ">= 0", self.t_min)
        if self.t_max is not None:
            rule = f">= extract.t_min = {self.t_min}"
            require(
                self.t_max >= self.t_min, "extract.t_max", rule, self.t_max, "swap or widen them"
            )
        require(
            0 < self.target_fraction <= 1,
            "extract.target_fraction",
            "in (0, 1]",
            self.target_fraction,
        )

    def inputs(self) -> tuple[str, ...]:
        return _INPUTS[self.surrogate]

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        # Plain samples do not change with lambda, so neither does their key; nor do uniform
        # targets with the fraction of the others.
        unused = _GUIDANCE if self.surrogate == "none" else ()
        if self.targets == "uniform":
            unused = (*unused, "target_fraction")
        return {name: value for name, value in settings.items() if name not in unused}

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
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
        if self.surrogate == "none":
            np.save(folder / "targets.npy", np.full(self.num_images, -1, np.int64))
            return self.sample(folder, inputs["dpm"], runtime)
        allowed = self._allowed_targets(load_cohesion(inputs["label"]))
        targets = draw_targets(allowed, self.num_images, self.seed)
        np.save(folder / "targets.npy", targets)
        surrogate = self._surrogate(inputs)
        spent = self.sample(folder, inputs["dpm"], runtime, surrogate, self._guidance(), targets)
        return {**spent, "num_targets": len(allowed)}

    def _guidance(self) -> Guidance:
        return Guidance(guidance_scale=self.guidance_scale, t_min=self.t_min, t_max=self.t_max)

    def _allowed_targets(self, cohesion: np.ndarray) -> Int64[np.ndarray, "k"]:
        if self.targets == "uniform":
            return np.arange(len(cohesion))
        # Rounded first: 0.07 * 100 is a little more than 7.
        count = max(1, math.ceil(round(self.target_fraction * len(cohesion), 9)))
        return np.sort(np.argsort(-cohesion, kind="stable")[:count])

    def _surrogate(self, inputs: Mapping[str, Path]) -> nn.Module:
        if self.surrogate == "classifier":
            return ClassifierSurrogate(load_classifier(inputs["classifier"]))
        images = to_model(load_synthetic(inputs["generate"]))
        labels = torch.from_numpy(load_labels(inputs["label"]))
        return Posterior(images, labels, load_dpm(inputs["dpm"])[1].alphas_cumprod)


def draw_targets(
    allowed: Int64[np.ndarray, "k"], num_images: int, seed: int
) -> Int64[np.ndarray, "n"]:
    """Each image's label, uniform over `allowed`; image i's does not depend on their number."""
    chosen = [generator(seed, "targets", i).integers(len(allowed)) for i in range(num_images)]
    return allowed[np.array(chosen, np.int64)]


def load(folder: Path) -> UInt8[np.ndarray, "n h w c"]:
    """The extracted images, in index order."""
    return load_shards(folder)


def load_targets(folder: Path) -> Int64[np.ndarray, "n"]:
    """Each image's target label, -1 without a surrogate."""
    return np.load(folder / "targets.npy")
