"""One figure per quantity: the swept setting is the x axis, each attack a line."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import offset_copy

from sidepipe.stages.report.figures import GRAY, handle, legend, line_style, panels
from sidepipe.stages.report.sweep.points import Spot, Sweep, value_words
from sidepipe.stages.report.sweep.quantities import Quantity

# The distance, in printer's points, between attacks drawn side by side at one value.
APART = 4.0
# Above this ratio of largest to smallest value, a scale is logarithmic; zero is still shown.
WIDE_X, WIDE_Y = 10, 30
# The width of a label's character, the space of a turned label, and the most characters.
SIGN_POINTS, TURNED_POINTS = 5.0, 18.0
LONGEST_LABEL, LONGEST_NAME = 24, 30


def shortened(name: str, width: int) -> str:
    """The name without its middle if it is too long: variants often differ at their end."""
    if len(name) <= width:
        return name
    tail = (width - 2) // 2
    return name[: width - 2 - tail] + ".." + name[-tail:]


def sweep_figure(sweep: Sweep, quantity: Quantity) -> Figure:
    """The quantity at every place of the sweep.

    With several seeds every run is a hollow mark and the line joins their means; else the bars are
    the intervals of the runs. A setting that is not a number has no line.
    """
    figure, axes = panels(len(sweep.panels))
    columns = min(3, len(axes))
    room = 0.8 * 72 * figure.get_figwidth() / columns  # the width of a panel, in points
    apart = min(APART, 0.6 * _scale_x(axes, sweep, room) / len(sweep.names))
    for axis, panel in zip(axes, sweep.panels, strict=True):
        for number, name in enumerate(sweep.names):
            spots = [s for s in sweep.spots if (s.panel, s.attack) == (panel, name) and s.finished]
            if spots:
                aside = apart * (number - (len(sweep.names) - 1) / 2)
                _attack(axis, spots, quantity, sweep, 0 if sweep.x is None else aside, number)
        axis.set_title(panel, parse_math=False)
    _scale_y(axes[0], sweep, quantity)
    for axis in axes[::columns]:
        axis.set_ylabel(quantity.title)
    for axis in axes[-columns:]:
        axis.set_xlabel(sweep.x or "", parse_math=False)
    _legend(figure, sweep, quantity)
    return figure


def _attack(
    axis: Any, spots: Sequence[Spot], quantity: Quantity, sweep: Sweep, aside: float, number: int
) -> None:
    style = line_style(number)
    moved = {
        "transform": offset_copy(axis.transData, axis.figure, x=aside, units="points"),
        "color": style["color"],
        "clip_on": False,  # a mark at zero is a whole mark
    }
    line = style["linestyle"] if sweep.is_numeric(sweep.x) else "none"
    x, y = [spot.x for spot in spots], [quantity.mean(spot) for spot in spots]
    axis.plot(x, y, **moved, marker=style["marker"], markersize=4, linestyle=line, linewidth=1.2)
    if sweep.repeated:
        _runs(axis, spots, quantity, {**moved, "marker": style["marker"]})
    elif quantity.interval is not None:
        ends = np.array([quantity.interval(spot.finished[0]) for spot in spots]).T
        error = np.abs(ends - y)
        axis.errorbar(x, y, error, **moved, fmt="none", elinewidth=0.7, capsize=2)


def _runs(axis: Any, spots: Sequence[Spot], quantity: Quantity, style: dict[str, Any]) -> None:
    """Every run as a hollow mark; those of one spot are joined."""
    ends = [(spot.x, quantity.value(attack)) for spot in spots for attack in spot.finished]
    breaks = np.cumsum([len(spot.finished) for spot in spots])[:-1]
    x, y = np.insert(np.array(ends, float), breaks, np.nan, axis=0).T
    hollow = {"markersize": 3, "markerfacecolor": "none", "markeredgewidth": 0.6}
    axis.plot(x, y, **style, **hollow, linewidth=0.6)


def _scale_x(axes: Sequence[Any], sweep: Sweep, room: float) -> float:
    """Uses the values as ticks (the attacks, without a swept setting), within `room`.

    Returns the smallest distance between ticks. Both are in points.
    """
    values = sweep.names if sweep.x is None else sweep.axes[sweep.x]
    names = [shortened(value_words(value), LONGEST_LABEL) for value in values]
    if sweep.is_numeric(sweep.x):
        return _numbers(axes[0], values, names, room)  # shared by all panels
    apart = room / len(values)
    turned = sum(len(name) + 2 for name in names) * SIGN_POINTS > room
    every = math.ceil(TURNED_POINTS / apart) if turned else 1
    axes[0].set_xlim(-0.6, len(values) - 0.4)
    axes[0].set_xticks(range(0, len(values), every), names[::every])
    if turned:
        _turn(axes)
    return apart


def _numbers(axis: Any, values: Sequence[Any], names: Sequence[str], room: float) -> float:
    """Sets a tick at every value and names where they fit; returns the smallest distance."""
    _stretch(axis.set_xscale, values)
    scale = axis.xaxis.get_transform()
    places = scale.transform(np.array(values, float))
    span = places[-1] - places[0]
    margins = [places[0] - 0.08 * span, places[-1] + 0.08 * span]
    axis.set_xlim(*scale.inverted().transform(margins))
    points = (places - places[0]) / span * room
    axis.set_xticks(values, _with_room(names, points))
    axis.minorticks_off()
    return float(np.diff(points).min())


def _stretch(set_scale: Any, values: Sequence[float]) -> None:
    """Sets a logarithmic scale if the range of the values requires it."""
    above = [value for value in values if value > 0]
    if min(values) < 0 or not above or max(above) / min(above) <= WIDE_X:
        return
    if min(values) > 0:
        set_scale("log")
    else:
        # To include zero, the scale is linear below the smallest value.
        set_scale("symlog", linthresh=min(above))


def _with_room(names: Sequence[str], places: Sequence[float]) -> list[str]:
    """The names, empty where the previous one leaves no room; places in points."""
    end, shown = -math.inf, []
    for name, place in zip(names, places, strict=True):
        half = len(name) * SIGN_POINTS / 2
        fits = place - half > end + SIGN_POINTS
        end = place + half if fits else end
        shown.append(name if fits else "")
    return shown


def _turn(axes: Sequence[Any]) -> None:
    """Turns names that do not fit next to each other."""
    for axis in axes:
        axis.tick_params(axis="x", labelrotation=30)
        for text in axis.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")


def _scale_y(axis: Any, sweep: Sweep, quantity: Quantity) -> None:
    """Starts the axis at zero or at the lowest value; logarithmic if the range requires it."""
    attacks = [attack for _, attack in sweep.runs]
    values = [quantity.value(attack) for attack in attacks]
    above = [value for value in values if value > 0]
    if quantity.interval is not None and not sweep.repeated:
        values += [end for attack in attacks for end in quantity.interval(attack)]
    low, high = min(0.0, *values), max([*values, 1e-3])
    if above and max(above) / min(above) > WIDE_Y:
        start = 10 ** math.floor(math.log10(min(above)))
        axis.set_yscale("symlog", linthresh=start, linscale=0.4)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_ylim(1.3 * low, 1.3 * high)
    else:
        axis.set_ylim(1.05 * low, 1.05 * high)


def _legend(figure: Figure, sweep: Sweep, quantity: Quantity) -> None:
    done = {attack.name for _, attack in sweep.runs}
    line = {} if sweep.is_numeric(sweep.x) else {"linestyle": "none"}
    handles = [
        handle(shortened(name, LONGEST_NAME), number, **line)
        for number, name in enumerate(sweep.names)
        if name in done and sweep.x is not None
    ]
    if sweep.repeated:
        hollow = {"marker": "o", "markersize": 3, "markerfacecolor": "none"}
        handles.append(Line2D([], [], color=GRAY, linewidth=0.6, **hollow, label="runs"))
    elif quantity.interval is not None:
        bar = {"marker": "|", "markersize": 5, "linewidth": 0.7}
        handles.append(Line2D([], [], color=GRAY, **bar, label="95 % interval"))
    columns = 2 if len(sweep.panels) == 1 else 4
    legend(figure, handles, loc="outside upper left", ncols=columns, fontsize=7)
    rows = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * (rows - 1))
