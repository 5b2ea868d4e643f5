"""The data of a sweep's report: points, their finished attacks, and the axis of each setting.

Points are plain data that the caller computes from keys; every number comes from the finished
evaluate artifacts. A setting named `seed` repeats a point and is never an axis of a figure.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sidepipe.base.settings import require
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.comparison import read_attack
from sidepipe.stages.report.words import count


@dataclass(frozen=True)
class Missing:
    """An attack that is not finished: its evaluate artifact's key, and its state in words.

    The first word of the state is its kind: `queued`, `failed: <error>`, `running step 3/20`.
    """

    key: str
    state: str


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    axes: its swept settings by name, as typed (1000, not "1000"). attacks: the folder of each
    attack's finished evaluate artifact, by name. report: the folder of the point's own report.
    """

    axes: Mapping[str, Any]
    attacks: Mapping[str, Path | Missing]
    report: Path | None = None


@dataclass(frozen=True)
class Spot:
    """An attack at one place of the sweep: its points differ only in the seed.

    point: the first of these. x: its position in figures. panel: its panel, "" for a single panel.
    """

    attack: str
    place: str
    point: Point
    x: float
    panel: str
    finished: list[Attack]
    missing: list[Missing]


@dataclass(frozen=True)
class Sweep:
    """The points, and the finished attacks by name and folder."""

    points: Sequence[Point]
    attacks: Mapping[tuple[str, Path], Attack]

    @cached_property
    def ordered(self) -> list[Point]:
        """The points in the order of the settings' values; the seed sorts last."""

        def place(point: Point) -> list[int]:
            names = [*self.places, *self.repeated]
            return [self.axes[name].index(point.axes[name]) for name in names]

        return sorted(self.points, key=place)

    @cached_property
    def runs(self) -> list[tuple[Point, Attack]]:
        """Every finished attack with its point."""
        return [
            (point, self.attacks[name, found])
            for point in self.ordered
            for name, found in point.attacks.items()
            if isinstance(found, Path)
        ]

    @property
    def waiting(self) -> list[tuple[Point, str, Missing]]:
        """Every unfinished attack with its point, failed attacks first."""
        told = [
            (point, name, found)
            for point in self.ordered
            for name, found in point.attacks.items()
            if isinstance(found, Missing)
        ]
        return sorted(told, key=lambda one: kind(one[2].state) != "failed")

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """Values of every setting: numbers ascending, all else in the order of the points."""
        return {name: _distinct(p.axes[name] for p in self.points) for name in self.points[0].axes}

    @cached_property
    def swept(self) -> list[str]:
        """Settings with more than one value, seeds included."""
        return [name for name, values in self.axes.items() if len(values) > 1]

    @property
    def repeated(self) -> list[str]:
        """Seeds with more than one value."""
        return [name for name in self.swept if name.rpartition(".")[2] == "seed"]

    @property
    def places(self) -> list[str]:
        """Swept settings without the seeds."""
        return [name for name in self.swept if name not in self.repeated]

    @cached_property
    def x(self) -> str | None:
        """The setting on the x axis: the one with the most values, numbers preferred.

        None if only attacks and seeds vary: then attacks are drawn side by side.
        """
        numeric = [name for name in self.places if self.is_numeric(name)]
        return max(numeric or self.places, key=lambda name: len(self.axes[name]), default=None)

    def is_numeric(self, name: str | None) -> bool:
        return name is not None and all(map(_is_number, self.axes[name]))

    @property
    def panels(self) -> list[str]:
        """Names of a figure's panels: one for all values of the settings that are not drawn."""
        return list(dict.fromkeys(spot.panel for spot in self.spots))

    @property
    def names(self) -> list[str]:
        """The attacks, finished or not, in the order of the points."""
        return list(dict.fromkeys(name for point in self.points for name in point.attacks))

    @cached_property
    def spots(self) -> list[Spot]:
        """Every attack at every place, places in the order of the settings' values."""
        groups: dict[str, list[Point]] = {}
        for point in self.ordered:
            groups.setdefault(label(point, self.places), []).append(point)
        return [
            self._spot(place, name, points)
            for place, points in groups.items()
            for name in self.names
            if any(name in point.attacks for point in points)
        ]

    def _spot(self, place: str, name: str, points: Sequence[Point]) -> Spot:
        told = [point.attacks[name] for point in points if name in point.attacks]
        return Spot(
            name,
            place,
            points[0],
            self._position(points[0], name),
            panel=label(points[0], [other for other in self.places if other != self.x]),
            finished=[self.attacks[name, found] for found in told if isinstance(found, Path)],
            missing=[found for found in told if isinstance(found, Missing)],
        )

    def _position(self, point: Point, attack: str) -> float:
        """The value itself, or its place among the values if these are not numbers."""
        if self.x is None:
            return self.names.index(attack)
        value = point.axes[self.x]
        return value if self.is_numeric(self.x) else self.axes[self.x].index(value)


def read(points: Sequence[Point]) -> Sweep:
    """The sweep of these points; ValueError unless they differ and are measured alike."""
    require(len(points) > 0, "points", "at least one", 0, "a sweep of at least one point")
    names = [list(point.axes) for point in points]
    alike = all(name == names[0] for name in names)
    require(alike, "the settings of every point", "the same", names, "name them all at every point")
    labels = [label(point, point.axes) for point in points]
    twice = sorted({name for name in labels if labels.count(name) > 1})
    require(not twice, "points", "different from each other", twice, "give each one once")
    # Points share artifacts: plain sampling has no guidance scale.
    attacks = {
        (name, found): read_attack(name, found)
        for name, found in dict.fromkeys(item for point in points for item in point.attacks.items())
        if isinstance(found, Path)
    }
    _check_measures(attacks.values())
    return Sweep(points, attacks)


def _check_measures(attacks: Iterable[Attack]) -> None:
    """Requires the same measure everywhere; thresholds are calibrated for each model."""
    measures = {}
    for attack in attacks:
        require(
            attack.has_truth,
            f"evaluate.truth of {attack.folder.name}",
            "train",
            attack.results["truth"],
            "without the truth there are no hits to draw",
        )
        bands = {name: band["band"] for name, band in sorted(attack.results["bands"].items())}
        rate = attack.headline["false_positive_rate"]
        measure = f"{attack.metric} of {attack.transform}, false positives {rate:g}, bands {bands}"
        measures[measure] = attack.folder.name
    remedy = "report points that are evaluated alike, at a rate that all held-out sets allow"
    require(len(measures) <= 1, "the measure of all points", "one and the same", measures, remedy)


def _distinct(values: Iterable[Any]) -> list[Any]:
    found = list({value_words(value): value for value in values}.values())
    return sorted(found) if all(map(_is_number, found)) else found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_words(value: Any) -> str:
    """A setting's value for display: `25,000`, `0.5`, `null`."""
    if _is_number(value):
        return count(value) if isinstance(value, int) else f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def label(point: Point, names: Iterable[str]) -> str:
    """The point's values of these settings as typed: `dpm.num_train_images=1000, seed=0`."""
    values = ((name, point.axes[name]) for name in names)
    return ", ".join(f"{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in values)


def kind(state: str) -> str:
    """The kind of a state: its first word."""
    return state.split(maxsplit=1)[0].rstrip(":,;")
