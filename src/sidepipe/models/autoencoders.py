"""Autoencoders of latent models: a VQModel or an AutoencoderKL of diffusers.

Codes are what it encodes, times its `scaling_factor`; of an AutoencoderKL the mean of its
posterior.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sidepipe.base.images import to_model, to_uint8
from sidepipe.base.pretrained import read_object, weight_files
from sidepipe.base.settings import require
from sidepipe.base.weights import built, check_weights, read_network
from sidepipe.diffusion.finite import NOT_FINITE

KINDS = {"VQModel": diffusers.VQModel, "AutoencoderKL": diffusers.AutoencoderKL}
AT_ONCE = 8  # images: an autoencoder needs more memory than the network


def described(folder: Path, missing: str = "", kinds: Mapping[str, Any] = KINDS) -> Any:
    """The network that config.json in `folder` describes, one of `kinds`, without weights.

    missing: the remedy where there is no such file.
    """
    path = folder / "config.json"
    config = read_object(path, missing)
    kind = config.get("_class_name")
    require(kind in kinds, f"_class_name of {path}", f"one of {', '.join(kinds)}", kind)
    return built(kinds[str(kind)], config, str(path))


def check(folder: Path, missing: str) -> Mapping[str, Any]:
    """The config of the autoencoder in `folder`, a folder written by its save_pretrained."""
    network = described(folder, missing)
    shift = network.config.get("shift_factor")
    require(not shift, f"shift_factor of {folder / 'config.json'}", "null", shift)
    check_weights(network, weight_files(folder))
    return network.config


def read(folder: Path) -> Any:
    """The autoencoder in `folder`, with its weights, on the CPU and without gradients."""
    network = read_network(type(described(folder)), folder, weight_files(folder))
    return network.requires_grad_(False)


def factor(config: Mapping[str, Any]) -> int:
    """Pixels per code along a side."""
    return 2 ** (len(config["block_out_channels"]) - 1)


@torch.no_grad()
def encoded(vae: Any, images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n k i j"]:
    """The codes of images, on the device of both."""
    return torch.cat([_encoded(vae, to_model(part)) for part in images.split(AT_ONCE)])


def _encoded(vae: Any, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        found = vae.encode(images)
    codes = found.latents if isinstance(vae, diffusers.VQModel) else found.latent_dist.mean
    return codes * vae.config["scaling_factor"]


@torch.no_grad()
def decoded(vae: Any, codes: Float[Tensor, "n k i j"]) -> UInt8[Tensor, "n h w c"]:
    """The images of codes."""
    # Without the sampler's autocast, in which an autoencoder may overflow.
    with torch.autocast(codes.device.type, enabled=False):
        return torch.cat([_decoded(vae, part) for part in codes.float().split(AT_ONCE)])


def _decoded(vae: Any, codes: Tensor) -> UInt8[Tensor, "n h w c"]:
    images = vae.decode(codes / vae.config["scaling_factor"]).sample
    if not images.isfinite().all():
        raise RuntimeError(f"the autoencoder's images are not finite; {NOT_FINITE}")
    return to_uint8(images)
