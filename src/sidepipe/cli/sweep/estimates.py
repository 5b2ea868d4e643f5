"""Estimates of the time of artifacts, from the manifests of the most similar finished ones."""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidepipe.cli.sweep.grid import Task
from sidepipe.engine.artifacts import MANIFEST, Artifact
from sidepipe.engine.graph import Node, stage_class

NEWEST = 50  # manifests read per stage
# Without earlier runs, to decide which artifacts are cheap: small networks on one CPU core.
SECONDS_PER_UNIT, LEAST_SECONDS = 2e-5, 2.0


@dataclass(frozen=True)
class Estimate:
    """seconds: the sum over all devices; device: that of the earlier runs."""

    seconds: float
    device: str


def estimates(tasks: Iterable[Task]) -> dict[str, Estimate | None]:
    """The estimate of each task by key; None without a finished artifact of its stage.

    It is the median time per unit of work of the finished artifacts of the stage that share the
    most settings with the task, including the settings of all stages upstream.
    """
    earlier: dict[str, list[_Finished]] = {}
    found: dict[str, Estimate | None] = {}
    for task in tasks:
        stages = task.folder.parent
        if stages.name not in earlier:
            earlier[stages.name] = list(_finished(stages))
        found[task.node.key] = _estimate(task.node, earlier[stages.name])
    return found


def expected_seconds(tasks: Sequence[Task]) -> dict[str, float]:
    """The estimated seconds of each task by key; without earlier runs a guess from its work."""
    found = estimates(tasks)
    return {
        task.node.key: _guess(task.node) if (own := found[task.node.key]) is None else own.seconds
        for task in tasks
    }


def _guess(node: Node) -> float:
    settings = {n.stage.name: n.settings for n in node.upstream().values()}
    return max(LEAST_SECONDS, SECONDS_PER_UNIT * _work(node.stage.name, settings))


@dataclass(frozen=True)
class _Finished:
    settings: frozenset[tuple[str, str]]
    seconds_per_unit: float
    device: str


def _estimate(node: Node, finished: list[_Finished]) -> Estimate | None:
    if not finished:
        return None
    settings = {n.stage.name: n.settings for n in node.upstream().values()}
    mine = _flat(settings)
    alike = [len(mine & each.settings) for each in finished]
    closest = [each for each, n in zip(finished, alike, strict=True) if n == max(alike)]
    rate = statistics.median(each.seconds_per_unit for each in closest)
    return Estimate(rate * _work(node.stage.name, settings), closest[-1].device)


def _finished(stages: Path) -> Iterator[_Finished]:
    paths = sorted(stages.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    for path in paths[-NEWEST:]:
        try:
            made = [(one.stage, one.manifest) for one in Artifact(path.parent).lineage()]
        except (FileNotFoundError, ValueError):
            continue  # an artifact upstream is deleted or damaged
        manifest = made[-1][1]
        if "empty" in manifest["summary"]:
            continue  # it did no work
        settings = {stage: each["settings"] for stage, each in made}
        devices = int(manifest["device"].split(" x ")[0])
        rate = devices * manifest["seconds"] / _work(stages.name, settings)
        yield _Finished(_flat(settings), rate, manifest["device"])


def _work(stage: str, settings: Mapping[str, Mapping[str, Any]]) -> float:
    """Units of work of `stage`: images, times values per image."""
    data = settings.get("data", {})
    values = data.get("size", 1) ** 2 * data.get("channels", 1)
    return values * stage_class(stage).work(settings[stage])


def _flat(settings: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """(path, value) of every setting within, as text."""

    def walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield from walk(f"{path}.{name}", inner)
        else:
            yield path, json.dumps(value)

    return frozenset(walk("", settings))
