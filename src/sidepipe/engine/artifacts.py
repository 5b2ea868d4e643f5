"""Keyed artifacts: folders named by the hash of their settings and inputs.

`outputs/<stage>/<key>/` holds a stage's files. It is finished once `manifest.json` exists, which is
written last, by rename.
"""

import hashlib
import json
import math
import os
import platform
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from sidepipe.base.files import load_json, read_json, sha256_of, write_json

MANIFEST = "manifest.json"
# Files of an unfinished artifact: its progress, and the seconds of work so far.
PROGRESS, SECONDS = "progress.json", "seconds.json"


def key_of(
    stage: str, version: int, settings: Mapping[str, Any], input_keys: Mapping[str, str]
) -> str:
    """The name, twelve hex digits, of the artifact of these settings and inputs.

    `3` and `3.0` are the same setting. The module of a class of this package does not count, so a
    class that moves keeps its artifacts. The order of inputs counts: the inputs of a report are its
    rows. Raises ValueError for a number that is not finite.
    """
    content = [stage, version, _normal(settings, stage), list(input_keys.items())]
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _normal(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, got {value}")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(k): _normal(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(v, f"{where}.{i}") for i, v in enumerate(value)]
    if where.endswith("._target_") and str(value).startswith("sidepipe."):
        return str(value).rpartition(".")[2]
    return value


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where the artifact is not finished.

    Raises ValueError, with the file and the remedy, where the file is not a manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = load_json(path, remedy(folder))
    except FileNotFoundError:
        return None
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or not all(map(_is_listed, listed.values())):
        fault = "it lists no files with their bytes and sha256"
        raise ValueError(f"{path} is damaged: {fault}; {remedy(folder)}")
    return manifest


def _is_listed(file: Any) -> bool:
    """Whether an entry of a manifest's files has the values that `write_manifest` writes."""
    return (
        isinstance(file, dict)
        and isinstance(file.get("bytes"), int)
        and isinstance(file.get("sha256"), str)
    )


def remedy(folder: Path) -> str:
    """How to replace a damaged artifact."""
    return f"remedy: restore it, or delete {folder} and re-run the same command"


@dataclass(frozen=True)
class Artifact:
    """The artifact in `folder` and, through the manifests, all artifacts that it was made from.

    A stage reaches artifacts other than its declared inputs only in this way, as the keys of its
    inputs cover everything upstream. Properties raise FileNotFoundError where the manifest is
    missing.
    """

    folder: Path

    @property
    def stage(self) -> str:
        return self.folder.parent.name

    @property
    def key(self) -> str:
        return self.folder.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise FileNotFoundError(
                f"{self.folder} is not a finished artifact; run its stage first"
            )
        return manifest

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest["settings"]

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest["summary"]

    @property
    def why_empty(self) -> str | None:
        """Why the artifact has no result, or None where it has one."""
        return self.summary.get("empty")

    @cached_property
    def inputs(self) -> dict[str, "Artifact"]:
        """The input artifacts by stage; not for a report, whose inputs are rows."""
        outputs = self.folder.parents[1]
        keys = self.manifest["inputs"]
        return {stage: Artifact(outputs / stage / key) for stage, key in keys.items()}

    def lineage(self) -> list["Artifact"]:
        """All artifacts that it was made from and itself, each once, inputs before their readers.

        A stage can occur twice: a mitigation in training reads the prompts of another model.
        """
        found: dict[Artifact, None] = {}
        for read in self.inputs.values():
            found |= dict.fromkeys(read.lineage())
        return [*found, self]

    def ancestor(self, stage: str) -> "Artifact | None":
        """The artifact of `stage` that it was made from, its own input first, or None."""
        found = {made.stage: made for made in self.lineage()[:-1]} | self.inputs
        return found.get(stage)


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The progress that a running stage last wrote, or None."""
    return read_json(folder / PROGRESS)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes `manifest.json`: `content`, and the size and SHA-256 of every file of the folder.

    Removes the temporary files of killed runs first.
    """
    for leftover in folder.rglob("*.tmp"):
        leftover.unlink()
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, PROGRESS, SECONDS)
    }
    write_json(folder / MANIFEST, {**content, "files": files, **provenance()})


def provenance() -> dict[str, Any]:
    """Commit, versions, machine and time: what made the files of an artifact."""
    packages = ("sidepipe", "torch", "lightning", "diffusers", "numpy", "faiss-cpu", "hydra-core")
    return {
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name))},
        "host": socket.gethostname(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed copy outside any checkout
