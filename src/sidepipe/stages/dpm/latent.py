"""Stage `dpm` that trains an unconditional model on the codes of an autoencoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sidepipe.base.settings import build, require, tried
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.checkpoint import save_parts
from sidepipe.models.schedules import clip_range
from sidepipe.stages.autoencoder.stage import Autoencoder, load_codes
from sidepipe.stages.autoencoder.stage import load as load_autoencoder
from sidepipe.stages.data.stage import Data, load_partitions
from sidepipe.stages.data.subset import split
from sidepipe.stages.dpm.trained import TrainDPM, check_levels

log = logging.getLogger(__name__)

DRIFT = 1.5  # ratio of standard deviations beyond which samples are not codes of images


@dataclass(frozen=True, kw_only=True)
class TrainLatentDPM(TrainDPM):
    """An unconditional UNet2DModel trained on the codes of the subset.

    unet: a partial config; `sample_size`, `in_channels` and `out_channels` follow from the codes.
    num_autoencoder_images: images that the autoencoder was trained on, which are neither in the
    subset nor held out.
    """

    takes_canaries: ClassVar[bool] = False
    num_autoencoder_images: int

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "codes of mirrored images are not mirrored codes"
        require(not self.random_flip, "dpm.random_flip", "false for codes", True, remedy)
        shift, t = self.random_shift, self.ambient_t
        require(shift == 0, "dpm.random_shift", "0 for codes", shift)
        require(t is None, "dpm.ambient_t", "null for codes", t)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "autoencoder")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        autoencoder = upstream["autoencoder"]
        assert isinstance(autoencoder, Autoencoder)
        own, apart = self.num_autoencoder_images, autoencoder.num_apart
        rule = f"{apart}, the images that the autoencoder is trained on"
        remedy = "set autoencoder.num_images alone, for all rows"
        require(own == apart, "dpm.num_autoencoder_images", rule, own, remedy)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        import torch

        data, autoencoder = upstream["data"], upstream["autoencoder"]
        assert isinstance(data, Data)
        assert isinstance(autoencoder, Autoencoder)
        self._check_schedule()
        limit = clip_range(self.scheduler())
        remedy = "diffusion=latents"
        require(limit is None, "diffusion.clip_sample", "false for codes", True, remedy)
        channels, side = autoencoder.code_shape(data)
        with torch.device("meta"):
            unet = tried("dpm.unet", self._network_of(channels, side))
        classes = unet.config.get("num_class_embeds") or unet.config.get("class_embed_type")
        require(
            classes is None, "the classes of dpm.unet", "none (an unconditional model)", classes
        )
        check_levels(unet.config, side, "the side of a code")

    def _network_of(self, channels: int, side: int) -> dict[str, Any]:
        sizes = {"sample_size": side, "in_channels": channels, "out_channels": channels}
        return {**self.unet, "_partial_": False, **sizes}

    def _all(self, data: Path) -> tuple[np.ndarray, np.ndarray]:
        return split(
            load_partitions(data),
            self.num_train_images,
            self.train_partitions,
            self.subset_seed,
            self.num_autoencoder_images,
        )

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L

        from sidepipe.models.autoencoders import decoded
        from sidepipe.stages.dpm.kept import complete

        vae, codes = (load(job.inputs["autoencoder"]) for load in (load_autoencoder, load_codes))
        train, heldout, about = self._write_split(job)
        L.seed_everything(self.seed, verbose=False)
        unet = build(self._network_of(*codes.shape[1:3]))
        scheduler = build(self.noise_schedule)
        module = self._module(
            unet, scheduler, job.folder, decode=partial(decoded, vae), **self.shaping
        )
        fitted = self._fitted(job, module, [codes], (train, heldout))
        spread = {"code_deviation": float(codes[train].std())}
        spread["sampled_code_deviation"] = float(module.sampled().std())
        if (fault := drift(spread)) is not None:
            log.warning("%s", fault)
        # By the name of LDMPipeline, which takes an AutoencoderKL too.
        parts = {"unet": unet, "scheduler": scheduler, "vqvae": vae}
        save_parts(parts, job.folder / "model")
        complete(job.folder)
        return {**about, "num_parameters": unet.num_parameters(), **fitted, **spread}


def drift(summary: Mapping[str, Any]) -> str | None:
    """A sentence where sampled codes are much larger or smaller than those of training images."""
    if "sampled_code_deviation" not in summary:
        return None
    sampled, trained = summary["sampled_code_deviation"], summary["code_deviation"]
    if 1 / DRIFT <= sampled / trained <= DRIFT:
        return None
    return (
        f"sampled codes have a standard deviation of {sampled:.3g}, and those of training images "
        f"of {trained:.3g}: samples are no images, so few hits say nothing about memorization; "
        "remedy: raise dpm.max_steps, or diffusion=latents with v_prediction"
    )
