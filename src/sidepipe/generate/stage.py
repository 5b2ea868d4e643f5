"""Stage `generate`: N_syn plain samples of the model, the attacker's only data (SIDE, step 1)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8

from sidepipe.dpm.stage import TrainDPM
from sidepipe.dpm.stage import load as load_dpm
from sidepipe.images import save_grid
from sidepipe.sampling import Guidance, ImageSampler, network_timesteps, sample_to_shards
from sidepipe.settings import require
from sidepipe.shards import load_first, load_shards
from sidepipe.stage import Runtime, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sampling(Stage):
    """Settings that every sampling stage has.

    num_images: how many. sampler: "ddim", or "dpm_solver_pp", of second order, for few steps.
    num_inference_steps: network evaluations an image. eta: 0 DDIM, 1 ancestral. timestep_spacing:
    as in diffusers. shard_size: images a file.
    """

    num_images: int
    sampler: Literal["ddim", "dpm_solver_pp"]
    num_inference_steps: int
    eta: float
    timestep_spacing: Literal["leading", "trailing"]
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    shard_size: int
    seed: int

    def __post_init__(self) -> None:
        for field in ("num_images", "num_inference_steps", "shard_size"):
            require(getattr(self, field) >= 1, f"{self.name}.{field}", ">= 1", getattr(self, field))
        require(0 <= self.eta <= 1, f"{self.name}.eta", "in [0, 1]", self.eta)
        if self.sampler != "ddim":
            require(self.eta == 0, f"{self.name}.eta", f"0 for {self.sampler}", self.eta)
        require(0 <= self.seed < 2**32, f"{self.name}.seed", "in [0, 2**32)", self.seed)

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        # What is sampled as it always was keeps its key.
        unused = ("sampler",) if self.sampler == "ddim" else ()
        return {name: value for name, value in settings.items() if name not in unused}

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        if isinstance(dpm, TrainDPM):
            steps = dpm.noise_schedule["num_train_timesteps"]
            require(
                self.num_inference_steps <= steps,
                f"{self.name}.num_inference_steps",
                f"<= diffusion.num_train_timesteps = {steps}",
                self.num_inference_steps,
            )

    def sample(
        self,
        folder: Path,
        dpm: Path,
        runtime: Runtime,
        surrogate: Any = None,
        guidance: Guidance | None = None,
        targets: np.ndarray | None = None,
        first: int = 0,
    ) -> dict[str, Any]:
        """Writes the images' shards; returns what was spent, in evaluations.

        first: how many images an earlier call made, and accounted for.
        """
        unet, scheduler = load_dpm(dpm)
        timesteps, surrogate_steps = network_timesteps(
            len(scheduler.alphas_cumprod), self.num_inference_steps, self.timestep_spacing, guidance
        )
        side, channels = unet.config["sample_size"], unet.config["in_channels"]
        sampler = ImageSampler(
            unet,
            scheduler.alphas_cumprod,
            scheduler.config["prediction_type"],
            (channels, side, side),
            seed=self.seed,
            stream=self.name,
            sampler=self.sampler,
            timesteps=timesteps,
            eta=self.eta,
            surrogate=surrogate,
            guidance=guidance,
        )
        sample_to_shards(
            sampler, folder, self.num_images, self.shard_size, self.precision, runtime, targets
        )
        save_grid(folder / "preview.png", load_first(folder, 64))
        count = self.num_images - first
        return {
            "num_images": count,
            "unet_forwards": count * len(timesteps),
            "surrogate_gradients": count * surrogate_steps,
        }


@dataclass(frozen=True, kw_only=True)
class Generate(Sampling):
    """N_syn plain samples of the model."""

    name: ClassVar[str] = "generate"

    def inputs(self) -> tuple[str, ...]:
        return ("dpm",)

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        return self.sample(folder, inputs["dpm"], runtime)


def load(folder: Path) -> UInt8[np.ndarray, "n h w c"]:
    """The synthetic images, in index order."""
    return load_shards(folder)
