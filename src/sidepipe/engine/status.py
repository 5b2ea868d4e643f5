"""The states of artifacts: done, running (with progress), failed, damaged, unfinished, missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sidepipe.base import files
from sidepipe.engine import artifacts, integrity, locks
from sidepipe.engine.graph import Node, Plan
from sidepipe.engine.logs import clock
from sidepipe.engine.pipeline import ERROR, LOG
from sidepipe.engine.stage import Runtime


@dataclass(frozen=True)
class State:
    """The state of an artifact: a word for programs and the details for users."""

    kind: Literal["done", "running", "failed", "damaged", "unfinished", "missing"]
    details: str = ""

    def __str__(self) -> str:
        return f"{self.kind}{self.details}"


def state(node: Node, runtime: Runtime) -> State:
    """The state of the node's artifact, from its files."""
    folder = node.folder(runtime)
    try:
        manifest = artifacts.read_manifest(folder)
        if manifest is not None:
            return _finished(folder, manifest)
    except (ValueError, OSError) as error:  # the other artifacts still have states
        return State("damaged", f": {error}")
    progress = artifacts.read_progress(folder)
    at = f" at {progress['unit']} {progress['step']}/{progress['total']}" if progress else ""
    if owner := locks.owner_of(folder):
        left = f", {clock(progress['seconds_left'])} left" if progress else ""
        return State("running", f" on {owner.host} pid {owner.pid}{at}{left}")
    if (folder / ERROR).exists():
        error = (files.read_json(folder / ERROR) or {}).get("error")
        return State("failed", f"{at}: {error}; log: {folder / LOG}")
    if folder.exists():
        return State("unfinished", f"{at}: the same command resumes")
    return State("missing")


def _finished(folder: Path, manifest: Mapping[str, Any]) -> State:
    """Done or damaged, by presence and size: files are hashed only before a stage reads them."""
    integrity.require_sizes(folder, manifest)
    if lost := integrity.missing_files(folder, manifest):
        names = f"{', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}"
        return State("damaged", f": {names} missing; the same command makes it again")
    return State("done", f", {manifest['seconds']:.0f} s, {manifest['finished']}")


def table(the_plan: Plan) -> str:
    """One line per artifact of the plan: its title, its key, its state."""
    nodes = the_plan.nodes.values()
    rows = [(the_plan.title(n), n.key, state(n, the_plan.runtime)) for n in nodes]
    width = max(len(title) for title, _, _ in rows)
    return "\n".join(f"{title:<{width}}  {key}  {at}" for title, key, at in rows)
