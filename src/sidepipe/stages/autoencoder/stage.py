"""Stage `autoencoder`: an autoencoder, and the codes of all images of the data.

Only `dpm=latent` reads it. The codes are computed once, for models of all training subsets.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from sidepipe.base.settings import require
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.data.stage import Data
from sidepipe.stages.data.stage import load as load_images

CODES = "codes.npy"
PART = 1024  # images per file: a killed run encodes at most so many again


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Stage):
    """A VQModel or an AutoencoderKL, trained here or elsewhere.

    train_partitions, subset_seed: those of dpm, which order the images.
    """

    name: ClassVar[str] = "autoencoder"
    needed_by: ClassVar[str] = "dpm=latent"
    takes: ClassVar[Mapping[str, str]] = {
        "train_partitions": "dpm.train_partitions",
        "subset_seed": "dpm.subset_seed",
    }
    required: ClassVar[Mapping[str, tuple[str, str]]] = {
        "path": ("a folder written by save_pretrained of an autoencoder", "/my/checkpoint/vae")
    }
    checks_ahead: ClassVar[bool] = True
    parallel: ClassVar[bool] = True
    checkpoints: ClassVar[str] = "model/*"
    train_partitions: list | None
    subset_seed: int

    @property
    def num_apart(self) -> int:
        """Images of the data that are kept apart for it, neither trained on nor held out."""
        return 0

    @classmethod
    def work(cls, settings: Mapping[str, Any]) -> float:
        # Its images are those of the data, whose number does not change a step.
        return super().work({**settings, "num_images": None})

    def inputs(self) -> tuple[str, ...]:
        return ("data",)

    def config(self) -> Mapping[str, Any]:
        """The config of the network; ValueError or an OSError where it cannot be built."""
        raise NotImplementedError

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        remedy = "choose another data="
        require(not data.is_empty, "data", "images for an autoencoder", "none", remedy)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        self.code_shape(data)

    def code_shape(self, data: Data) -> tuple[int, int]:
        """Channels and side of a code; ValueError where the autoencoder does not fit the data."""
        from sidepipe.models.autoencoders import factor

        config = self.config()
        for name in ("in_channels", "out_channels"):
            found, rule = config[name], f"{data.channels}, as the data are"
            remedy = f"set data.channels={found}"
            require(found == data.channels, f"{name} of the autoencoder", rule, found, remedy)
        pixels = factor(config)
        rule = f"divisible by {pixels}, the pixels of the autoencoder's code"
        require(data.size % pixels == 0, "data.size", rule, data.size, "another autoencoder=")
        return config["latent_channels"], data.size // pixels

    def _encode(self, job: Job, vae: Any) -> Float32[np.ndarray, "n k i j"]:
        """The codes of all images of the data, unscaled; leaves a scaling_factor of 1.

        Parts that a killed run has encoded with the same weights are kept.
        """
        images = load_images(job.inputs["data"])
        device = job.runtime.torch_device()
        vae.register_to_config(scaling_factor=1.0)
        place = job.folder / "parts" / _sha256_of_weights(vae)
        codes_of = partial(_codes, images, vae.to(device), device)
        seconds = job.runtime.progress_seconds
        codes = in_parts(place, len(images), PART, codes_of, "image", seconds)["codes"]
        vae.cpu()
        return codes

    def _save(self, folder: Path, vae: Any, codes: np.ndarray, scaling_factor: float) -> None:
        """codes: unscaled."""
        vae.register_to_config(scaling_factor=scaling_factor)
        vae.save_pretrained(folder / "model")
        np.save(folder / CODES, codes * np.float32(scaling_factor))
        shutil.rmtree(folder / "parts")


def _sha256_of_weights(vae: Any) -> str:
    found = hashlib.sha256()
    for weight in vae.state_dict().values():
        found.update(weight.numpy().tobytes())
    return found.hexdigest()


def _codes(images: np.ndarray, vae: Any, device: str, rows: range) -> Arrays:
    import torch

    from sidepipe.models.autoencoders import encoded

    part = torch.from_numpy(np.array(images[rows.start : rows.stop])).to(device)
    return {"codes": encoded(vae, part).cpu().numpy()}


def load(folder: Path) -> Any:
    """The autoencoder, on the CPU and without gradients."""
    from sidepipe.models.autoencoders import read

    return read(folder / "model")


def load_codes(folder: Path) -> Float32[np.ndarray, "n k i j"]:
    """The codes of all images of the data, memory-mapped."""
    return np.load(folder / CODES, mmap_mode="r")
