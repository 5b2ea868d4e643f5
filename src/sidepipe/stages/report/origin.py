"""Where the numbers come from: every artifact behind the page, and all settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidepipe.engine.artifacts import Artifact

Manifest = dict[str, Any]


def origin(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What the page says of the artifacts behind `inputs`; data and model are the first one's."""
    rows = {
        name: [made.manifest for made in Artifact(folder).lineage()]
        for name, folder in inputs.items()
    }
    stages = {manifest["stage"]: manifest for manifest in next(iter(rows.values()))}
    return {
        "rows": list(rows),
        "data": stages["data"],
        "source": _source(stages["data"]["settings"]["source"]),
        "dpm": stages["dpm"],
        "artifacts": _artifacts(rows),
        "settings": _settings(_artifacts(rows)),
    }


def _source(settings: Mapping[str, Any]) -> str:
    """A source in words: its class, and its folder's name if it has one."""
    kind = settings["_target_"].rpartition(".")[2]
    return f"{kind} “{Path(settings['folder']).name}”" if "folder" in settings else kind


def _artifacts(rows: Mapping[str, Sequence[Manifest]]) -> list[tuple[list[str], Manifest]]:
    """Every artifact once, in the order of making: the rows that need it, its manifest."""
    longest = max(rows.values(), key=len)
    every = [*longest, *(manifest for made in rows.values() for manifest in made)]
    stages = list(dict.fromkeys(manifest["stage"] for manifest in every))
    found: dict[str, tuple[list[str], Manifest]] = {}
    for name, made in rows.items():
        for manifest in made:
            found.setdefault(manifest["key"], ([], manifest))[0].append(name)
    return sorted(found.values(), key=lambda one: stages.index(one[1]["stage"]))


def _settings(found: Sequence[tuple[list[str], Manifest]]) -> list[tuple[str, list[str], str]]:
    """Stage, its rows and its settings; settings that several artifacts have come once."""
    same: dict[str, tuple[str, list[str]]] = {}
    for names, manifest in found:
        lines = "\n".join(_flat(manifest["stage"], manifest["settings"]))
        same.setdefault(lines, (manifest["stage"], []))[1].extend(names)
    return [(*owned, lines) for lines, owned in same.items()]


def _flat(name: str, value: Any) -> list[str]:
    """Settings as they are typed on the command line, one a line."""
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _flat(f"{name}.{key}", inner)]
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
