"""The lock of an artifact: a file next to its folder that names the process at work.

A process takes over the lock of a dead owner. Slurm answers whether the owner's job has ended.
"""

import fcntl
import math
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sidepipe.base.files import read_json, write_json

HEARTBEAT_SECONDS = 20.0
# The process of another host cannot be checked. Without a heartbeat for LATE_SECONDS, its lock
# counts as dead where Slurm has ended its job; where Slurm cannot answer, after STALE_SECONDS.
LATE_SECONDS, STALE_SECONDS = 30.0, 300.0


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    # Process start in clock ticks since boot, which distinguishes a reused pid from the owner.
    started: int
    # The Slurm job, which keeps its number when it is requeued, and the number of its restarts.
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
            return False  # this process is the next start of its job, which Slurm has ended
        if self.host == socket.gethostname():
            return _process_start(self.pid) == self.started
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            return False
        return age < LATE_SECONDS or (age < STALE_SECONDS and not self._has_ended())

    def _has_ended(self) -> bool:
        """Whether Slurm has ended this start of the owner's job; False where it cannot answer."""
        if self.job is None or shutil.which("scontrol") is None:
            return False
        command = ["scontrol", "--oneliner", "show", "job", self.job]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode != 0:  # Slurm forgets jobs some minutes after their end
            return "Invalid job id" in done.stderr
        found = dict(re.findall(r"\b(JobState|Restarts)=(\w+)", done.stdout))
        is_this = int(found.get("Restarts", 0)) == self.restarts
        return not is_this or found.get("JobState") not in ("RUNNING", "COMPLETING", "SUSPENDED")


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
    """The lock of the artifact in `folder`: next to it, so that the folder holds only results."""
    return folder.with_name(f"{folder.name}.lock")


def owner_of(folder: Path) -> Owner | None:
    """The live owner of the folder's lock, or None."""
    lock = lock_path(folder)
    try:
        owner = Owner(**(read_json(lock) or {}))
    except TypeError:
        return None
    return owner if owner.is_alive(lock) else None


def try_lock(folder: Path) -> Owner | None:
    """Takes the lock of `folder`; returns None on success, else its live owner."""
    lock = lock_path(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    # The guard makes check and replacement one step; two processes could both replace a lock.
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
    notice_seconds: float = 60.0,
) -> Iterator[None]:
    """Holds the lock of `folder`; waits for a live owner.

    on_wait: called with the owner every `notice_seconds` of the wait.
    """
    last_notice = -math.inf
    while (owner := try_lock(folder)) is not None:
        if on_wait is not None and time.monotonic() - last_notice >= notice_seconds:
            last_notice = time.monotonic()
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
        # Another host may have taken the lock over while this machine was suspended.
        if owner_of(folder) == Owner.me():
            lock_path(folder).unlink(missing_ok=True)


def _heartbeat(lock: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            os.utime(lock)
        except FileNotFoundError:
            return  # a user removed it
        except OSError:
            continue  # a temporary error of a network file system
