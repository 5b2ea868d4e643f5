"""The report's section on prompts: which replay a training image, and how early this shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sidepipe.stages.detect.stage import load, load_gallery, load_prompts
from sidepipe.stages.report import words
from sidepipe.stages.report.figures import DASHES, GRAY, HELDOUT, TRAIN, drawn, handle, legend
from sidepipe.stages.report.files import flat
from sidepipe.stages.report.gallery import sides
from sidepipe.stages.report.pictures import thumbnail_uri
from sidepipe.stages.report.section import Rows, Section, rows_of
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.terminal import aligned, wrapped
from sidepipe.stages.report.words import count

# The number of ranked prompts shown at first; the others unfold.
OPEN_PROMPTS = 20
SIGNALS = {
    "norm": "norm of D_t",
    "hessian": "Hessian of log p times D_t",
    "entropy": "entropy of cross-attention",
    "ssim": "similarity of first residuals",
    "tile_l2": "similarity of images, by tiles",
}
ROLES = {
    "planted": "planted training captions",
    "train": "other training captions",
    "test": "prompts to test on",
    "calibration": "calibration prompts",
}


@dataclass(frozen=True)
class Detection:
    """The results of one detect artifact on prompts. prompts: the most suspicious first."""

    results: dict[str, Any]
    prompts: Rows

    @property
    def decision(self) -> dict[str, Any]:
        """The row of the signal, generations and steps for which the threshold is set."""
        return self.results["decision"]

    @property
    def known(self) -> bool:
        """Whether prompts of both kinds are known, so that detection can be judged."""
        return self.decision["auc"] is not None

    @property
    def tested(self) -> Rows:
        """Prompts that detection is tested on."""
        return [row for row in self.prompts if row["role"] != "calibration"]

    @property
    def rate(self) -> str:
        """The false positive rate of the thresholds, in words."""
        return words.rate(self.results["false_positive_rate"])


def section(folder: Path) -> Section:
    """The report's section on prompts."""
    ranked = sorted(rows_of(load_prompts(folder)), key=lambda row: -row["d"])
    found = Detection(load(folder), ranked)
    tables = [signals_table(found)]
    tables += [memorized_table(found)] if found.results["labels"] else []
    return Section(
        tables=tables,
        drawings={name: drawn(draw) for name, draw in _figures(found).items()},
        content={"detection": {"found": found, "prompts": _pictured(folder), **_in_words(found)}},
        numbers={"signals": list(map(flat, found.results["signals"])), "prompts": ranked},
        text=_text(found),
        summary=_summary(found),
    )


def _summary(found: Detection) -> dict[str, Any]:
    names = ("generations", "steps", "auc", "auc_interval", "tpr", "tpr_interval", "threshold")
    return {name: found.decision[name] for name in names}


def _in_words(found: Detection) -> dict[str, Any]:
    """Numbers in words, for the template."""
    decision, tested = found.decision, found.tested
    shown = {
        "open": OPEN_PROMPTS,
        "tested": len(tested),
        "flagged": sum(row["flagged"] for row in tested),
        "calibration": sum(found.results["distributions"]["norm"]["calibration"]),
        "steps": "first step" if decision["steps"] == 1 else f"first {decision['steps']} steps",
        "cut": sum(row["cut"] != "" for row in found.prompts),
    }
    if not found.known:
        return shown
    return shown | {
        "memorized": sum(row["memorized"] is True for row in tested),
        "auc": words.with_interval(decision["auc"], decision["auc_interval"], places=3),
        "tpr": words.percent_interval(decision["tpr"], decision["tpr_interval"]),
        "caught": words.share(decision["flagged_memorized"]),
        "alarms": words.share(decision["flagged_others"]),
    }


def signals_table(found: Detection) -> Table:
    """Every signal by generations and steps: its cost and its accuracy."""
    rate = found.rate
    groups = [("used", 3), ("network evaluations", 2)]
    columns = ["images per prompt", "first steps", "decides", "per image", "per prompt"]
    if found.known:
        groups += [("all thresholds (95 % interval)", 2), (f"at {rate} of calibration prompts", 2)]
        columns += ["area under the ROC", f"found at {rate} false positives, %"]
        columns += ["memorized flagged, %", "others flagged, %"]
    rows = [(SIGNALS[row["signal"]], _signal_row(row, found)) for row in found.results["signals"]]
    caption = "Signals of memorization and their cost"
    return Table("signals_of_prompts", caption, groups, columns, rows, head="signal")


def _signal_row(row: Mapping[str, Any], found: Detection) -> list[str]:
    cells = [count(row["generations"]), count(row["steps"])]
    cells.append("decides" if row == found.decision else "")
    cells += [count(row[f"evaluations_per_{what}"]) for what in ("image", "prompt")]
    if not found.known:
        return cells
    cells.append(words.with_interval(row["auc"], row["auc_interval"], places=3))
    cells.append(words.percent_interval(row["tpr"], row["tpr_interval"]))
    return [*cells, *(words.share(row[f"flagged_{kind}"]) for kind in ("memorized", "others"))]


