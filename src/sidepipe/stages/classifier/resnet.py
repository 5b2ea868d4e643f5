"""A ResNet conditioned on the noise level (SIDE, section 4.1): p(y | x_t, t).

Each residual block gets a time module after its first batch norm: the time embedding scales and
shifts every channel of the normalized feature map.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sidepipe.base.settings import require, require_known


def time_embedding(t: Int64[Tensor, "n"], dim: int) -> Float[Tensor, "n dim"]:
    """Sines and cosines of t at geometric frequencies (DDPM, appendix B)."""
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2)
    )
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class TimeBlock(nn.Module):
    """ResNet's basic block with a time module after the first batch norm."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, embedding_dim: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.time = nn.Linear(embedding_dim, 2 * out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.time(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.relu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class TimeResNet(nn.Module):
    """Logits of p(y | x_t, t).

    blocks, widths: basic blocks and channels per level, where each level after the first halves the
    resolution; (3, 4, 6, 3) and (64, 128, 256, 512) are ResNet34. stem: "small" (3x3), or
    "imagenet" (7x7, stride 2, pooling) at a quarter of the resolution, for images of 128 pixels and
    more.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        blocks: Sequence[int],
        widths: Sequence[int],
        stem: str = "small",
        embedding_dim: int = 128,
    ) -> None:
        super().__init__()
        require(len(widths) == len(blocks), "widths", f"as many as blocks, {blocks}", widths)
        require(bool(blocks) and min(blocks) >= 1, "blocks", ">= 1 in every level", blocks)
        require_known("stem", stem, ["small", "imagenet"])
        require(embedding_dim % 2 == 0, "embedding_dim", "even", embedding_dim)
        self.embedding_dim = embedding_dim
        self.embed = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim),
            nn.SiLU(),
            nn.Linear(embedding_dim, embedding_dim),
            nn.SiLU(),
        )
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity(),
        )
        self.blocks = nn.ModuleList()
        channels = widths[0]
        for level, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for i in range(count):
                stride = 2 if i == 0 and level > 0 else 1
                self.blocks.append(TimeBlock(channels, width, stride, embedding_dim))
                channels = width
        self.head = nn.Linear(channels, num_classes)

    def forward(
        self, x_t: Float[Tensor, "n c h w"], t: Int64[Tensor, "n"]
    ) -> Float[Tensor, "n classes"]:
        embedding = self.embed(time_embedding(t, self.embedding_dim))
        h = self.stem(x_t)
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(h.mean((2, 3)))


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """`network`, in eval mode, with the batch norm after each convolution folded into it.

    The function is the same up to rounding, and faster; it cannot be trained further. Batch norms
    outside `TimeBlock` and sequences are left as they are.
    """
    for module in network.modules():
        if isinstance(module, TimeBlock):
            for conv, norm in (("conv1", "norm1"), ("conv2", "norm2")):
                fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, fused)
                setattr(module, norm, nn.Identity())
        if isinstance(module, nn.Sequential):
            for i, (conv, norm) in enumerate(pairwise(list(module))):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network
