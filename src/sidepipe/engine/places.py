"""The record of a sweep, and the places of its artifacts on its axes, for runs in W&B.

`make sweep` writes the record before anything runs. A setting named `seed` repeats a point and is
no axis, as in the report of the sweep.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sidepipe.base.files import load_json

RECORD = "sweep.json"
REMEDY = "remedy: run make sweep again, which writes it"


@dataclass(frozen=True)
class Place:
    """The place of an artifact in a sweep.

    attack: the rows of the comparison whose evaluation it is, "" for another artifact. values: its
    values on each axis; several where points share it, as the unconditional baseline is the same
    at every guidance scale.
    """

    attack: str
    values: Mapping[str, list[Any]]

    def label(self, axes: Iterable[str]) -> str:
        """The attack and the values on those of `axes` on which all its points agree."""
        alone = [(axis, self.values[axis][0]) for axis in axes if len(self.values[axis]) == 1]
        named = [f"{axis}={v if isinstance(v, str) else json.dumps(v)}" for axis, v in alone]
        return ", ".join(filter(None, [self.attack, *named]))

    def config(self) -> dict[str, str]:
        """The names by which panels group runs: its point, and its line over each axis."""
        lines = {
            line_key(axis): self.label(a for a in self.values if a != axis) for axis in self.values
        }
        return {"point": self.label(self.values), **lines}


@dataclass(frozen=True)
class Record:
    """The record of a sweep.

    points: of each its `axes` with their values, the `keys` of its artifacts, and those of its
    evaluations as `attacks` by row.
    """

    group: str
    tags: list[str] | None
    points: Sequence[Mapping[str, Any]]

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """The values of each swept setting; without seeds and settings of one value."""
        names = [n for n in self.points[0]["axes"] if n.rpartition(".")[2] != "seed"]
        values = {name: _distinct(point["axes"][name] for point in self.points) for name in names}
        return {name: found for name, found in values.items() if len(found) > 1}

    @cached_property
    def _points_of(self) -> dict[str, list[Mapping[str, Any]]]:
        found: dict[str, list[Mapping[str, Any]]] = {}
        for point in self.points:
            for key in point["keys"]:
                found.setdefault(key, []).append(point)
        return found

    def place(self, key: str) -> Place | None:
        """The place of the artifact, None where no point needs it."""
        points = self._points_of.get(key, [])
        rows = [row for point in points for row, own in point["attacks"].items() if own == key]
        values = {axis: _distinct(point["axes"][axis] for point in points) for axis in self.axes}
        return Place(", ".join(dict.fromkeys(rows)), values) if points else None


def read_record(folder: Path) -> Record | None:
    """The record of the sweep in `folder`, None where it has none."""
    path = folder / RECORD
    content = load_json(path, REMEDY) if path.exists() else {}
    if not content.get("points"):
        return None
    return Record(content["group"], content["tags"], content["points"])


def records(outputs: Path) -> dict[str, Record]:
    """The records of all sweeps below `outputs`, by name."""
    found = {
        p.parent.name: read_record(p.parent) for p in sorted(outputs.glob(f"sweeps/*/{RECORD}"))
    }
    return {name: record for name, record in found.items() if record is not None}


def is_numeric(values: Iterable[Any]) -> bool:
    """Whether all values of an axis are numbers."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def axis_key(axis: str) -> str:
    """The W&B key of a swept setting, the x axis of panels."""
    return f"sweep/{_slashed(axis)}"


def line_key(axis: str) -> str:
    """The W&B config key of the name of a run's line over this axis."""
    return f"line/{_slashed(axis)}"


def _slashed(axis: str) -> str:
    # W&B takes a dot for a level of a nested config.
    return re.sub(r"\W+", "/", axis).strip("/")


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value): value for value in values}.values())
