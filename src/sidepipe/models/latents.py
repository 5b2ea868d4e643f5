"""The families of latent models without text: LDMPipeline and DiTPipeline.

The network predicts the noise of latents: a UNet2DModel, or a DiT transformer of class labels. A
VQModel or an AutoencoderKL decodes them. Latents are sampled and refined; images are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from jaxtyping import Float, UInt8
from torch import Tensor

from sidepipe.base.pretrained import (
    network_folder,
    parts_of,
    read_object,
    unet_files,
    weight_files,
)
from sidepipe.base.settings import require
from sidepipe.base.weights import check_weights, read_network
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.models import autoencoders
from sidepipe.models.continuous import PIPELINES, check_called
from sidepipe.models.families import INDEX, MISSING
from sidepipe.models.pixels import (
    VARIANCE,
    check_classes,
    predicts_variance,
    schedule_of,
    side_of,
)
from sidepipe.models.schedules import Schedule, schedule_from

log = logging.getLogger(__name__)

# Classes of the parts; DiT's has had two names.
NETWORKS = {
    "UNet2DModel": diffusers.UNet2DModel,
    "DiTTransformer2DModel": diffusers.DiTTransformer2DModel,
    "Transformer2DModel": diffusers.DiTTransformer2DModel,
}


class LatentDenoiser(Denoiser):
    """A model of latents: x_0 has no range, and images are decoded.

    vae: a VQModel or AutoencoderKL; latents are what it encodes, times its `scaling_factor`.
    """

    has_range, first_batch = False, 4

    def __init__(
        self, network: Any, vae: Any, schedule: Schedule, shape: tuple[int, int, int]
    ) -> None:
        alphas_cumprod, kind = schedule.alphas_cumprod, schedule.prediction_type
        super().__init__(schedule.called(network), alphas_cumprod, kind, shape)
        self.clip_range, self.step_rule = schedule.clip_range, schedule.step_rule
        self.vae = vae.eval().requires_grad_(False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, height, width = self.shape
        factor = autoencoders.factor(self.vae.config)
        return self.vae.config["out_channels"], height * factor, width * factor

    def encode(self, images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n k i j"]:
        """Latents of images; of an AutoencoderKL the mean of its posterior."""
        return autoencoders.encoded(self.vae, images)

    def decode(self, x_0: Float[Tensor, "n k i j"]) -> UInt8[Tensor, "n h w c"]:
        return autoencoders.decoded(self.vae, x_0)


def check(folder: Path, variant: str | None, size: int | None, channels: int | None) -> None:
    """Raises unless the pipeline in `folder` is a latent model of images of this shape.

    size, channels: None for any. FileNotFoundError where a file is missing, ValueError otherwise.
    """
    inside, network = _network(folder, variant)
    name, config = str(inside / "config.json"), network.config
    autoencoder, vae = _autoencoder(folder)
    path = autoencoder / "config.json"
    latents = vae.config["latent_channels"]
    rule = f"{latents}, the latent_channels of {path}"
    require(config["in_channels"] == latents, f"in_channels of {name}", rule, config["in_channels"])
    fits = config["out_channels"] in (None, latents, 2 * latents)
    rule = f"{latents}, or {2 * latents} with a predicted variance"
    require(fits, f"out_channels of {name}", rule, config["out_channels"])
    side = side_of(config["sample_size"])
    remedy = "models of images that are not square are not supported"
    require(side is not None, f"sample_size of {name}", "a number", config["sample_size"], remedy)
    assert side is not None
    own = side * autoencoders.factor(vae.config)
    remedy = f"set data.size={own}"
    require(size in (None, own), "data.size", f"{own}, as the images of {folder}", size, remedy)
    own = vae.config["out_channels"]
    rule, remedy = f"{own}, as the images of {folder}", f"set data.channels={own}"
    require(channels in (None, own), "data.channels", rule, channels, remedy)
    if "class_embed_type" in config:
        check_classes(config, name)
    scheduler = schedule_of(folder, predicts_variance(config))
    check_called(scheduler, config, name)
    kind, remedy = type(scheduler).__name__, "it is of images in [0, 1], and latents have no range"
    require(kind not in PIPELINES, f"the scheduler of {folder}", "another", kind, remedy)
    for part, files in ((network, _files(inside, variant)), (vae, _files(autoencoder, variant))):
        check_weights(part, files)


def read(folder: Path, variant: str | None) -> dict[str, Any]:
    """Network, autoencoder and schedule of a pipeline that was checked, on the CPU."""
    parts: dict[str, Any] = {}
    for inside, network in (_network(folder, variant), _autoencoder(folder)):
        part = "unet" if inside.name.startswith("unet") else inside.name
        parts[part] = read_network(type(network), inside, _files(inside, variant))
    learned = predicts_variance(network_of(parts).config)
    if learned:
        log.info(VARIANCE, folder)
    return {**parts, "scheduler": schedule_of(folder, learned)}


def denoiser_of(parts: Mapping[str, Any]) -> LatentDenoiser:
    """The model as a Denoiser, on the CPU."""
    network, schedule = network_of(parts), schedule_from(parts["scheduler"])
    side = side_of(network.config["sample_size"])
    assert side is not None
    vae = parts.get("vqvae") or parts["vae"]
    denoiser = LatentDenoiser(network, vae, schedule, (network.config["in_channels"], side, side))
    config = network.config
    denoiser.num_classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    denoiser.null_class = config.get("num_embeds_ada_norm")  # DiT's last row, after its classes
    return denoiser


def network_of(parts: Mapping[str, Any]) -> Any:
    """The network that predicts noise."""
    return parts["transformer"] if "transformer" in parts else parts["unet"]


def _network(folder: Path, variant: str | None) -> tuple[Path, Any]:
    """The folder of the network and the network itself, without weights."""
    inside = folder / "transformer"
    inside = inside if inside.is_dir() else network_folder(folder, variant)
    return inside, autoencoders.described(inside, MISSING, NETWORKS)


def _autoencoder(folder: Path) -> tuple[Path, Any]:
    """The folder of the autoencoder and the autoencoder itself, without weights."""
    parts = parts_of(read_object(folder / INDEX, MISSING))
    inside = folder / next(name for name in ("vqvae", "vae") if name in parts)
    return inside, autoencoders.described(inside, MISSING)


def _files(inside: Path, variant: str | None) -> list[Path]:
    if inside.name.startswith("unet"):
        return unet_files(inside, variant)
    return weight_files(inside, variant, required=False)
