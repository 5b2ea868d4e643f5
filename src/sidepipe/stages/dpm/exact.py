"""Stage `dpm` with a model in closed form, which needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sidepipe.base.images import Images
from sidepipe.base.settings import build, require, tried
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.families import ENCODING
from sidepipe.stages.data.stage import Data, load_encoding
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.stage import DPM

if TYPE_CHECKING:
    from sidepipe.diffusion.mixtures import Mixture

POPULATION = "data=gaussian or data=mixture"


@dataclass(frozen=True, kw_only=True)
class ExactDPM(DPM):
    """The optimal denoiser of a known distribution.

    score: "training" for the training images, each smoothed by a normal distribution with the
    standard deviation `bandwidth` in every pixel of [-1, 1]; 0 memorizes them perfectly.
    "population" for the distribution that the images were drawn from, which memorizes nothing.
    """

    accelerated: ClassVar[bool] = False
    noise_schedule: dict[str, Any]
    score: Literal["training", "population"]
    bandwidth: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bandwidth >= 0, "dpm.bandwidth", ">= 0", self.bandwidth)

    def unused(self) -> tuple[str, ...]:
        return (*super().unused(), *(("bandwidth",) if self.score == "population" else ()))

    def scheduler(self) -> Any | None:
        return tried("diffusion", self.noise_schedule)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        data = upstream["data"]
        assert isinstance(data, Data)
        require(not data.is_empty, "data", "images", "none", "choose another data=")
        known = self.score == "training" or data.source["_target_"].endswith("mixtures.Mixtures")
        require(known, "dpm.score", f"training unless {POPULATION}", self.score)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        from sidepipe.models.schedules import check_noise_schedule

        check_noise_schedule(self.noise_schedule)

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.models.checkpoint import save_parts
        from sidepipe.models.exact import exact_parts
        from sidepipe.models.tables import RowEncoding

        train, _, about = self._write_split(job)
        images = load_images(job.inputs["data"])
        if self.score == "training":
            mixture = smoothed(images[train], self.bandwidth)
        else:
            mixture = build(Artifact(job.inputs["data"]).settings["source"]).mixture()
        parts = exact_parts(mixture, images.shape[1:], build(self.noise_schedule))
        if images.dtype != np.uint8:  # rows of a table
            parts[ENCODING] = RowEncoding(load_encoding(job.inputs["data"]))
        save_parts(parts, job.folder / "model")
        return {**about, "num_parameters": 0}


def smoothed(images: Images, bandwidth: float) -> Mixture:
    """The kernel density estimate of images, with a normal kernel: their means and variances."""
    import torch

    from sidepipe.base.images import to_model
    from sidepipe.diffusion.mixtures import Mixture

    means = to_model(torch.from_numpy(np.asarray(images))).double().flatten(1)
    return Mixture(means, torch.full_like(means[0], bandwidth**2))
