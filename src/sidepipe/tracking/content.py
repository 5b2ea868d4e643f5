"""The content of a run: its values, curves, pictures and files, and the metrics of its training."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The x axis of training metrics: optimizer steps.
GLOBAL_STEP = "trainer/global_step"


@dataclass(frozen=True)
class Content:
    """The content that a finished artifact sends to W&B.

    summary: single values by key. curves: of each x axis, rows that hold it and what is drawn over
    it. pictures: images or files of them by key. files: bytes and SHA-256 of files of the
    artifact, by their names in its folder; their content is never sent.
    """

    summary: Mapping[str, float | str] = field(default_factory=dict)
    curves: Mapping[str, list[dict[str, float]]] = field(default_factory=dict)
    pictures: Mapping[str, list[Any]] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """The rows (step, metric, value) of a metrics.csv, in order; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [(int(step), name, float(value)) for step, name, value in list(csv.reader(file))[1:]]


def history(stage: str, path: Path) -> list[dict[str, float]]:
    """The rows that a run logs of the training in this metrics.csv, one per step, ascending.

    A resumed training repeats the steps since its checkpoint, and the later value holds.
    """
    steps: dict[int, dict[str, float]] = {}
    for step, name, value in read_metrics(path):
        steps.setdefault(step, {GLOBAL_STEP: step})[f"{stage}/{name}"] = value
    return [steps[step] for step in sorted(steps)]
