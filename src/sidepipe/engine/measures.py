"""The content of tracked runs, read from artifacts: their config and, once finished, numbers."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sidepipe.base.files import load_json
from sidepipe.engine.artifacts import Artifact, remedy
from sidepipe.engine.graph import stage_class
from sidepipe.engine.places import Place, axis_key, is_numeric
from sidepipe.engine.stage import Stage
from sidepipe.tracking import Content

# Files of every artifact: its stage, settings and inputs; the keys of all artifacts upstream.
SETTINGS, LINEAGE = "settings.json", "lineage.json"


def run_config(folder: Path, attacks: Sequence[str], place: Place | None) -> dict[str, Any]:
    """The config of a run: its artifact, and by stage the settings of all artifacts upstream.

    attacks: the rows of the comparison that need it. place: its place in a sweep, None outside of
    one. A stage that occurs twice, as in a report, is left out. Inputs have the names of the W&B
    artifacts of their runs.
    """
    own = load_json(folder / SETTINGS, remedy(folder))
    made = load_json(folder / LINEAGE, remedy(folder))
    names = [each["stage"] for each in made.values()]
    alone = {each["stage"]: key for key, each in made.items() if names.count(each["stage"]) == 1}
    attack = place.attack if place is not None and place.attack else ", ".join(attacks)
    attacked = any(stage_class(name).is_attack for name in alone)
    named = {"point": attack} if attacked else {}
    return {
        **{name: own[name] for name in ("stage", "version", "key")},
        "inputs": {name: f"{made[key]['stage']}-{key}" for name, key in own["inputs"].items()},
        **({"attack": attack} if attacked else {}),
        **(named if place is None else place.config()),
        **{name: _settings(folder.parents[1] / name / key) for name, key in alone.items()},
    }


def _settings(folder: Path) -> dict[str, Any]:
    return load_json(folder / SETTINGS, remedy(folder))["settings"]


def measured(stage: type[Stage], folder: Path, place: Place | None, images: bool) -> Content:
    """The numbers, curves and files of the finished artifact in `folder`.

    place: as in `run_config`; a result is a point on each of its axes. images: whether to include
    pictures.
    """
    manifest = Artifact(folder).manifest
    facts = {f"artifact/{name}": value for name, value in _facts(manifest)}
    named = {f"{stage.name}/{name}": value for name, value in _flat(manifest["summary"])}
    if "empty" in manifest["summary"]:
        return Content(summary={**named, **facts})
    named_files = tuple(filter(None, (SETTINGS, LINEAGE, stage.checkpoints)))
    listed = manifest["files"].items()
    point = stage.point(folder)
    return Content(
        summary={**named, **facts, **point},
        curves={**stage.curves(folder), **_on_axes(point, place)},
        pictures=stage.shown(folder) if images else {},
        files={name: file for name, file in listed if any(fnmatch(name, f) for f in named_files)},
    )


def _on_axes(point: Mapping[str, float], place: Place | None) -> dict[str, list[dict[str, float]]]:
    """The point at each of its values on each axis of numbers."""
    if not point or place is None:
        return {}
    return {
        axis_key(axis): [{axis_key(axis): value, **point} for value in values]
        for axis, values in place.values.items()
        if is_numeric(values)
    }


def _facts(manifest: Mapping[str, Any]) -> list[tuple[str, float | str]]:
    """The code and the device that made the artifact, and its seconds."""
    git = manifest["git"] or {}
    facts = {
        "commit": git.get("commit", "unknown") + (" with changes" if git.get("dirty") else ""),
        "version": manifest["packages"].get("sidepipe", "unknown"),
        "torch": manifest["packages"].get("torch", "unknown"),
        "device": manifest["device"],
        "seconds": manifest["seconds"],
        "finished": manifest["finished"],
    }
    return list(facts.items())


def _flat(summary: Mapping[str, Any]) -> list[tuple[str, float | str]]:
    """Single values of a summary, with nested names joined by slashes, without lists."""
    flat: list[tuple[str, float | str]] = []
    for name, value in summary.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}/{inner}", v) for inner, v in _flat(value)]
        elif isinstance(value, int | float | str):
            flat.append((name, value))
    return flat
