"""Images: thumbnails as data URIs for the page, the closest pairs as one picture for a paper."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sidepipe.stages.report.figures import our_style

LOSSLESS_PIXELS = 32
THUMBNAIL_PIXELS = 128
PICTURE_BYTES = 200_000


def pairs_png(galleries: Sequence[tuple[str, np.ndarray]], columns: int = 16) -> bytes:
    """The closest pairs of each attack (name, uint8 (n, 3, h, w, c)), as one picture for a paper.

    Rows: generated image, nearest training image, nearest held-out image. Each training image
    comes once; a gallery shorter than `columns` leaves the rest blank.
    """
    rows = [(name, triples[:columns]) for name, triples in galleries if len(triples)]
    if not rows:
        return _encoded(Image.new("L", (1, 1), 255), "png")
    with our_style():
        figure = Figure(figsize=(10, 2.35 * len(rows)), layout="constrained", dpi=150)
        for axis, (name, triples) in zip(
            figure.subplots(len(rows), 1, squeeze=False).flat, rows, strict=True
        ):
            sheet = _sheet(triples, columns)
            axis.imshow(sheet, cmap="gray", vmin=0, vmax=255)
            axis.set_title(name, parse_math=False)
            axis.grid(False)
            axis.set_xticks([])
            centers = (np.arange(3) + 0.5) * sheet.shape[0] / 3
            axis.set_yticks(centers, ["generated", "training", "held-out"])
            axis.tick_params(length=0)
            axis.spines[["left", "bottom"]].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _sheet(triples: np.ndarray, columns: int) -> np.ndarray:
    """One column per triple, on white; gray images have no axis of channels."""
    _, _, height, width, channels = triples.shape
    pad = max(1, height // 8)
    sheet = np.full((3 * (height + pad), columns * (width + pad), channels), 255, np.uint8)
    for column, triple in enumerate(triples):
        for row, image in enumerate(triple):
            top, left = row * (height + pad), column * (width + pad)
            sheet[top : top + height, left : left + width] = image
    return sheet[:, :, 0] if channels == 1 else sheet


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a data URI of the media type `image/<kind>`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail_uri(image: np.ndarray) -> str:
    """A uint8 (h, w, c) image: PNG if it is small, else WebP of at most 128 pixels.

    A small image is enlarged by a whole factor: print and PDF viewers would smooth it otherwise.
    """
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if max(picture.size) <= LOSSLESS_PIXELS:
        factor = max(1, THUMBNAIL_PIXELS // max(picture.size))
        larger = (factor * picture.width, factor * picture.height)
        picture = picture.resize(larger, Image.Resampling.NEAREST)
        return data_uri(_encoded(picture, "png", optimize=True), "png")
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    return data_uri(_encoded(picture, "webp", quality=88, method=6), "webp")


def picture_uri(path: Path) -> tuple[str, tuple[int, int]]:
    """A PNG file, as WebP if it is large, and its width and height in pixels."""
    with Image.open(path) as picture:
        if path.stat().st_size <= PICTURE_BYTES:
            return data_uri(path.read_bytes(), "png"), picture.size
        return data_uri(_encoded(picture, "webp", quality=85, method=6), "webp"), picture.size


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


def shown_pixels(side: int, wanted: int) -> int:
    """The side at which an image is shown: a whole multiple near `wanted`, at most 128."""
    return min(THUMBNAIL_PIXELS, side * max(1, round(wanted / side)))
