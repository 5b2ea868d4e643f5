"""Requests to stop: a job's time limit, preemption, or a signal from a person.

SIGUSR2 means that the time limit is near: this module requeues the job. SIGTERM leaves the next
step to its sender. SIGINT is Ctrl-C; a second one ends the process immediately. SIGHUP is a closed
terminal. While processes train or sample together, a signal only sets a flag, which their loops
check between batches; otherwise it raises Preempted.
"""

import logging
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# The first signal received; and whether signals only set it.
_received: signal.Signals | None = None
_deferred = False


class Preempted(SystemExit):
    """A signal stopped the process, and finished work is saved: the same command resumes.

    A SystemExit, so that no `except Exception` handles it as an error of the work. Its exit code is
    130 after Ctrl-C and 143 otherwise.
    """

    def __init__(self, message: str = "stopped by a signal") -> None:
        super().__init__(message)
        self.code = 128 + (signal.SIGINT if _received is signal.SIGINT else signal.SIGTERM)


def requested() -> bool:
    """Whether this process has received a signal to stop."""
    return _received is not None


@contextmanager
def handled() -> Iterator[None]:
    """Handles signals in the block; requeues the job where SIGUSR2 ends the block.

    A SIGHUP that `nohup` ignores stays ignored, and so does the SIGINT of a shell's `&`.
    """
    global _received
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _on_signal)
    try:
        yield
    except Preempted:
        _hand_over(before.get(signal.SIGUSR2))
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


@contextmanager
def deferred() -> Iterator[None]:
    """Signals in the block only set the flag; its end raises Preempted if the flag is set."""
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before
    if requested() and not _deferred:
        raise Preempted


def only_set_the_flag() -> None:
    """Signals only set the flag from now on: for a process that another process directs."""
    global _deferred
    _deferred = True
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(number: int, frame: object) -> None:
    global _received
    is_first = _received is None
    _received = _received or signal.Signals(number)
    if number == signal.SIGINT:
        _end_with_parent()
        signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C: every file is whole or absent
    if _deferred:
        if is_first and number == signal.SIGINT and multiprocessing.parent_process() is None:
            # Not through logging, which may be in the middle of a line.
            os.write(2, b"\nsaving after this batch; Ctrl-C again stops immediately\n")
        # The processes that Lightning spawned run the loops; a person signals this one alone.
        for pid in [child.pid for child in multiprocessing.active_children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)  # pyright: ignore[reportArgumentType]
    elif is_first:  # a later signal may arrive while the first exception propagates
        raise Preempted


def _end_with_parent() -> None:
    """Ends a spawned process whose parent has died, for which torch sends it SIGINT."""
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(128 + signal.SIGINT)


def _hand_over(before: Any) -> None:
    """Logs how to resume, or requeues the job. before: the earlier handler of SIGUSR2."""
    if _received is not signal.SIGUSR2 or _job_id() is None:
        log.warning("stopped: finished work is saved; to resume, run the same command again")
    elif callable(before):
        before(_received, None)  # submitit's handler counts, requeues the job and exits
    elif requeue():
        said = "the time limit is near: finished work is saved, and job %s is requeued"
        log.warning(said, _job_id())


def _job_id() -> str | None:
    """The id of the Slurm job, as scontrol takes it; None outside a job."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is None:
        return os.environ.get("SLURM_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def requeue() -> bool:
    """Queues this Slurm job again, which ends it; returns False, with a log, where that fails."""
    command = ["scontrol", "requeue", _job_id() or ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Slurm ends this job immediately, and scontrol with it, whose work is then done.
    if done.returncode in (0, -signal.SIGTERM):
        return True
    log.error(
        "%s failed: %s; finished work is saved; to resume, run the same command again",
        " ".join(command),
        done.stderr.strip(),
    )
    return False
