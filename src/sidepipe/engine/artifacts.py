"""Keyed artifacts: an artifact's folder is named by what it is, and exists once its manifest does.

`outputs/<stage>/<key>/` holds a stage's files; `manifest.json` is written last, by rename. A lock
file beside the folder names the process at work; a dead owner's lock is taken over.
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from sidepipe.base.files import load_json, read_json, sha256_of, write_json

HEARTBEAT_SECONDS = 20.0
# Another host's process cannot be asked whether it lives; its lock counts as dead after this.
STALE_SECONDS = 300.0
MANIFEST = "manifest.json"
# Of an unfinished artifact: how far it is, and the seconds of work so far.
PROGRESS, SECONDS = "progress.json", "seconds.json"


def key_of(
    stage: str, version: int, settings: Mapping[str, Any], input_keys: Mapping[str, str]
) -> str:
    """Twelve hex digits that name the artifact of these settings and inputs.

    Numbers are normalized: `3` and `3.0` are the same setting. The name of a class of ours counts
    and its module does not, so a class that moves keeps its artifacts. The order of inputs counts:
    a report's rows are its inputs. Raises ValueError for a number that is not finite.
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

    Raises ValueError, with the file and the remedy, where it is no manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = load_json(path, remedy(folder))
    except FileNotFoundError:
        return None
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or not all(map(_is_listed, listed.values())):
        said = "it lists no files with their bytes and sha256"
        raise ValueError(f"{path} is damaged: {said}; {remedy(folder)}")
    return manifest


def _is_listed(file: Any) -> bool:
    """Whether an entry of a manifest's files has what `write_manifest` writes."""
    return (
        isinstance(file, dict)
        and isinstance(file.get("bytes"), int)
        and isinstance(file.get("sha256"), str)
    )


def remedy(folder: Path) -> str:
    """How to get rid of a damaged artifact."""
    return f"remedy: restore it, or delete {folder}, and the same command makes it again"


@dataclass(frozen=True)
class Artifact:
    """The artifact in `folder` and, through the manifests, all that it was made from.

    This is the only way from an artifact to another one that its stage does not declare as an
    input: the key of what it reads covers everything before it. Raises FileNotFoundError where a
    manifest is asked for and not there.
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
        """Why there is nothing in it, or None where there is a result."""
        return self.summary.get("empty")

    @cached_property
    def inputs(self) -> dict[str, "Artifact"]:
        """The artifacts that its stage read, by stage; not of a report, whose inputs are rows."""
        outputs = self.folder.parents[1]
        keys = self.manifest["inputs"]
        return {stage: Artifact(outputs / stage / key) for stage, key in keys.items()}

    def lineage(self) -> list["Artifact"]:
        """Everything that it was made from and itself, each once, inputs before their readers.

        A stage can come twice: mitigation in training is judged by the prompts of another model.
        """
        found: dict[Artifact, None] = {}
        for read in self.inputs.values():
            found |= dict.fromkeys(read.lineage())
        return [*found, self]

    def ancestor(self, stage: str) -> "Artifact | None":
        """The artifact of `stage` that it was made from, its own input first; None without one."""
        found = {made.stage: made for made in self.lineage()[:-1]} | self.inputs
        return found.get(stage)


def read_progress(folder: Path) -> dict[str, Any] | None:
    """What a running stage last wrote of its progress, or None."""
    return read_json(folder / PROGRESS)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes `manifest.json`: `content`, and the size and SHA-256 of every file of the folder.

    What killed runs left under temporary names is removed first.
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


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    # Process start in clock ticks since boot: tells a reused pid from the owner.
    started: int
    # The Slurm job, which keeps its number when it is queued again, and how often it was.
    job: str | None = None
    restarts: int = 0

    @classmethod
    def me(cls) -> "Owner":
        started = _process_start(os.getpid()) or 0
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        job = os.environ.get("SLURM_JOB_ID")
        return cls(socket.gethostname(), os.getpid(), started, job, restarts)

    def is_alive(self, lock: Path) -> bool:
        me = Owner.me()
        if self.job is not None and self.job == me.job and self.restarts < me.restarts:
            return False  # we are its next start, on whatever host, and Slurm has ended that one
        if self.host == socket.gethostname():
            return _process_start(self.pid) == self.started
        try:
            return time.time() - lock.stat().st_mtime < STALE_SECONDS
        except FileNotFoundError:
            return False


def _process_start(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return None
        return _exists(pid)
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else int(fields[19])  # a zombie no longer works


def _exists(pid: int) -> int | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def lock_path(folder: Path) -> Path:
    """The lock of the artifact in `folder`: beside it, so that the folder holds results alone."""
    return folder.with_name(f"{folder.name}.lock")


def owner_of(folder: Path) -> Owner | None:
    """The living owner of the folder's lock, or None."""
    lock = lock_path(folder)
    try:
        owner = Owner(**(read_json(lock) or {}))
    except TypeError:
        return None
    return owner if owner.is_alive(lock) else None


def try_lock(folder: Path) -> Owner | None:
    """Takes the lock of `folder`; returns None on success, else its living owner."""
    lock = lock_path(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    # The guard makes look-and-take one step; without it two processes can both replace a dead lock.
    with (lock.parent / ".guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        owner = owner_of(folder)
        if owner is None:
            write_json(lock, vars(Owner.me()))
        return owner


@contextmanager
def locked(
    folder: Path,
    on_wait: Callable[[Owner], None] | None = None,
    poll_seconds: float = 2.0,
    say_seconds: float = 60.0,
) -> Iterator[None]:
    """Holds the lock of `folder`; waits for a living owner, with `on_wait(owner)` now and then."""
    said = -math.inf
    while (owner := try_lock(folder)) is not None:
        if on_wait is not None and time.monotonic() - said >= say_seconds:
            said = time.monotonic()
            on_wait(owner)
        time.sleep(poll_seconds)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(lock_path(folder), stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        # Not ours any more if this machine slept for so long that another host took over.
        if owner_of(folder) == Owner.me():
            lock_path(folder).unlink(missing_ok=True)


def _heartbeat(lock: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            os.utime(lock)
        except FileNotFoundError:
            return  # removed by hand: nothing left to keep alive
        except OSError:
            continue  # a network file system's hiccup; the next beat may pass
