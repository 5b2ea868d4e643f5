"""The family of models of table rows: a network of vectors, and the encoding of the rows.

A row is an image of one pixel, with a channel per entry of its encoding (`base.table_encoding`).
The network is a residual MLP, as in TabDDPM (Kotelnikov et al., 2023) and TabSyn, or a model in
closed form (`exact`). Categories are one-hot entries with the same Gaussian noise as numbers, as in
StaSy (Kim et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sidepipe.base.images import finite_images
from sidepipe.base.pretrained import read_object, weight_files
from sidepipe.base.settings import require
from sidepipe.base.table_encoding import Encoding
from sidepipe.base.weights import built, check_weights, read_network
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.models.exact import PART, MixtureModel
from sidepipe.models.families import ENCODING
from sidepipe.models.pixels import schedule_of
from sidepipe.models.schedules import schedule_from


class RowBlock(nn.Module):
    """A residual block whose input is shifted by the embedding of t."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.time = nn.LayerNorm(width), nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Float[Tensor, "n w"], embedding: Float[Tensor, "n w"]) -> Tensor:
        return h + self.layers(self.norm(h) + self.time(embedding))


class RowMLP(ModelMixin, ConfigMixin):
    """A network of vectors, called as a diffusers network, on (n, d, 1, 1).

    in_channels, out_channels: d of rows, and of the prediction; None for in_channels. width: of the
    hidden layers. num_blocks: residual blocks.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        width: int = 256,
        num_blocks: int = 4,
    ) -> None:
        super().__init__()
        self.steps = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed = TimestepEmbedding(width, width)
        self.enter = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(RowBlock(width) for _ in range(num_blocks))
        self.leave = nn.Sequential(
            nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, out_channels or in_channels)
        )

    def forward(self, x_t: Float[Tensor, "n d 1 1"], t: Int64[Tensor, "n"]) -> SimpleNamespace:
        """`.sample` has the prediction, (n, out_channels, 1, 1)."""
        embedding = self.embed(self.steps(t).to(x_t.dtype))
        h = self.enter(x_t.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return SimpleNamespace(sample=self.leave(h)[:, :, None, None])


@dataclass(frozen=True)
class RowEncoding:
    """The encoding of rows as a part of a pipeline."""

    encoding: Encoding

    def save_pretrained(self, folder: Path) -> None:
        """Writes schema.json and encoding.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        self.encoding.save(folder)


class RowDenoiser(Denoiser):
    """A model of rows: x_0 is an encoded row, and decoding gives the nearest row of the table."""

    has_range, image_dtype = False, np.float32

    def __init__(self, network: Any, scheduler: Any, encoding: Encoding) -> None:
        schedule = schedule_from(scheduler)
        alphas_cumprod, kind = schedule.alphas_cumprod, schedule.prediction_type
        super().__init__(network, alphas_cumprod, kind, (encoding.width, 1, 1))
        self.clip_range, self.step_rule = schedule.clip_range, schedule.step_rule
        self.encoding = encoding

    def decode(self, x_0: Float[Tensor, "n d 1 1"]) -> Float[Tensor, "n 1 1 d"]:
        """The nearest rows of the table, encoded; on the CPU. RuntimeError for nan and infinity."""
        bad, count = int((~finite_images(x_0)).sum()), len(x_0)
        if bad:
            raise RuntimeError(
                f"{bad} of {count} rows are not finite; remedy: check the model's weights, and set "
                "precision=32-true"
            )
        rows = self.encoding.project(x_0.flatten(1).float().cpu().numpy())
        return torch.from_numpy(rows)[:, None, None, :]

    def as_saved(self, x_0: Float[Tensor, "n d 1 1"]) -> Float[Tensor, "n d 1 1"]:
        return self.encode(self.decode(x_0)).to(x_0.device)


def check(folder: Path, variant: str | None, size: int | None, channels: int | None) -> None:
    """Raises unless `folder` has a model of rows, and the data, if any, are a table.

    size: 1 for rows, None for any. channels: not compared, for the width follows from the data.
    """
    kind, inside = _network(folder)
    path = inside / "config.json"
    network = built(kind, read_object(path), str(path))
    name = "in_channels" if kind is RowMLP else "channels"
    width, found = Encoding.load(folder / ENCODING).width, network.config[name]
    require(found == width, f"{name} of {path}", f"{width}, as of {ENCODING}/", found)
    rule = f"data=table for the model of rows in {folder}"
    require(size in (None, 1), "data", rule, f"images of {size} pixels")
    check_weights(network, weight_files(inside))
    schedule_of(folder)


def read(folder: Path, variant: str | None) -> dict[str, Any]:
    """Network, encoding and schedule of a folder that was checked, on the CPU."""
    kind, inside = _network(folder)
    network = read_network(kind, inside, weight_files(inside))
    encoding = RowEncoding(Encoding.load(folder / ENCODING))
    return {inside.name: network, ENCODING: encoding, "scheduler": schedule_of(folder)}


def denoiser_of(parts: Mapping[str, Any]) -> RowDenoiser:
    """The model as a Denoiser, on the CPU."""
    network = parts["unet"] if "unet" in parts else parts[PART]
    return RowDenoiser(network, parts["scheduler"], parts[ENCODING].encoding)


def _network(folder: Path) -> tuple[type[RowMLP | MixtureModel], Path]:
    """The class of the network and its folder, which has its usual name."""
    exact = folder / PART
    return (MixtureModel, exact) if exact.is_dir() else (RowMLP, folder / "unet")
