"""The report of the finished artifacts of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sidepipe.cli.sweep.grid import Point, Sweep
from sidepipe.cli.sweep.states import Seen
from sidepipe.engine import artifacts
from sidepipe.engine.graph import Node
from sidepipe.engine.stage import Runtime

if TYPE_CHECKING:
    from sidepipe.stages.report.sweep.points import Missing
    from sidepipe.stages.report.sweep.points import Point as ReportedPoint


def write_report(sweep: Sweep, seen: Mapping[str, Seen]) -> Path:
    """Writes the page of the finished artifacts; returns its path. seen: all states by key."""
    from sidepipe.stages.report.sweep.page import write_sweep

    points = [_reported(point, seen) for point in sweep.points]
    title = sweep.points[0].plan.goals("report")[0].settings["title"]
    return write_sweep(sweep.folder / "report", title, points)


def _reported(point: Point, seen: Mapping[str, Seen]) -> ReportedPoint:
    """The point in the form that the report of a sweep takes."""
    from sidepipe.stages.report.sweep.points import Point as ReportedPoint

    runtime = point.plan.runtime
    (page,) = point.plan.goals("report")
    states = {node.key: seen.get(node.key, Seen("missing", "")) for node in page.inputs.values()}
    return ReportedPoint(
        point.axes,
        {
            attack: reported_attack(node, states[node.key], runtime)
            for attack, node in page.inputs.items()
        },
        page.folder(runtime) if page.key in seen and seen[page.key].kind == "done" else None,
    )


def reported_attack(node: Node, at: Seen, runtime: Runtime) -> Path | Missing:
    """The folder of a finished attack, or the reason why it has no result."""
    from sidepipe.stages.report.sweep.points import Missing

    if at.kind != "done":
        return Missing(node.key, str(at))
    folder = node.folder(runtime)
    why = artifacts.Artifact(folder).why_empty
    return folder if why is None else Missing(node.key, f"empty: {why}")
