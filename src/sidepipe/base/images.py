"""Conversion between images on disk (uint8, NHWC) and in models (float32, NCHW, in [-1, 1]).

A row of a table is an image of one pixel with a channel per entry, float32 in both places.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from sidepipe.base.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor


# As the stages keep and compare them: uint8 images, or float32 rows of a table (n, 1, 1, d).
Images = UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"]


def to_model(
    images: Images | UInt8[Tensor, "n h w c"] | Float32[Tensor, "n h w c"],
) -> Float[Tensor, "n c h w"]:
    """Float images in [-1, 1] from uint8 ones; the entries of rows as they are."""
    import torch

    # A copy: torch warns about memory-mapped arrays, which are read-only.
    tensor = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    x_0 = tensor.permute(0, 3, 1, 2).contiguous()
    return x_0 if x_0.is_floating_point() else x_0.float().div_(127.5).sub_(1.0)


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


def grid(images: Images, columns: int | None = None, side: int = 64) -> Image.Image:
    """A picture of images in rows, each enlarged by a whole factor to about `side` pixels.

    A row of a table is a strip with a gray level per entry.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    if images.dtype != np.uint8:
        gray = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
        images = gray.reshape(len(gray), 1, -1, 1)
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


def save_grid(path: Path, images: Images, columns: int | None = None) -> None:
    """Writes `grid(images)` as PNG, by rename."""
    picture = grid(np.asarray(images), columns)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        picture.save(file, format="png")


def digests(images: Images) -> list[str]:
    """The SHA-256 of each image's pixels."""
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images]
