"""Stage `detect` for surrogate labels: which of them a model without prompts has memorised.

D_t is what a label changes: its guided eps at scale 1 less the plain one. (Wen et al., 2024, for
prompts.) The report sets it beside what each label's cluster yields.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.finite import Seen, require_finite_eps, watched
from sidepipe.diffusion.guidance import gradient_at
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import at, clip_x_0
from sidepipe.extract.stage import load_surrogate
from sidepipe.generate.stage import load_denoiser
from sidepipe.label.stage import load_cohesion, load_images, load_sizes
from sidepipe.lora.stage import Lora
from sidepipe.parts import in_parts
from sidepipe.settings import require
from sidepipe.speed import CPU_BATCH_SIZE, cast_once
from sidepipe.stage import Precision, Runtime, Stage

log = logging.getLogger(__name__)

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True, kw_only=True)
class DetectLabels(Stage):
    """|| D_t || of every surrogate label, its mean over images from noise and their first steps.

    surrogate: as of extract. num_generations: n, images a label. num_steps: first steps of
    num_inference_steps, at which it is measured. guidance_scale: of the trajectory; 0 for the plain
    one.
    """

    name: ClassVar[str] = "detect"
    surrogate: Literal["classifier", "posterior", "lora"]
    num_generations: int
    num_inference_steps: int
    num_steps: int
    guidance_scale: float
    timestep_spacing: Literal["leading", "trailing"]
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        for field in ("num_generations", "num_inference_steps"):
            require(getattr(self, field) >= 1, f"detect.{field}", ">= 1", getattr(self, field))
        rule = f"in [1, detect.num_inference_steps = {self.num_inference_steps}]"
        in_range = 1 <= self.num_steps <= self.num_inference_steps
        require(in_range, "detect.num_steps", rule, self.num_steps)
        scale = self.guidance_scale
        require(scale >= 0, "detect.guidance_scale", ">= 0", scale)
        require(0 <= self.seed < 2**32, "detect.seed", "in [0, 2**32)", self.seed)

    def inputs(self) -> tuple[str, ...]:
        trained = () if self.surrogate == "posterior" else (self.surrogate,)
        return ("dpm", "generate", "label", *trained)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        if isinstance(lora := upstream.get("lora"), Lora):
            lora.check_peft()

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        denoiser, device = load_denoiser(inputs["dpm"], self.precision), runtime.torch_device()
        label = inputs["label"]
        about = (inputs, denoiser, self.precision, load_images(label, inputs["generate"]), label)
        surrogate = load_surrogate(self.surrogate, *about).to(device)
        denoiser.to(device)
        sizes, cohesion = load_sizes(label), load_cohesion(label)
        at_once = max(1, (runtime.sampling_batch_size or CPU_BATCH_SIZE) // self.num_generations)

        def make(labels: range) -> dict[str, np.ndarray]:
            return {"signal": self._signals(denoiser, surrogate, labels).cpu().numpy()}

        signal = in_parts(
            *(folder / "parts", len(sizes), at_once, make, "label", runtime.progress_seconds)
        )["signal"]
        table = pd.DataFrame({"size": sizes, "cohesion": cohesion, "signal": signal})
        table.to_csv(folder / "labels.csv", index_label="label", float_format="%.6f")
        quantiles = np.quantile(signal, [0, 0.25, 0.5, 0.75, 1]).round(3).tolist()
        log.info("|| D_t || of %d labels: quantiles %s", len(signal), quantiles)
        asked = len(sizes) * self.num_generations * self.num_steps
        return {
            "num_labels": len(sizes),
            "signal_quantiles": quantiles,
            "unet_forwards": asked,
            "surrogate_gradients": asked,
        }

    @torch.no_grad()
    def _signals(
        self, denoiser: Denoiser, surrogate: nn.Module, labels: range
    ) -> Float[Tensor, "k"]:
        """Of each label the mean || D_t || of its images and steps."""
        numbers = [label * 1_000_000 + g for label in labels for g in range(self.num_generations)]
        device, lengths = denoiser.alphas_cumprod.device, []
        y = torch.tensor(list(labels), device=device).repeat_interleave(self.num_generations)
        noise = image_noise(self.seed, "prompts", numbers, denoiser.shape, device)
        plain, difference = denoiser.eps_fn(y), label_difference(denoiser, surrogate, y)

        def eps_fn(x_t: Tensor, t: int) -> Tensor:
            eps = plain(x_t, t)
            D_t = difference(x_t, t, eps)
            lengths.append(D_t.flatten(1).norm(dim=1))
            return eps + self.guidance_scale * D_t

        timesteps = denoiser.timesteps(self.num_inference_steps, self.timestep_spacing)
        seen: Seen = []
        watched_eps_fn = watched(eps_fn, "the prediction for a label", seen)
        kept = clip_x_0(watched_eps_fn, denoiser.alphas_cumprod, denoiser.clip_range)
        dtype = AUTOCAST.get(self.precision)
        with torch.autocast(device.type, dtype, enabled=dtype is not None), cast_once(device):
            ddim(kept, noise(), timesteps[: self.num_steps], denoiser.alphas_cumprod)
        require_finite_eps(seen, "detect", range(len(y)))
        return torch.stack(lengths).mean(0).unflatten(0, (len(labels), -1)).mean(1)


def label_difference(
    denoiser: Denoiser, surrogate: nn.Module, y: Int64[Tensor, "n"]
) -> Callable[[Tensor, int, Tensor], Tensor]:
    """D_t from (x_t, t, eps): -sqrt(1 - ab_t) grad log p(y | x_t), or eps of the label less eps."""
    if isinstance(surrogate, Denoiser):
        labelled = surrogate.eps_fn(y)
        return lambda x_t, t, eps: labelled(x_t, t) - eps
    gradient: Any = surrogate.grad_log_prob

    def from_gradient(x_t: Tensor, t: int, eps: Tensor) -> Tensor:
        sigma = (1 - at(denoiser.alphas_cumprod, t, x_t)).sqrt()
        return -sigma * gradient_at(gradient, x_t, t, y, eps)

    return from_gradient


def load_labels(folder: Path) -> pd.DataFrame:
    """A row for each label: label, size and cohesion of its cluster, signal (mean || D_t ||)."""
    return pd.read_csv(folder / "labels.csv")
