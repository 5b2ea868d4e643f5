"""The style of all figures; the same numbers give the same bytes as SVG and PDF."""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

TRAIN, HELDOUT, GRAY = "#1b4f8a", "#c2570c", "#8a8f98"
DASHES = (0, (4, 2))
# Attacks in one panel differ in color, mark and dashes. The colors are those of Okabe and Ito,
# which are distinct for any color vision.
COLORS = ("#1b4f8a", "#c2570c", "#00805e", "#8c4a86", "#7a5c00", "#2b90c9", "#4d4d4d", "#b0355e")
MARKS = "osD^vPX*"
LINES = ("solid", "dashed", "dashdot", "dotted", (0, (7, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
STYLE: dict[Any, Any] = {
    # Text as outlines looks the same with any fonts.
    "svg.fonttype": "path",
    "svg.hashsalt": "sidepipe",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.6,
}


@contextmanager
def our_style() -> Iterator[None]:
    """The context in which all figures are drawn and saved."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # An attack's name may be in any script; no font covers all of them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def drawn(draw: Callable[[], Figure]) -> dict[str, bytes]:
    """The figure that `draw` makes in our style, as "svg" and as "pdf", without a date."""
    svg, pdf = io.BytesIO(), io.BytesIO()
    with our_style():
        figure = draw()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        # Both files have the same layout, which takes longer than drawing.
        figure.set_layout_engine("none")
        no_date = {"CreationDate": None, "Creator": None, "Producer": None}
        FigureCanvasPdf(figure).print_pdf(pdf, metadata=no_date)
    return {"svg": svg.getvalue(), "pdf": pdf.getvalue()}


def save(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """Writes `<name>.svg` and `<name>.pdf`."""
    for kind, content in files.items():
        (folder / f"{name}.{kind}").write_bytes(content)


def line_style(number: int) -> dict[str, Any]:
    """Color, mark and dashes of the `number`-th attack of a panel."""
    styles = {"color": COLORS, "marker": MARKS, "linestyle": LINES}
    return {name: choice[number % len(choice)] for name, choice in styles.items()}


def handle(name: str, number: int, **style: Any) -> Line2D:
    """The `number`-th attack's entry in a legend."""
    # matplotlib omits labels that begin with an underscore.
    return Line2D([], [], **{**line_style(number), "markersize": 4, **style}, label=f" {name}")


def legend(figure: Figure, handles: Sequence[Any], **options: Any) -> None:
    """A legend outside the axes, with names as plain text."""
    for text in figure.legend(handles=handles, frameon=False, **options).get_texts():
        text.set_parse_math(False)


def panels(number: int, columns: int = 3) -> tuple[Figure, Sequence[Any]]:
    """A figure with `number` axes in rows of `columns`, which share their scales."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(max(4.6, 3.3 * columns), 2.4 * rows + 0.55), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[number:]:
        axis.remove()
    for axis in axes.flat[max(0, number - columns) : number]:
        axis.tick_params(labelbottom=True)
    return figure, list(axes.flat[:number])
