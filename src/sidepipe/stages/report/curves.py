"""Figures over all thresholds: one panel per attack, training against held-out images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.figures import DASHES, GRAY, HELDOUT, TRAIN, panels

COLUMNS = 3
# UMS counts training images, of which there may be more than 100 % of the generated ones.
LABELS = {"ams": "AMS, % of generated images", "ums": "UMS, training images per 100 generated"}


def scores_figure(attacks: Sequence[Attack], score: str) -> Figure:
    """`score` ("ams" or "ums") at every threshold, on a logarithmic scale.

    The first attack's training curve is repeated in gray in every other panel.
    """
    figure, axes = panels(len(attacks), COLUMNS)
    for axis, attack in zip(axes, attacks, strict=True):
        _scores(axis, attack, attacks[0], score)
    _label(axes, attacks, LABELS[score])
    _limits(axes[0], attacks, score)  # shared by all panels
    handles = _score_handles(attacks)
    wide = len(handles) if len(attacks) >= COLUMNS else 2
    figure.legend(handles=handles, loc="outside upper left", ncols=wide, frameon=False)
    return figure


def _scores(axis: Any, attack: Attack, first: Attack, score: str) -> None:
    def line(of: Attack, which: str, **style: Any) -> None:
        curve = of.results["curve"]
        values = 100 * _values(of, which, score)
        # Nothing is as close: zero has no logarithm.
        axis.plot(curve["thresholds"], np.where(values > 0, values, np.nan), **style)

    if attack is not first:
        line(first, "train", color=GRAY, linewidth=0.9)
    line(attack, "train", color=TRAIN, linewidth=1.6)
    line(attack, "heldout", color=HELDOUT, linewidth=1.4, linestyle=DASHES)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _values(attack: Attack, which: str, score: str) -> np.ndarray:
    """The score's curve, scaled for held-out images to the number of training images."""
    curve = attack.results["curve"]
    if which == "heldout" and score == "ams" and attack.scale > 1:
        return np.array(curve["train"]["ams"]) - curve["excess"]["share"]
    return np.array(curve[which][score]) * (attack.scale if which == "heldout" else 1)


def _limits(axis: Any, attacks: Sequence[Attack], score: str) -> None:
    """From less than one image to more than the highest share, but at most to all images."""
    sets = ("train", "heldout")
    highest = max(_values(attack, which, score).max() for attack in attacks for which in sets)
    one_image = 1 / max(attack.num_images for attack in attacks)
    top = 130 * max(highest, one_image)
    axis.set_ylim(70 * one_image, min(100, top) if score == "ams" else top)


def excess_figure(attacks: Sequence[Attack]) -> Figure:
    """AMS on training images minus AMS on held-out images at every threshold, with its interval."""
    figure, axes = panels(len(attacks), COLUMNS)
    for axis, attack in zip(axes, attacks, strict=True):
        curve = attack.results["curve"]
        share, low, high = (100 * np.array(curve["excess"][k]) for k in ("share", "low", "high"))
        axis.axhline(0, color=GRAY, linewidth=0.9)
        axis.fill_between(
            curve["thresholds"], low, high, facecolor="#c9d8ea", edgecolor=TRAIN, linewidth=0.4
        )
        axis.plot(curve["thresholds"], share, color=TRAIN, linewidth=1.6)
    _label(axes, attacks, "excess, % of generated images")
    handles = [
        Line2D([], [], color=TRAIN, linewidth=1.6, label="training minus held-out"),
        Patch(facecolor="#c9d8ea", edgecolor=TRAIN, linewidth=0.4, label="95 % interval"),
        _threshold_handle(attacks[0]),
    ]
    wide = len(handles) if len(attacks) > 1 else 2
    figure.legend(handles=handles, loc="outside upper left", ncols=wide, frameon=False)
    return figure


def _label(axes: Sequence[Any], attacks: Sequence[Attack], ylabel: str) -> None:
    """Names, scales and the threshold of a hit."""
    first = attacks[0]
    thresholds = first.results["curve"]["thresholds"]
    axes[0].set_xlim(thresholds[0], thresholds[-1])
    columns = min(COLUMNS, len(axes))
    for axis, attack in zip(axes, attacks, strict=True):
        axis.set_title(attack.name, parse_math=False)
        axis.axvline(first.threshold, color="black", linewidth=0.7)
        axis.xaxis.set_major_locator(MaxNLocator(5))
    for axis in axes[::columns]:
        axis.set_ylabel(ylabel)
    for axis in axes[-columns:]:
        axis.set_xlabel(_x_label(first), parse_math=False)


def _x_label(attack: Attack) -> str:
    if attack.metric == "cosine":
        return f"{attack.gamma_in_words}, at least  (closer →)"
    return f"(← closer)  {attack.gamma_in_words}, at most"


def _score_handles(attacks: Sequence[Attack]) -> list[Line2D]:
    first = attacks[0]
    handles = [Line2D([], [], color=TRAIN, linewidth=1.6, label="training images")]
    label = "held-out images, scaled" if first.scale > 1 else "held-out images"
    handles.append(Line2D([], [], color=HELDOUT, linewidth=1.4, linestyle=DASHES, label=label))
    if len(attacks) > 1:
        handles.append(
            Line2D([], [], color=GRAY, linewidth=0.9, label="training images, first attack")
        )
    return [*handles, _threshold_handle(first)]


def _threshold_handle(first: Attack) -> Line2D:
    rate = f"{100 * first.headline['false_positive_rate']:g} %"
    label = f"hit ({rate} of real held-out images)"
    return Line2D([], [], color="black", linewidth=0.7, label=label)
