"""The origin of the numbers: every artifact behind the page, and all settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidepipe.engine.artifacts import Artifact

Manifest = dict[str, Any]


def origin(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Facts about the artifacts behind `inputs`; data and model are those of the first one."""
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
    """A source in words: its class, and the name of its folder if any."""
    kind = settings["_target_"].rpartition(".")[2]
    if "heldout_file" in settings:  # a table
        return f"the table “{Path(settings['file'] or settings['name']).name}”"
    return f"{kind} “{Path(settings['folder']).name}”" if "folder" in settings else kind


def _artifacts(rows: Mapping[str, Sequence[Manifest]]) -> list[tuple[list[str], Manifest]]:
    """Every artifact once, in the order of creation: the rows that need it, its manifest."""
    longest = max(rows.values(), key=len)
    every = [*longest, *(manifest for made in rows.values() for manifest in made)]
    stages = list(dict.fromkeys(manifest["stage"] for manifest in every))
    found: dict[str, tuple[list[str], Manifest]] = {}
    for name, made in rows.items():
        for manifest in made:
            found.setdefault(manifest["key"], ([], manifest))[0].append(name)
    return sorted(found.values(), key=lambda one: stages.index(one[1]["stage"]))


def _settings(found: Sequence[tuple[list[str], Manifest]]) -> list[tuple[str, list[str], str]]:
    """Each stage with its rows and settings; settings shared by several artifacts occur once."""
    same: dict[str, tuple[str, list[str]]] = {}
    for names, manifest in found:
        lines = "\n".join(_flat(manifest["stage"], manifest["settings"]))
        same.setdefault(lines, (manifest["stage"], []))[1].extend(names)
    return [(*owned, lines) for lines, owned in same.items()]


def _flat(name: str, value: Any) -> list[str]:
    """Settings as on the command line, one per line."""
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _flat(f"{name}.{key}", inner)]
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
