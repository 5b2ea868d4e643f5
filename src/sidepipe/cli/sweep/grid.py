"""The points of a sweep: one plan per point of its grid; points share equal nodes.

A sweep is a file in `conf/sweep` with Hydra's axes (`hydra.sweeper.params`), so that
`sidepipe sweep=NAME` runs the same points one after another. Overrides take precedence.
"""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict

from sidepipe import stages
from sidepipe.base.settings import require, require_known
from sidepipe.cli.main import CONF, name_runs, options
from sidepipe.cli.sweep.references import Unsupported, filled
from sidepipe.engine.graph import Node, Plan
from sidepipe.engine.integrity import is_done
from sidepipe.engine.plan import plan, plan_of


@dataclass(frozen=True)
class Point:
    """One config of the grid.

    axes: the swept settings and their values here. overrides: the command line that composes it.
    """

    axes: dict[str, Any]
    overrides: tuple[str, ...]
    plan: Plan


@dataclass(frozen=True)
class Task:
    """A node that the sweep needs, and the points that need it."""

    node: Node
    points: tuple[Point, ...]

    @property
    def plan(self) -> Plan:
        return self.points[0].plan

    @property
    def title(self) -> str:
        return self.plan.title(self.node)

    @property
    def folder(self) -> Path:
        return self.node.folder(self.plan.runtime)

    @property
    def is_done(self) -> bool:
        """Whether its artifact is finished, with all its files."""
        return is_done(self.folder)

    def values(self, axes: Sequence[str]) -> str:
        """Its values on the axes on which all its points agree, as `seed=0 dpm.lr=0.1`."""
        shared = [{str(point.axes[axis]) for point in self.points} for axis in axes]
        pairs = zip(axes, shared, strict=True)
        return " ".join(f"{axis}={values.pop()}" for axis, values in pairs if len(values) == 1)


