"""Figures of all attacks in one panel (rarefaction, ROC) and of labels, one panel per attack."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.figures import GRAY, MARKS, TRAIN, handle, legend, line_style, panels


def rarefaction_figure(attacks: Sequence[Attack]) -> Figure:
    """Different training images against generated images, with 95 % intervals as bars.

    Lines are solid up to the number of generated images and dashed beyond.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for number, attack in enumerate(attacks):
        _rarefaction(axis, attack, number)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("generated images")
    axis.set_ylabel("different training images hit")
    handles = [
        handle(attack.name, number, linestyle="solid") for number, attack in enumerate(attacks)
    ]
    handles.append(Line2D([], [], color=GRAY, label="interpolated"))
    handles.append(Line2D([], [], color=GRAY, linestyle="dashed", label="extrapolated"))
    legend(figure, handles, loc="outside right upper")
    return figure


def _rarefaction(axis: Any, attack: Attack, number: int) -> None:
    found = attack.results["rarefaction"]
    x = np.array(found["num_images"])
    unique, low, high = (np.array(found[name], float) for name in ("unique", "low", "high"))
    style = line_style(number)
    made = x <= attack.num_images
    # The dashed line continues the solid one.
    beyond = x >= x[made][-1]
    line = {"color": style["color"], "linewidth": 1.4}
    axis.plot(x[made], unique[made], **line)
    axis.plot(x[beyond], unique[beyond], **line, linestyle="dashed")
    # Each attack has its intervals at different positions, so that all are visible.
    some = np.arange(3 + number % len(MARKS), len(x), len(MARKS))
    error = np.stack([unique - low, high - unique])[:, some]
    mark = {"fmt": style["marker"], "markersize": 4, "elinewidth": 0.7, "capsize": 2}
    axis.errorbar(x[some], unique[some], error, color=style["color"], **mark)
    axis.plot(attack.num_images, attack.unique, style["marker"], color=style["color"], markersize=7)


def roc_figure(attacks: Sequence[Attack]) -> Figure:
    """Hits against misses among the blindly ranked candidates, for attacks that have both."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GRAY, linewidth=0.9)
    handles = []
    for number, attack in enumerate(attacks):
        roc = attack.results["blind"]["roc"]
        if roc is not None:
            style = line_style(number)
            axis.plot(
                roc["false_positive_rate"],
                roc["true_positive_rate"],
                **style,
                markevery=(3 + number, 25),
                markersize=4,
            )
            handles.append(handle(attack.name, number))
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("candidates taken that are no hits, share")
    axis.set_ylabel("candidates taken that are hits, share")
    handles.append(Line2D([], [], color=GRAY, linewidth=0.9, label="a ranking by chance"))
    legend(figure, handles, loc="outside right upper")
    return figure


def labels_figure(
    labels: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], x: str, xlabel: str
) -> Figure:
    """The yield of every label against `x`, for each (attack's name, rows of labels.csv)."""
    figure, axes = panels(len(labels))
    for axis, (name, rows) in zip(axes, labels, strict=True):
        _labels(axis, rows, x)
        axis.set_title(name, parse_math=False)
        axis.set_xlabel(xlabel)
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel("hits, % of the label's images")
    marks: list[tuple[str, dict[str, Any]]] = [
        ("with new hits", {"marker": "o", "markerfacecolor": TRAIN}),
        ("hits, none new", {"marker": "o", "markerfacecolor": "white"}),
        ("no hit", {"marker": "x"}),
    ]
    handles = [
        Line2D([], [], linestyle="none", color=TRAIN, markersize=5, label=label, **style)
        for label, style in marks
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
    return figure


def _labels(axis: Any, rows: Sequence[Mapping[str, Any]], x: str) -> None:
    names = ("images", x, "hits", "new")
    images, places, hits, new = (np.array([row[name] for row in rows], float) for name in names)
    # Every listed label was a target, so it has images.
    share = 100 * hits / images
    for mask, style in (
        (new > 0, {"marker": "o", "facecolors": TRAIN, "edgecolors": TRAIN}),
        ((hits > 0) & (new == 0), {"marker": "o", "facecolors": "none", "edgecolors": TRAIN}),
        (hits == 0, {"marker": "x", "color": TRAIN}),
    ):
        axis.scatter(places[mask], share[mask], s=18, linewidths=0.8, **style)
