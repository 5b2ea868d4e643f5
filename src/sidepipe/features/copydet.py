"""A small copy descriptor in the recipe of SSCD (Pizzi et al., 2022), trained by `descriptor`.

Two images are close when one is an edited copy of the other, not when they show the same kind of
thing. This module has the network and the encoder; the stage trains it.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sidepipe.base.pretrained import read_object
from sidepipe.base.settings import require
from sidepipe.base.weights import load_exactly
from sidepipe.features.encoders import Network

WEIGHTS, DESCRIPTION = "model.safetensors", "network.json"
STEM_SIDE = 32  # larger images are brought down to it by the first convolution
GEM_POWER, GEM_FLOOR = 3, 1e-6
NORM_GROUPS = 8


class ResidualBlock(nn.Module):
    """ResNet's basic block with group norms: a vector must not depend on the rest of its batch."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class CopyNet(nn.Module):
    """Unit vectors of RGB images in [-1, 1].

    size: height and width of the images in pixels. widths: channels of each level, one block per
    level, each level after the first at half the resolution. dimensions: of the vectors.
    """

    def __init__(self, size: int, widths: list[int], dimensions: int) -> None:
        super().__init__()
        require(size >= 4, "size", ">= 4 pixels", size)
        require(dimensions >= 2, "dimensions", ">= 2", dimensions)
        fit = bool(widths) and all(w >= 1 and w % NORM_GROUPS == 0 for w in widths)
        require(fit, "widths", f"multiples of {NORM_GROUPS}, one per level", widths)
        stride = max(1, size // STEM_SIDE)
        self.stem = nn.Conv2d(3, widths[0], 2 * stride + 1, stride, stride, bias=False)
        self.blocks = nn.Sequential()
        channels = widths[0]
        for level, width in enumerate(widths):
            self.blocks.append(ResidualBlock(channels, width, 2 if level > 0 else 1))
            channels = width
        self.project = nn.Linear(channels, dimensions)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        h = self.blocks(F.relu(self.stem(x)))
        return F.normalize(self.project(generalized_mean(h)).float(), dim=1)


def generalized_mean(h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
    """(mean of h^3)^(1/3) over all places, in float32: between the mean and the maximum (GeM)."""
    # Half precision cannot hold the third power of a small value.
    powers = h.float().clamp(min=GEM_FLOOR).pow(GEM_POWER)
    return powers.mean((2, 3)).pow(1 / GEM_POWER)


class CopyDet(Network):
    """The descriptor that the stage `descriptor` has trained.

    path: a folder with model.safetensors and network.json; None for the artifact of the current
    run, which stages set; encoding requires a path. Images of another size are resized to the
    training size without keeping their aspect ratio.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    @property
    def transform(self) -> str:
        """The name of the preprocessing with its size; copydet-v1 without a path."""
        return "copydet-v1" if self.path is None else f"copydet-v1-{self._description['size']}px"

    def check(self) -> None:
        """FileNotFoundError where a path is set and its files are missing."""
        if self.path is None:
            return
        for name in (WEIGHTS, DESCRIPTION):
            if not (self._folder / name).is_file():
                raise FileNotFoundError(
                    f"path must be a folder written by the stage descriptor, with {name}, got "
                    f"{self._folder}; sidepipe stage=descriptor makes one"
                )

    @property
    def _folder(self) -> Path:
        remedy = "set it to a folder that the stage descriptor wrote"
        require(self.path is not None, "path", "set before images are encoded", None, remedy)
        return Path(str(self.path)).expanduser()

    @cached_property
    def _description(self) -> dict[str, Any]:
        self.check()
        return read_object(self._folder / DESCRIPTION)

    @cached_property
    def _network(self) -> CopyNet:
        network = CopyNet(**self._description)
        load_exactly(network, [self._folder / WEIGHTS])
        return network.eval()

    def _prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        size = self._description["size"]
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        return x.clamp(0, 1) * 2 - 1

    def _embed(self, network: Any, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return network(x)
