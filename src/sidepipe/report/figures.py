"""Curves as SVG and images as data URIs, byte for byte the same for the same numbers."""

import base64
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from sidepipe.report.attack import Attack

TRAIN, HELDOUT, GREY = "#1b4f8a", "#c2570c", "#8a8f98"
# Text as outlines: the same picture whatever fonts the reader has.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sidepipe",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.6,
}
LOSSLESS_PIXELS = 32
THUMBNAIL_PIXELS = 128
PICTURE_BYTES = 200_000


def curves_svg(attacks: Sequence[Attack], score: str) -> bytes:
    """A panel an attack: `score` ("ams" or "ums") at every threshold, training against held-out.

    The first attack's training curve is repeated in grey in every other panel.
    """
    columns = min(3, len(attacks))
    rows = math.ceil(len(attacks) / columns)
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(max(4.6, 3.3 * columns), 2.4 * rows + 0.55), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, attack in zip(axes.flat, attacks, strict=False):
            _panel(axis, attack, attacks[0], score)
        for axis in axes.flat[len(attacks) :]:
            axis.remove()
        for column in range(columns):
            last = axes[(len(attacks) - 1 - column) // columns, column]
            last.set_xlabel(_x_label(attacks[0]), parse_math=False)
            last.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel(f"{score.upper()}, % of images")
        _limits(axes[0, 0], attacks, score)  # shared by all panels
        handles = _legend(attacks)
        wide = len(handles) if columns == 3 else 2
        figure.legend(handles=handles, loc="outside upper left", ncols=wide, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _panel(axis: Any, attack: Attack, first: Attack, score: str) -> None:
    def line(of: Attack, which: str, **style: Any) -> None:
        curve = of.results["curve"]
        values = 100 * np.array(curve[which][score])
        # Nothing comes as close: a logarithm has no place for it.
        axis.plot(curve["thresholds"], np.where(values > 0, values, np.nan), **style)

    if attack is not first:
        line(first, first.compared, color=GREY, linewidth=0.9)
    if attack.compared != "train":
        line(attack, "train", color=TRAIN, linewidth=0.9, linestyle=":")
    line(attack, attack.compared, color=TRAIN, linewidth=1.6)
    line(attack, "heldout", color=HELDOUT, linewidth=1.4, linestyle=(0, (4, 2)))
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_title(attack.name, parse_math=False)
    if attack.hit_threshold is not None:
        axis.axvline(attack.hit_threshold, color="black", linewidth=0.7)


def _limits(axis: Any, attacks: Sequence[Attack], score: str) -> None:
    """The thresholds' range; from less than one image to more than the highest share."""
    curves = [attack.results["curve"] for attack in attacks]
    highest = max(max(curve[which][score]) for curve in curves for which in ("train", "heldout"))
    one_image = 1 / max(attack.num_images for attack in attacks)
    axis.set_xlim(curves[0]["thresholds"][0], curves[0]["thresholds"][-1])
    axis.set_ylim(70 * one_image, 130 * max(highest, one_image))


def _x_label(attack: Attack) -> str:
    if attack.metric == "cosine":
        return f"{attack.gamma_in_words}, at least  (closer →)"
    return f"(← closer)  {attack.gamma_in_words}, at most"


def _legend(attacks: Sequence[Attack]) -> list[Line2D]:
    first = attacks[0]
    handles = [Line2D([], [], color=TRAIN, linewidth=1.6, label="training images")]
    if first.compared != "train":
        handles[0].set_label("training images, as many as held out")
        handles.append(
            Line2D([], [], color=TRAIN, linewidth=0.9, linestyle=":", label="all training images")
        )
    dashes = (0, (4, 2))
    handles.append(
        Line2D([], [], color=HELDOUT, linewidth=1.4, linestyle=dashes, label="held-out images")
    )
    if len(attacks) > 1:
        handles.append(
            Line2D([], [], color=GREY, linewidth=0.9, label="training images, first attack")
        )
    if first.hit_threshold is not None:
        handles.append(Line2D([], [], color="black", linewidth=0.7, label="threshold of a hit"))
    return handles


def pairs_png(galleries: Sequence[tuple[str, np.ndarray]], columns: int = 16) -> bytes:
    """Of each attack (name, uint8 (n, 3, h, w, c)) the closest pairs, as one picture for a paper.

    Rows: generated image, nearest training image, nearest held-out image. Each training image
    comes once; a gallery shorter than `columns` leaves the rest blank.
    """
    rows = [(name, triples[:columns]) for name, triples in galleries if len(triples)]
    if not rows:
        return _encoded(Image.new("L", (1, 1), 255), "png")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 2.35 * len(rows)), layout="constrained", dpi=150)
        for axis, (name, triples) in zip(
            figure.subplots(len(rows), 1, squeeze=False).flat, rows, strict=True
        ):
            _, _, height, width, channels = triples.shape
            pad = max(1, height // 8)
            sheet = np.full((3 * (height + pad), columns * (width + pad), channels), 255, np.uint8)
            for column, triple in enumerate(triples):
                for row, image in enumerate(triple):
                    top, left = row * (height + pad), column * (width + pad)
                    sheet[top : top + height, left : left + width] = image
            axis.imshow(sheet[:, :, 0] if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255)
            axis.set_title(name, parse_math=False)
            axis.grid(False)
            axis.set_xticks([])
            centres = [height / 2 + row * (height + pad) for row in range(3)]
            axis.set_yticks(centres, ["generated", "training", "held-out"])
            axis.tick_params(length=0)
            axis.spines[["left", "bottom"]].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a data URI of the media type `image/<kind>`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail_uri(image: np.ndarray) -> str:
    """A uint8 (h, w, c) image: PNG where it is small, else WebP of at most 128 pixels."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if max(picture.size) <= LOSSLESS_PIXELS:
        return data_uri(_encoded(picture, "png", optimize=True), "png")
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    return data_uri(_encoded(picture, "webp", quality=88, method=6), "webp")


def picture_uri(path: Path) -> tuple[str, tuple[int, int]]:
    """A PNG file, as WebP where it is heavy, and its width and height in pixels."""
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
