"""How far artifacts are: done, running (with progress), failed, unfinished or missing."""

import json
from dataclasses import dataclass
from typing import Literal

from sidepipe import artifacts
from sidepipe.graph import Node, Plan
from sidepipe.pipeline import ERROR, LOG
from sidepipe.progress import clock
from sidepipe.stage import Runtime


@dataclass(frozen=True)
class State:
    """How far an artifact is: a word for programs and the details for a person."""

    kind: Literal["done", "running", "failed", "unfinished", "missing"]
    details: str = ""

    def __str__(self) -> str:
        return f"{self.kind}{self.details}"


def state(node: Node, runtime: Runtime) -> State:
    """The state of the node's artifact, from what lies on disk."""
    folder = node.folder(runtime)
    if manifest := artifacts.read_manifest(folder):
        return State("done", f", {manifest['seconds']:.0f} s, {manifest['finished']}")
    progress = artifacts.read_progress(folder)
    at = f" at {progress['unit']} {progress['step']}/{progress['total']}" if progress else ""
    if owner := artifacts.owner_of(folder):
        left = f", {clock(progress['seconds_left'])} left" if progress else ""
        return State("running", f" on {owner.host} pid {owner.pid}{at}{left}")
    if (folder / ERROR).exists():
        error = json.loads((folder / ERROR).read_text())["error"]
        return State("failed", f"{at}: {error}; log: {folder / LOG}")
    if folder.exists():
        return State("unfinished", f"{at}: the same command goes on")
    return State("missing")


def table(the_plan: Plan) -> str:
    """A line for each artifact of the plan: what it is, its key, its state."""
    nodes = the_plan.nodes.values()
    rows = [(the_plan.title(n), n.key, state(n, the_plan.runtime)) for n in nodes]
    width = max(len(title) for title, _, _ in rows)
    return "\n".join(f"{title:<{width}}  {key}  {at}" for title, key, at in rows)
