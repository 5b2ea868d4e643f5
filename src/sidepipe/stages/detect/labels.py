"""Stage `detect` for surrogate labels: those that a model without prompts has memorized.

D_t is the effect of a label: its guided eps at scale 1 minus the unguided eps (Wen et al., 2024,
for prompts). The report compares it with the hits of each label.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sidepipe.base.settings import Precision, require
from sidepipe.engine.kinds import check_kind
from sidepipe.engine.resuming import in_parts
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.attack.strategies import Material, Surrogate
from sidepipe.stages.detect.base import Detect
from sidepipe.stages.dpm.stage import DPM
from sidepipe.stages.generate.stage import load_denoiser
from sidepipe.stages.label.stage import load_cohesion, load_images, load_sizes

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DetectLabels(Detect):
    """|| D_t || of every surrogate label, the mean over generated images and their first steps.

    surrogate: as in extract. num_generations: n, images per label. num_steps: number of first steps
    of num_inference_steps that it measures. guidance_scale: of the trajectory; 0 for no guidance.
    """

    surrogate: Surrogate
    num_generations: int
    num_inference_steps: int
    num_steps: int
    guidance_scale: float
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        name, rule = self.surrogate.name, "one that guides toward labels"
        require(self.surrogate.has_labels, "detect.surrogate", rule, name, "surrogate=posterior")
        for field in ("num_generations", "num_inference_steps"):
            require(getattr(self, field) >= 1, f"detect.{field}", ">= 1", getattr(self, field))
        rule = f"in [1, detect.num_inference_steps = {self.num_inference_steps}]"
        in_range = 1 <= self.num_steps <= self.num_inference_steps
        require(in_range, "detect.num_steps", rule, self.num_steps)
        scale = self.guidance_scale
        require(scale >= 0, "detect.guidance_scale", ">= 0", scale)
        require(0 <= self.seed < 2**32, "detect.seed", "in [0, 2**32)", self.seed)

    def inputs(self) -> tuple[str, ...]:
        return ("dpm", *self.surrogate.reads)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        check_kind(upstream, "detect=labels")
        self.surrogate.check(upstream)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.check_timesteps(self.name, self.num_inference_steps, self.timestep_spacing)

    def run(self, job: Job) -> dict[str, Any]:
        import pandas as pd

        from sidepipe.models.speed import CPU_BATCH_SIZE
        from sidepipe.stages.detect.label_signals import label_signals

        device, label = job.runtime.torch_device(), job.inputs["label"]
        denoiser = load_denoiser(job.inputs["dpm"], self.precision)
        images = load_images(label, job.inputs["generate"])
        material = Material(job.inputs, denoiser, self.precision, images, label, device)
        surrogate = self.surrogate.build(material).to(device)
        denoiser.to(device)
        sizes, cohesion = load_sizes(label), load_cohesion(label)
        size = job.runtime.sampling_batch_size or CPU_BATCH_SIZE
        at_once = max(1, size // self.num_generations)

        def make(labels: range) -> dict[str, np.ndarray]:
            return {"signal": label_signals(self, denoiser, surrogate, labels).cpu().numpy()}

        seconds = job.runtime.progress_seconds
        signal = in_parts(job.folder / "parts", len(sizes), at_once, make, "label", seconds)[
            "signal"
        ]
        table = pd.DataFrame({"size": sizes, "cohesion": cohesion, "signal": signal})
        table.to_csv(job.folder / "labels.csv", index_label="label", float_format="%.6f")
        quantiles = np.quantile(signal, [0, 0.25, 0.5, 0.75, 1]).round(3).tolist()
        log.info("|| D_t || of %d labels: quantiles %s", len(signal), quantiles)
        evaluations = len(sizes) * self.num_generations * self.num_steps
        return {
            "num_labels": len(sizes),
            "signal_quantiles": quantiles,
            "unet_forwards": evaluations,
            "surrogate_gradients": evaluations,
        }


def load_labels(folder: Path) -> pd.DataFrame:
    """One row per label: label, size and cohesion of its cluster, signal (mean || D_t ||)."""
    import pandas as pd

    return pd.read_csv(folder / "labels.csv")