@dataclass(frozen=True)
class Sweep:
    """All points of a grid. stage: the last stage to run, as `stage=` on the command line."""

    name: str
    overrides: tuple[str, ...]
    stage: str
    points: tuple[Point, ...]

    @property
    def folder(self) -> Path:
        return sweep_folder(self.points[0].plan.runtime.outputs, self.name)

    @property
    def axes(self) -> list[str]:
        """The settings that differ between points."""
        first = self.points[0].axes
        return [axis for axis in first if len({str(p.axes[axis]) for p in self.points}) > 1]

    @property
    def record(self) -> dict[str, Any]:
        """The content of its file, which later commands and W&B read; see `engine.places`."""
        tracking = self.points[0].plan.tracking
        return {
            "overrides": list(self.overrides),
            "group": tracking.group,
            "tags": tracking.tags,
            "points": [
                {
                    "axes": point.axes,
                    "keys": list(point.plan.nodes),
                    "attacks": {
                        row: n.key for row, n in point.plan.goals("report")[0].inputs.items()
                    },
                }
                for point in self.points
            ],
        }

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The nodes that `stage` needs by key, each once, stage by stage in running order."""
        points: dict[str, list[Point]] = {}
        nodes: dict[str, Node] = {}
        for point in self.points:
            for key, node in point.plan.needed(self.stage).items():
                nodes[key] = node
                points.setdefault(key, []).append(point)
        flow = list(stages.STAGES)
        order = sorted(nodes, key=lambda key: flow.index(nodes[key].stage.name))
        return {key: Task(nodes[key], tuple(points[key])) for key in order}


def sweep_folder(outputs: str, name: str) -> Path:
    """The folder of a sweep: its jobs, its logs, its report."""
    return Path(outputs).expanduser().resolve() / "sweeps" / name


def folder_of(name: str, overrides: Sequence[str]) -> Path:
    """The folder of the sweep, without planning its points. Raises as `sweep_of`."""
    require_known("SWEEP", name, options("sweep"))
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        fixed, _ = _axes(name, overrides)
        return sweep_folder(compose("config", [f"sweep={name}", *fixed]).runtime.outputs, name)


def sweep_of(name: str, overrides: Sequence[str]) -> Sweep:
    """The sweep of `conf/sweep/<name>.yaml` with `overrides`, of which `a=1,2` is another axis.

    Raises ValueError for a wrong setting of any point, and Hydra's errors where a point cannot be
    composed.
    """
    require_known("SWEEP", name, options("sweep"))
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        fixed, axes = _axes(name, overrides)
        choices = itertools.product(*axes.values())
        composed: dict[tuple[str, ...], _Composed] = {}
        made: dict[str, Node] = {}
        points = [_point([f"sweep={name}", *fixed], each, composed, made) for each in choices]
    stage = str(next(iter(composed.values())).cfg.stage)
    require_known("stage", stage, ["all", *stages.STAGES])
    return Sweep(name, tuple(overrides), stage, tuple(points))


def plans_of(points: Sequence[Sequence[str]]) -> list[Plan]:
    """The plans of points, each given as its overrides, for a job of the sweep."""
    parser = OverridesParser.create()
    composed: dict[tuple[str, ...], _Composed] = {}
    made: dict[str, Node] = {}
    plans: dict[tuple[str, ...], Plan] = {}
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for overrides in {tuple(each): None for each in points}:
            choice = tuple(parser.parse_overrides(list(overrides)))
            plans[overrides] = _point([], choice, composed, made).plan
    return [plans[tuple(each)] for each in points]


def _composed(overrides: Sequence[str]) -> DictConfig:
    """The config of the overrides; its W&B runs have the names of its sweep and experiment."""
    cfg = compose("config", list(overrides), return_hydra_config=True)
    name_runs(cfg, cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _axes(name: str, overrides: Sequence[str]) -> tuple[list[str], dict[str, list[Override]]]:
    """The overrides of all points, and the overrides of the values of each axis."""
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(_params(name))
    axes = {each.get_key_element(): _values(parser, each) for each in parsed}
    fixed = []
    for each in parser.parse_overrides(list(overrides)):
        if each.is_sweep_override() or each.get_key_element() in axes:
            axes[each.get_key_element()] = _values(parser, each)
        else:
            fixed.append(str(each.input_line))
    return fixed, axes


@cache
def _params(name: str) -> list[str]:
    """The axes of `conf/sweep/<name>.yaml`, as overrides."""
    cfg = compose("config", [f"sweep={name}"], return_hydra_config=True)
    return [f"{key}={value}" for key, value in (cfg.hydra.sweeper.get("params") or {}).items()]


def _values(parser: OverridesParser, axis: Override) -> list[Override]:
    if not axis.is_sweep_override():
        return [axis]
    require(axis.is_discrete_sweep(), axis.get_key_element(), "a list of values", axis.input_line)
    texts = [f"{axis.get_key_element()}={value}" for value in axis.sweep_string_iterator()]
    return parser.parse_overrides(texts)


class _Composed:
    """The config of one choice of files, for all points that share it.

    Composing takes ten times as long as setting values, and resolving references takes longer than
    planning: points whose values are plain share `raw`, the config with its references.
    """

    def __init__(self, overrides: list[str]) -> None:
        self.cfg = _composed(overrides)
        self.raw: Any = None  # until a point has shown that `filled` is as OmegaConf

    def plan(self, values: Sequence[Override], made: dict[str, Node]) -> Plan:
        settings = {each.get_key_element(): each.value() for each in values}
        if self.raw is not None and all(_put(self.raw, *each) for each in settings.items()):
            return plan_of(filled(self.raw), made)
        for key, value in settings.items():
            OmegaConf.update(self.cfg, key, value, merge=True)
        the_plan = plan(self.cfg, made)
        raw = OmegaConf.to_container(self.cfg, resolve=False)
        self.raw = None
        with suppress(Unsupported):
            if filled(raw) == OmegaConf.to_container(self.cfg, resolve=True):
                self.raw = raw
        return the_plan


def _put(raw: Any, key: str, value: Any) -> bool:
    """Sets a plain value of an existing setting; returns False where only OmegaConf can set it."""
    *path, name = key.split(".")
    for each in path:
        raw = raw.get(each) if isinstance(raw, dict) else None
    is_plain = isinstance(value, int | float | str | None) and "${" not in str(value)
    if not isinstance(raw, dict) or name not in raw or not is_plain:
        return False
    raw[name] = value
    return True


def _point(
    fixed: list[str],
    choice: tuple[Override, ...],
    composed: dict[tuple[str, ...], _Composed],
    made: dict[str, Node],
) -> Point:
    """The point of one choice of values; points share the config of each choice of files."""
    files = tuple(str(each.input_line) for each in choice if not _is_value(each))
    if files not in composed:
        composed[files] = _Composed([*fixed, *files])
    axes = {each.get_key_element(): each.value() for each in choice}
    overrides = (*fixed, *(str(each.input_line) for each in choice))
    the_plan = composed[files].plan([each for each in choice if _is_value(each)], made)
    return Point(axes, overrides, the_plan)


def _is_value(override: Override) -> bool:
    """Whether it changes a value, rather than choosing a file, adding or removing."""
    key = str(override.key_or_group)
    is_group = override.package is not None or (CONF / key).is_dir()
    return override.type == OverrideType.CHANGE and not is_group
