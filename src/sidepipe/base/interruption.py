"""Being asked to stop: a job's time limit, preemption, or a signal from a person.

SIGUSR2 says that the time limit is near and that the job should be queued again, which this module
requests; after SIGTERM somebody else decides what follows; SIGINT is Ctrl-C, and a second one ends
the process at once. While processes train or sample together a signal only sets a flag, which their
loops look at between batches; else it raises Preempted.
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

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

# The first signal that came; and whether signals only set it.
_asked: signal.Signals | None = None
_deferred = False


class Preempted(SystemExit):
    """The process was asked to stop, and finished work is saved: the same command resumes.

    A SystemExit, so that no `except Exception` takes it for an error of the work. Its exit code is
    130 after Ctrl-C and 143 otherwise.
    """

    def __init__(self, message: str = "asked to stop") -> None:
        super().__init__(message)
        self.code = 128 + (signal.SIGINT if _asked is signal.SIGINT else signal.SIGTERM)


def asked() -> bool:
    """Whether a signal has asked this process to stop."""
    return _asked is not None


@contextmanager
def handled() -> Iterator[None]:
    """In the block signals are handled; one that ends it has the job queued again if it asked so.

    A SIGINT that is ignored stays ignored: `nohup` or a shell's `&` asked for it.
    """
    global _asked
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
        _asked = None


@contextmanager
def deferred() -> Iterator[None]:
    """In the block signals only set the flag; at its end Preempted is raised if it is set."""
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before
    if asked() and not _deferred:
        raise Preempted


def only_set_the_flag() -> None:
    """From now on signals only set the flag: for a process whose work another one directs."""
    global _deferred
    _deferred = True
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(number: int, frame: object) -> None:
    global _asked
    is_first = _asked is None
    _asked = _asked or signal.Signals(number)
    if number == signal.SIGINT:
        _end_with_parent()
        signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C: every file is whole or absent
    if _deferred:
        if is_first and number == signal.SIGINT and multiprocessing.parent_process() is None:
            # Not through logging, whose stream may be in the middle of a line.
            os.write(2, b"\nsaving after this batch; Ctrl-C again stops at once\n")
        # Processes that Lightning spawned: the loops are theirs, and a person's kill is not.
        for pid in [child.pid for child in multiprocessing.active_children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)  # pyright: ignore[reportArgumentType]
    elif is_first:  # a second one comes while the first's exception is on its way
        raise Preempted


def _end_with_parent() -> None:
    """Ends a spawned process whose parent has died, for which torch sends it SIGINT."""
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(128 + signal.SIGINT)


def _hand_over(before: Any) -> None:
    """Leaves what follows to whoever is in charge of it. before: the earlier handler of SIGUSR2."""
    job = _job_id()
    if _asked is not signal.SIGUSR2 or job is None:
        log.warning("stopped; finished work is saved: to resume, run the same command again")
    elif callable(before):
        before(_asked, None)  # submitit's: it counts, has the job queued again, and exits
    else:
        _requeue(job)


def _job_id() -> str | None:
    """The Slurm job as scontrol wants it, or None outside any."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is None:
        return os.environ.get("SLURM_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def _requeue(job: str) -> None:
    command = ["scontrol", "requeue", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Slurm ends this job at once, scontrol with it, which by then has done its work.
    if done.returncode in (0, -signal.SIGTERM):
        log.warning("the time limit is near; saved, and job %s is queued again", job)
    else:
        log.error(
            "%s failed: %s; finished work is saved: to resume, run the same command again",
            *(" ".join(command), done.stderr.strip()),
        )
