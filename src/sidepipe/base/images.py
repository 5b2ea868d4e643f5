"""Conversion between images on disk (uint8, NHWC) and in models (float32, NCHW, in [-1, 1])."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from sidepipe.base.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor


def to_model(
    images: UInt8[np.ndarray, "n h w c"] | UInt8[Tensor, "n h w c"],
) -> Float[Tensor, "n c h w"]:
    """Float images in [-1, 1] from uint8 ones."""
    import torch

    # A copy: torch warns about memory-mapped arrays, which are read-only.
    tensor = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    return tensor.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)


def finite_images(x: Float[Tensor, "n ..."]) -> Bool[Tensor, "n"]:
    """Whether each image, or row, holds only finite numbers."""
    return x.isfinite().flatten(1).all(1)


def to_uint8(x_0: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n h w c"]:
    """uint8 images from float ones in [-1, 1]; values outside are clipped.

    Raises RuntimeError for nan and infinity, which would become black or white.
    """
    import torch

    finite = finite_images(x_0)
    if not finite.all():
        bad, count = int((~finite).sum()), len(x_0)
        raise RuntimeError(
            f"{bad} of {count} images are not finite; remedy: check the model's weights, and set "
            "precision=32-true"
        )
    scaled = x_0.float().add(1.0).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def grid(
    images: UInt8[np.ndarray, "n h w c"], columns: int | None = None, side: int = 64
) -> Image.Image:
    """A picture of images in rows, each enlarged by a whole factor to about `side` pixels."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    _, height, width, channels = images.shape
    factor = max(1, round(side / max(height, width)))
    canvas = np.full(
        (rows * (height * factor + 2), columns * (width * factor + 2), channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height * factor + 2), (i % columns) * (width * factor + 2)
        big = image.repeat(factor, axis=0).repeat(factor, axis=1)
        canvas[top : top + height * factor, left : left + width * factor] = big
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def save_grid(path: Path, images: UInt8[np.ndarray, "n h w c"], columns: int | None = None) -> None:
    """Writes `grid(images)` as PNG, by rename."""
    picture = grid(np.asarray(images), columns)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        picture.save(file, format="png")


def digests(images: UInt8[np.ndarray, "n h w c"]) -> list[str]:
    """The SHA-256 of each image's pixels."""
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images]
