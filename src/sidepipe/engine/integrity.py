"""Whether a finished artifact is still what its manifest says.

Presence and sizes are checked wherever an artifact counts as finished; contents are hashed before a
stage reads them, once per process and file.
"""

import logging
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from sidepipe.base.files import gigabytes, sha256_of
from sidepipe.engine.artifacts import MANIFEST, PROGRESS, SECONDS, read_manifest, remedy

log = logging.getLogger(__name__)

# What the pipeline reads of a manifest.
ENTRIES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("key", "finished"), str),
    **dict.fromkeys(("settings", "inputs", "summary", "files"), dict),
    "seconds": (int, float),
}
# No stage reads these of a finished artifact: they may be deleted to free space, and logs edited.
SPARE = ("*.ckpt", "log.txt", "error.json", "preview.png", "previews/*")
# Stages look for files with these endings: one that the manifest does not list may mislead them.
READ = (".npy", ".csv", ".json", ".safetensors")
# Hashing takes a second per GB, so more than this is logged.
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
    """`is_whole`, and False where the artifact is damaged, for which making it raises the error."""
    try:
        return is_whole(folder)
    except ValueError:
        return False


def missing_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files that the manifest lists, that a stage may read and that are not there."""
    return [name for name in _needed(manifest) if not (folder / name).is_file()]


def require_sizes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises ValueError for a file whose size is not that of the manifest; skips missing ones."""
    lost = [name for name, kind in ENTRIES.items() if not isinstance(manifest.get(name), kind)]
    if lost:
        raise _damaged(folder / MANIFEST, f"it has no valid {', '.join(lost)}", folder)
    if manifest["key"] != folder.name:
        raise _damaged(folder / MANIFEST, f"it is that of artifact {manifest['key']}", folder)
    for name, listed in _needed(manifest).items():
        path = folder / name
        if path.is_file() and (found := path.stat().st_size) != listed["bytes"]:
            said = f"it has {found} bytes where the manifest has {listed['bytes']}"
            raise _damaged(path, said, folder)


def require_unchanged(folder: Path) -> None:
    """Raises ValueError unless every file that a stage may read is as it was when it was made.

    Missing files are for `missing_files`.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return  # what this was made from is no longer needed
    require_sizes(folder, manifest)
    needed = {n: listed for n, listed in _needed(manifest).items() if (folder / n).is_file()}
    if (total := sum(listed["bytes"] for listed in needed.values())) > LOGGED_BYTES:
        log.info("checking %s of %s", gigabytes(total), folder)
    for name, listed in needed.items():
        if sha256_of(folder / name) != listed["sha256"]:
            said = "its content has changed since it was made (SHA-256)"
            raise _damaged(folder / name, said, folder)
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix in READ and name not in manifest["files"] and not _is_own(name):
            said = "the manifest does not list it, and stages could take it for a result"
            raise ValueError(f"{path} must not be there: {said}; remedy: move it elsewhere")


def require_complete(folder: Path, summary: Mapping[str, Any]) -> None:
    """Raises ValueError where a .npy file is cut short, or shards do not hold `num_images` images.

    To be called before an artifact gets its manifest.
    """
    count = 0
    for path in sorted(folder.rglob("*.npy")):
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            said = f"{error}; remedy: delete it and run the same command again"
            raise ValueError(f"{path} is cut short: {said}") from None
        count += len(array) if path.parent == folder / "shards" else 0
    if (folder / "shards").is_dir() and count != summary["num_images"]:
        said = f"{count} images where {summary['num_images']} were to be made"
        raise ValueError(f"{folder / 'shards'} holds {said}; remedy: delete it and run again")


def _damaged(path: Path, said: str, folder: Path) -> ValueError:
    return ValueError(f"{path} is damaged: {said}; {remedy(folder)}")


def _needed(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: listed
        for name, listed in manifest["files"].items()
        if not any(fnmatch(name, spare) for spare in SPARE)
    }


def _is_own(name: str) -> bool:
    """Whether the pipeline itself writes a file beside what the manifest lists.

    A run that was killed while it reopened the artifact leaves the files of an unfinished one.
    """
    return (
        name in (MANIFEST, PROGRESS, SECONDS)
        or name.startswith(".")
        or any(fnmatch(name, s) for s in SPARE)
    )
