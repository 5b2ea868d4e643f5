"""The report's section on surrogate labels: whether a label's signal predicts its yield."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sidepipe.engine.artifacts import Artifact
from sidepipe.memorization.rates import rank_correlation
from sidepipe.stages.detect.labels import load_labels
from sidepipe.stages.evaluate.tables import load_labels as load_yields
from sidepipe.stages.report import words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.figures import drawn
from sidepipe.stages.report.plots import labels_figure
from sidepipe.stages.report.section import Rows, Section, rows_of
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.terminal import aligned, wrapped
from sidepipe.stages.report.words import count


@dataclass(frozen=True)
class LabelYields:
    """An attack's labels: signal, cohesion, and the share of hits among the label's images."""

    name: str
    rows: Rows

    def column(self, name: str) -> np.ndarray:
        """The column `name`, one value per label."""
        return np.array([row[name] for row in self.rows], float)

    def correlation(self, name: str) -> float | None:
        """Spearman's rank correlation of `name` with the yield; None where either is constant."""
        return rank_correlation(self.column(name), self.column("hits") / self.column("images"))


def is_of_labels(folder: Path) -> bool:
    """Whether a detect artifact is about surrogate labels, not prompts."""
    return "num_labels" in Artifact(folder).summary


def section(folder: Path, attacks: Sequence[Attack]) -> Section:
    """The report's section on labels: their signals and the yields of attacks that aim at them."""
    detect, signals = Artifact(folder), rows_of(load_labels(folder))
    of = {row["label"]: row for row in signals}
    found = [
        LabelYields(attack.name, [{**row, **of[row["label"]]} for row in rows])
        for attack in attacks
        if (rows := load_yields(attack.folder))
        and attack.manifests["label"]["key"] == detect.inputs["label"].key
    ]
    about = {"settings": detect.settings, "num_labels": len(signals)}
    shown = [(one.name, one.rows) for one in found]
    figure = partial(labels_figure, shown, "signal", "mean norm of D_t of the label")
    return Section(
        tables=[labels_table(found)] if found else [],
        drawings={"label_signals": drawn(figure)} if found else {},
        content={"label_signals": about},
        numbers={"label_signals": signals},
        text=_text(found, about["num_labels"]),
        summary={one.name: one.correlation("signal") for one in found},
    )


def labels_table(found: Sequence[LabelYields]) -> Table:
    """How well the signal and cohesion predict the yield of labels."""
    groups, columns = [("", 2), ("rank correlation with the yield", 2)], ["labels", "with hits"]
    columns += ["norm of D_t", "cohesion"]
    rows = [(one.name, _row(one)) for one in found]
    return Table(
        "label_signals_by_attack", "Signals of labels and their yield", groups, columns, rows
    )


def _row(one: LabelYields) -> list[str]:
    cells = [count(len(one.rows)), count((one.column("hits") > 0).sum())]
    return cells + [words.decimals(one.correlation(name), 2) for name in ("signal", "cohesion")]


def _text(found: Sequence[LabelYields], num_labels: int) -> str:
    """The terminal's text: one line per attack."""
    if not found:
        return f"Detection of {num_labels} labels: no attack here aims at them.\n"
    table = labels_table(found)
    columns = [[name, *(c[i] for _, c in table.rows)] for i, name in enumerate(table.columns)]
    text = "Detection of labels: rank correlation of norm of D_t, and of cohesion, with the yield."
    lines = aligned(["attack", *(one.name for one in found)], columns)
    return "\n".join([*wrapped(text), "", *lines]) + "\n"
