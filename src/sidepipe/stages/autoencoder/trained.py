"""Stage `autoencoder` that trains one, on images that no model is trained on or compared with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from sidepipe.base.settings import build, require, tried
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.engine.trained import Training
from sidepipe.stages.autoencoder.stage import Autoencoder
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_partitions
from sidepipe.stages.data.subset import apart

log = logging.getLogger(__name__)

MIN_IMAGES = 64
VALIDATION_SHARE, MAX_VALIDATION = 0.1, 512


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder(Training, Autoencoder):
    """An AutoencoderKL trained on images of the data that `dpm` leaves out.

    num_images: the last ones of the order in which dpm takes and holds out images; they are neither
    training nor held-out images. network: of diffusers. kl_weight: of the divergence of its
    posterior from a standard normal. validate_every_steps: on a tenth of its images. The codes are
    scaled to unit standard deviation over its images.
    """

    num_images: int
    network: dict[str, Any]
    kl_weight: float
    validate_every_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f">= {MIN_IMAGES}"
        remedy = "or autoencoder=pretrained"
        enough = self.num_images >= MIN_IMAGES
        require(enough, "autoencoder.num_images", rule, self.num_images, remedy)
        require(self.kl_weight >= 0, "autoencoder.kl_weight", ">= 0", self.kl_weight)
        every, rule = self.validate_every_steps, "in [1, max_steps]"
        require(1 <= every <= self.max_steps, "autoencoder.validate_every_steps", rule, every)

    @property
    def num_apart(self) -> int:
        return self.num_images

    def config(self) -> Mapping[str, Any]:
        import torch
        from diffusers import AutoencoderKL

        with torch.device("meta"):  # checks its settings without weights
            network = tried("autoencoder.network", self.network)
        kind = type(network).__name__
        fits = isinstance(network, AutoencoderKL)
        remedy = "or autoencoder=pretrained for a VQModel"
        require(fits, "autoencoder.network", "an AutoencoderKL", kind, remedy)
        return network.config

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        Training.check(self, upstream, runtime)
        Autoencoder.check(self, upstream, runtime)

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        self.rows(data)

    def rows(self, data: Path) -> Int64[np.ndarray, "n"]:
        """Its images; ValueError where none are left for a model."""
        partitions = load_partitions(data)
        return apart(partitions, self.train_partitions, self.subset_seed, self.num_images)

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L

        images, rows = load_images(job.inputs["data"]), self.rows(job.inputs["data"])
        np.save(job.folder / "rows.npy", rows)
        unseen, seen = np.split(rows, [min(round(len(rows) * VALIDATION_SHARE), MAX_VALIDATION)])
        L.seed_everything(self.seed, verbose=False)
        vae = build(self.network)
        log.info(
            "training %.2f M parameters on %d images, %d for validation",
            *(vae.num_parameters() / 1e6, len(seen), len(unseen)),
        )
        metrics = self._train(vae, images[seen], images[unseen], job)
        codes = self._encode(job, vae)
        scale = 1 / float(codes[rows].std(dtype=np.float64))
        self._save(job.folder, vae, codes, scale)
        return {
            "num_train_images": len(seen),
            "num_parameters": vae.num_parameters(),
            "scaling_factor": scale,
            **metrics,
        }

    def _train(self, vae: Any, seen: np.ndarray, unseen: np.ndarray, job: Job) -> dict[str, float]:
        """Leaves the trained weights in `vae`, in eval mode; returns the last metrics."""
        from sidepipe.engine.training import fit, validation_batches, weights
        from sidepipe.stages.autoencoder.module import AutoencoderModule

        module = AutoencoderModule(
            vae,
            kl_weight=self.kl_weight,
            lr=self.lr,
            weight_decay=self.weight_decay,
            lr_warmup_steps=self.lr_warmup_steps,
            seed=self.seed,
        )
        every = self.validate_every_steps
        validation = validation_batches([unseen])
        metrics = fit(self, module, [seen], validation, job, validate_every_steps=every)
        module.load_state_dict(weights(job.folder))
        vae.eval().requires_grad_(False)
        return metrics


def load_rows(folder: Path) -> Int64[np.ndarray, "n"]:
    """Indices in the data's array of all images of its training and validation."""
    return np.load(folder / "rows.npy")
