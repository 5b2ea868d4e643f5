"""Checks of finished artifacts against their manifests.

An artifact counts as finished only after a check of presence and sizes. Files are hashed before a
stage reads them, once per process and file.
"""

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from sidepipe.base.files import gigabytes, sha256_of
from sidepipe.engine.artifacts import MANIFEST, PROGRESS, SECONDS, read_manifest, remedy

log = logging.getLogger(__name__)

# Entries of a manifest that the pipeline reads, and their types.
ENTRIES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("key", "finished"), str),
    **dict.fromkeys(("settings", "inputs", "summary", "files"), dict),
    "seconds": (int, float),
}
# No stage reads these files of a finished artifact: users may delete or edit them.
SPARE = ("*.ckpt", "log.txt", "error.json", "preview.png", "previews/*")
# Suffixes of files that stages read: one that the manifest does not list may be taken for a result.
READ = (".npy", ".csv", ".json", ".safetensors")
# Hashing takes a second per GB, so a larger total is logged.
LOGGED_BYTES = 2**30


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds a finished artifact of which no file is missing.

    Raises ValueError where its manifest or the size of a file is wrong.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    require_sizes(folder, manifest)
    return not missing_files(folder, manifest)


def is_done(folder: Path) -> bool:
    """`is_whole`, but False for a damaged artifact, for which making it raises the error."""
    try:
        return is_whole(folder)
    except ValueError:
        return False


def missing_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Missing files that the manifest lists and that a stage may read."""
    return [name for name in _needed(manifest) if not (folder / name).is_file()]


def require_sizes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises ValueError for a file whose size differs from the manifest; skips missing files."""
    lost = [name for name, kind in ENTRIES.items() if not isinstance(manifest.get(name), kind)]
    if lost:
        raise _damaged(folder / MANIFEST, f"it has no valid {', '.join(lost)}", folder)
    if manifest["key"] != folder.name:
        raise _damaged(folder / MANIFEST, f"it belongs to artifact {manifest['key']}", folder)
    for name, listed in _needed(manifest).items():
        path = folder / name
        if path.is_file() and (found := path.stat().st_size) != listed["bytes"]:
            fault = f"it has {found} bytes where the manifest has {listed['bytes']}"
            raise _damaged(path, fault, folder)


def require_unchanged(folder: Path, patterns: Sequence[str] = ("*",)) -> None:
    """Raises ValueError for a changed file that a stage may read; skips missing files.

    patterns: hash only files whose names fit one of these.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return  # deleted, as nothing reads it any more
    require_sizes(folder, manifest)
    needed = {
        name: listed
        for name, listed in _needed(manifest).items()
        if (folder / name).is_file() and any(fnmatch(name, each) for each in patterns)
    }
    if (total := sum(listed["bytes"] for listed in needed.values())) > LOGGED_BYTES:
        log.info("checking %s of %s", gigabytes(total), folder)
    for name, listed in needed.items():
        if sha256_of(folder / name) != listed["sha256"]:
            fault = "its content has changed since it was made (SHA-256)"
            raise _damaged(folder / name, fault, folder)
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix in READ and name not in manifest["files"] and not _is_own(name):
            raise ValueError(
                f"{path} must not be there: the manifest does not list it, and stages could take "
                "it for a result; remedy: move it elsewhere"
            )


def require_complete(folder: Path, summary: Mapping[str, Any]) -> None:
    """Raises ValueError where a .npy file is truncated, or shards lack images.

    The engine calls it before it writes the manifest.
    """
    count = 0
    for path in sorted(folder.rglob("*.npy")):
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            remedy = "delete it and run the same command again"
            raise ValueError(f"{path} is truncated: {error}; remedy: {remedy}") from None
        count += len(array) if path.parent == folder / "shards" else 0
    if not (folder / "shards").is_dir():
        return
    wanted = summary["num_images"] * summary.get("candidates", 1)
    if count != wanted:
        raise ValueError(
            f"{folder / 'shards'} must hold {wanted} images, got {count}; remedy: "
            "delete it and run the same command again"
        )


def _damaged(path: Path, fault: str, folder: Path) -> ValueError:
    return ValueError(f"{path} is damaged: {fault}; {remedy(folder)}")


def _needed(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: listed
        for name, listed in manifest["files"].items()
        if not any(fnmatch(name, spare) for spare in SPARE)
    }


def _is_own(name: str) -> bool:
    """Whether the pipeline itself writes this file, which the manifest does not list.

    A run that was killed while it reopened an artifact leaves the files of an unfinished one.
    """
    return (
        name in (MANIFEST, PROGRESS, SECONDS)
        or name.startswith(".")
        or any(fnmatch(name, s) for s in SPARE)
    )
