"""The Slurm cluster: whether it answers, submission, the states of jobs, and what they used."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

# In sbatch's message where a limit of submitted jobs is reached.
FULL = re.compile(r"MaxSubmit|GrpSubmit|job submit limit|temporarily unable to accept")


class Full(RuntimeError):
    """The cluster accepts no further job of this user now."""


def has_commands() -> bool:
    """Whether this machine has the commands of Slurm, as a login node does."""
    return shutil.which("sbatch") is not None


def is_there() -> bool:
    """Whether a Slurm cluster answers here."""
    if not has_commands():
        return False
    try:
        return subprocess.run(["sinfo"], capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def require_answer() -> None:
    """Raises RuntimeError unless a Slurm cluster answers here."""
    if not is_there():
        raise RuntimeError(
            "no Slurm cluster answers (sbatch, sinfo); remedy: run this on a login node, or set "
            "LAUNCHER=local"
        )


def submit(text: str, *, ok: Iterable[str] = (), ended: Iterable[str] = (), any_of=False) -> str:
    """Submits a batch script; returns its job id.

    ok: jobs that must succeed before it starts; Slurm cancels it where one fails. ended: jobs that
    must end, or, with any_of, of which one must end. Raises Full where the user may have no more
    jobs, and RuntimeError with the message of sbatch.
    """
    after = [f"afterok:{job}" for job in ok] + [f"afterany:{job}" for job in ended]
    given = ["--kill-on-invalid-dep=yes"]
    given += [f"--dependency={('?' if any_of else ',').join(after)}"] if after else []
    return _sbatch("--parsable", *given, text=text).split(";")[0]


def test(text: str) -> None:
    """Raises RuntimeError where the cluster could never run the batch script; submits nothing."""
    with suppress(Full):  # a matter of time
        _sbatch("--test-only", text=text)


def _sbatch(*arguments: str, text: str) -> str:
    # A job that submits others must not hand on its own settings.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SRUN_"))}
    done = subprocess.run(
        ["sbatch", *arguments],
        input=text,
        capture_output=True,
        text=True,
        env=inherited,
        start_new_session=True,  # Ctrl-C would end sbatch after the cluster has accepted the job
    )
    if done.returncode == 0:
        return done.stdout.strip()
    message = done.stderr.strip().replace("\n", "; ")
    if FULL.search(message):
        raise Full(message)
    is_gres = re.search("gres|node configuration", message)
    raise RuntimeError(
        f"sbatch refused a job: {message}; remedy: change runtime.slurm.*, for example "
        + ("gres=null on a partition without GPUs" if is_gres else "partition, account, time, gres")
    )


def free_places(most: int) -> int:
    """How many further jobs the cluster accepts, with `most` of this user in the queue."""
    config = dict(
        re.findall(r"^(\w+)\s*= (.*)$", "\n".join(_output("scontrol", "show", "config")), re.M)
    )
    queued = len(_output("squeue", "--noheader", "--array", "--format=%i"))
    mine = len(_output("squeue", "--me", "--noheader", "--array", "--format=%i"))
    # The controller's own limit holds for the jobs of all users.
    return min(most - mine, int(config.get("MaxJobCount", most)) - queued)


@dataclass(frozen=True)
class Queued:
    """A job in the queue: its state (RUNNING, PENDING, ...), the reason, the node."""

    state: str
    reason: str
    node: str


def queue() -> dict[str, Queued]:
    """The user's jobs that have not ended, by id."""
    lines = _output("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N")
    split = (line.split("|") for line in lines)
    return {job: Queued(state, reason, node) for job, state, reason, node in split}


def ended(jobs: Sequence[str]) -> dict[str, str]:
    """The states of jobs by id in the accounting, as `OUT_OF_MEMORY (0:125)`; {} without it."""
    rows = accounted(jobs, "State", "ExitCode")
    mine = {job: rows[job] for job in jobs if job in rows}
    return {job: f"{row['State']} ({row['ExitCode']})" for job, row in mine.items()}


def accounted(jobs: Sequence[str], *fields: str) -> dict[str, Mapping[str, str]]:
    """The `fields` of jobs and of their steps (`12.0`) in the accounting; {} without it."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    names = ("JobID", *fields)
    try:
        lines = _output("sacct", "-n", "-P", "-o", ",".join(names), "-j", ",".join(jobs))
    except RuntimeError:
        return {}
    rows = (dict(zip(names, line.split("|"), strict=True)) for line in lines)
    return {row["JobID"]: row for row in rows}


def cancel(jobs: Sequence[str]) -> None:
    """Cancels jobs; ignores those that have ended."""
    if jobs:
        _output("scancel", "--quiet", *jobs)


def _output(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
    return [line for line in done.stdout.splitlines() if line]
