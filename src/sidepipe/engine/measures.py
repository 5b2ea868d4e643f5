"""The content of tracked runs: the config of an artifact and, once finished, its numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidepipe.engine.graph import Node
from sidepipe.engine.stage import Stage
from sidepipe.tracking import Content

# Files of every artifact: its stage, settings and inputs; the keys of all artifacts upstream.
SETTINGS, LINEAGE = "settings.json", "lineage.json"


def run_config(node: Node, rows: Sequence[str]) -> dict[str, Any]:
    """The config of a run: its artifact, and by stage the settings of all artifacts upstream.

    rows: the rows of the comparison that need it. A stage that occurs twice, as in a report, is
    left out. Inputs have the names of the W&B artifacts of their runs.
    """
    made = list(node.upstream().values())
    names = [each.stage.name for each in made]
    alone = [each for each in made if names.count(each.stage.name) == 1]
    attacked = any(each.stage.is_attack for each in alone)
    return {
        "stage": node.stage.name,
        "version": node.stage.version,
        "key": node.key,
        "inputs": {name: f"{read.stage.name}-{read.key}" for name, read in node.inputs.items()},
        **({"attack": ", ".join(rows)} if attacked else {}),
        **{each.stage.name: dict(each.settings) for each in alone},
    }


def measured(stage: Stage, folder: Path, summary: Mapping[str, Any], images: bool) -> Content:
    """The numbers, curves and files of the finished artifact in `folder`.

    images: whether to include its pictures.
    """
    named = filter(None, (SETTINGS, LINEAGE, stage.checkpoints))
    paths = [path for name in named for path in sorted(folder.glob(name)) if path.is_file()]
    return Content(
        summary={f"{stage.name}/{name}": value for name, value in _flat(summary)},
        curves=stage.curves(folder),
        pictures=stage.shown(folder) if images else {},
        files={str(path.relative_to(folder)): path for path in paths},
    )


def _flat(summary: Mapping[str, Any]) -> list[tuple[str, float | str]]:
    """Single values of a summary, with nested names joined by slashes, without lists."""
    flat: list[tuple[str, float | str]] = []
    for name, value in summary.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}/{inner}", v) for inner, v in _flat(value)]
        elif isinstance(value, int | float | str):
            flat.append((name, value))
    return flat