def memorized_table(found: Detection) -> Table:
    """Prompts whose generations are copies, by role and by repeats in training."""
    by = found.results["memorized_by"]
    of = {row["role"]: row for row in by["role"]}
    rows = [(name, _memorized_row(of[role])) for role, name in ROLES.items() if role in of]
    # Most captions seen once are not planted; the roles show them better.
    for row in by["repeats"]:
        if row["repeats"] > 1:
            rows.append((f"seen {count(row['repeats'])} times in training", _memorized_row(row)))
    caption = "Prompts whose generations replay a training image"
    groups, columns = [("", 1), ("memorized", 2)], ["prompts", "number", "share, % (95 % interval)"]
    return Table("memorized", caption, groups, columns, rows, head="prompts")


def _memorized_row(row: Mapping[str, Any]) -> list[str]:
    return [count(row["of"]), count(row["count"]), words.share(row)]


# Figures


def _figures(found: Detection) -> dict[str, Any]:
    draw: dict[str, Any] = {"distributions": partial(distributions_figure, found)}
    if found.known:
        draw["signals_roc"] = partial(signals_roc_figure, found)
    return draw


def distributions_figure(found: Detection) -> Figure:
    """|| D_t || of memorized, other and calibration prompts, with the threshold."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "memorized": ("memorized", {"color": TRAIN, "linewidth": 1.6}),
        "others": ("others", {"color": HELDOUT, "linewidth": 1.4, "linestyle": DASHES}),
        "unlabeled": ("unknown", {"color": TRAIN, "linewidth": 1.6, "linestyle": "dashdot"}),
        "calibration": ("calibration", {"color": GRAY, "linewidth": 1.2, "linestyle": "dotted"}),
    }
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis, shown, handles = figure.subplots(), found.results["distributions"]["norm"], []
    # Memorized prompts are often few: two bins are drawn as one.
    starts = np.arange(0, len(shown["edges"]) - 1, 2)
    edges = [*np.array(shown["edges"])[starts], shown["edges"][-1]]
    for kind, (name, style) in kinds.items():
        counts = np.add.reduceat(np.array(shown[kind], float), starts)
        if counts.sum():
            axis.stairs(100 * counts / counts.sum(), edges, baseline=None, **style)
            label = f"{name} ({count(counts.sum())} prompts)"
            handles.append(Line2D([], [], label=label, **style))
    axis.axvline(found.decision["threshold"], color="black", linewidth=0.7)
    label = f"threshold ({100 * found.results['false_positive_rate']:g} % of calibration)"
    handles.append(Line2D([], [], color="black", linewidth=0.7, label=label))
    axis.set_ylim(bottom=0)
    axis.set_xlabel("d, the mean norm of D_t")
    axis.set_ylabel("prompts of the kind, %")
    legend(figure, handles, loc="outside right upper")
    return figure


def signals_roc_figure(found: Detection) -> Figure:
    """The ROC of every signal at the deciding number of images, where false positives are few."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis, handles = figure.subplots(), []
    axis.axvline(found.results["false_positive_rate"], color="black", linewidth=0.7)
    distributions = found.results["distributions"]
    for number, signal in enumerate(name for name in SIGNALS if name in distributions):
        curve, line = distributions[signal]["roc"], handle(SIGNALS[signal], number, marker="none")
        style = {"color": line.get_color(), "linestyle": line.get_linestyle()}
        axis.step(curve["fpr"], curve["tpr"], where="post", **style)
        handles.append(line)
    axis.set_xlim(0, 0.2)
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("others flagged, share")
    axis.set_ylabel("memorized prompts found, share")
    label = f"{100 * found.results['false_positive_rate']:g} % false positives"
    handles.append(Line2D([], [], color="black", linewidth=0.7, label=label))
    legend(figure, handles, loc="outside right upper")
    return figure


# Prompts


def _pictured(folder: Path) -> dict[str, Any]:
    """The highest-ranked prompts with their images and the training image that comes closest."""
    images, train, table = load_gallery(folder)
    shown: Rows = []
    for rank, row in enumerate(rows_of(table)):
        shots = [thumbnail_uri(image) for image in images[rank]]
        closest = None if train is None else thumbnail_uri(train[rank])
        shown.append({**row, "rank": rank + 1, "shots": shots, "closest": closest})
    known = any(row["memorized"] in (True, False) for row in shown)
    return {"shown": shown, "known": known, "sides": sides(images.shape[2])}


def _text(found: Detection) -> str:
    """The terminal's text: the decision, and the signals at the deciding number of images."""
    shown, decision = _in_words(found), found.decision
    same = [r for r in found.results["signals"] if r["generations"] == decision["generations"]]
    names = ["signal", *(f"{SIGNALS[row['signal']]}, {row['steps']} steps" for row in same)]
    columns: list[Sequence[str]] = [
        ["evaluations", *(count(row["evaluations_per_prompt"]) for row in same)]
    ]
    if found.known:
        columns.append(["AUC", *(words.decimals(row["auc"]) for row in same)])
        columns.append([f"TPR at {found.rate}", *(words.decimals(row["tpr"]) for row in same)])
    text = (
        f"Detection of {shown['tested']} prompts, with {decision['generations']} images each: "
        f"{shown['flagged']} have a mean norm of D_t in the {shown['steps']} above "
        f"{decision['threshold']:.3g}, which {found.rate} of calibration prompts exceed"
    )
    text += f"; {shown['memorized']} are memorized." if found.known else "."
    table = [line.replace(words.NBSP, " ") for line in aligned(names, columns)]
    return "\n".join([*wrapped(text), "", *table]) + "\n"
