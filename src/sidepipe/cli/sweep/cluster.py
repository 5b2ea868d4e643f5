"""Slurm: the resources of a stage's jobs, their scripts, and their states on the cluster."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sidepipe import stages
from sidepipe.base.settings import bind, check_field_types, require, require_known
from sidepipe.engine.graph import stage_class

MAX_ARRAY = 1000  # tasks of one array; Slurm's default limit


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """The resources of a job, named as in sbatch; None for the cluster's default or your SBATCH_*.

    nodes x tasks_per_node processes share one training or sampling run, with one device each.
    array_parallelism: jobs of one stage that run together, None for no limit. signal_seconds: time
    before the limit at which a job saves and requeues itself. setup: shell lines that run first.
    sbatch: further options. stages: other resources, by stage; by default a stage without several
    processes or an accelerator requests one process or no accelerator.
    """

    partition: str | None = None
    account: str | None = None
    time: str | int | None = None
    gres: str | None = None
    constraint: str | None = None
    mem: str | int | None = None
    cpus_per_task: int | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    array_parallelism: int | None = None
    signal_seconds: int = 120
    setup: list = field(default_factory=list)
    sbatch: list = field(default_factory=list)
    stages: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "signal_seconds"):
            require(getattr(self, name) >= 1, f"runtime.slurm.{name}", ">= 1", getattr(self, name))
        for name in ("cpus_per_task", "array_parallelism"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"runtime.slurm.{name}", ">= 1 or null", value)

    def of(self, stage: str) -> "Slurm":
        """The resources of a job of `stage`: its own settings, or those that the stage can use."""
        where, changes = f"runtime.slurm.stages.{stage}", self.stages.get(stage) or {}
        for name in changes:
            require_known(where, name, vars(self).keys() - {"stages"})
        kind = stage_class(stage)
        usable = {} if kind.parallel else {"nodes": 1, "tasks_per_node": 1}
        usable |= {} if kind.accelerated else {"gres": None}
        return replace(self, **{**usable, **check_field_types(where, Slurm, changes)}, stages={})


def slurm_of(settings: Mapping[str, Any] | None) -> Slurm:
    """The checked `runtime.slurm` settings; raises ValueError for a wrong one."""
    where = "runtime.slurm"
    remedy = "choose runtime=slurm, or LAUNCHER=local"
    require(settings is not None, where, "set", settings, remedy)
    assert settings is not None
    bind(where, "sidepipe.cli.sweep.cluster.Slurm", settings)
    slurm = Slurm(**check_field_types(where, Slurm, settings))
    for stage in slurm.stages:
        require_known(f"{where}.stages", stage, stages.STAGES)
        slurm.of(stage)
    return slurm


def is_there() -> bool:
    """Whether a Slurm cluster answers here."""
    if shutil.which("sbatch") is None:
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


def script(name: str, slurm: Slurm, tasks: Path, count: int, logs: Path) -> str:
    """The batch script of an array of the `count` tasks in the file `tasks`.

    It runs each task with srun, whose processes receive signals; without srun only the shell does.
    """
    limit = f"%{slurm.array_parallelism}" if slurm.array_parallelism else ""
    options = {
        "job-name": name,
        "array": f"0-{count - 1}{limit}",
        "output": f"{logs}/%x-%A_%a.log",
        "open-mode": "append",  # a requeued job appends to its log
        "signal": f"USR2@{slurm.signal_seconds}",
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.tasks_per_node,
        "partition": slurm.partition,
        "account": slurm.account,
        "time": slurm.time,
        "gres": slurm.gres,
        "constraint": slurm.constraint,
        "mem": slurm.mem,
        "cpus-per-task": slurm.cpus_per_task,
    }
    given = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
    command = [sys.executable, "-m", "sidepipe.cli.sweep", "task", str(tasks)]
    return "\n".join(
        [
            "#!/bin/bash",
            *given,
            "#SBATCH --requeue",
            *(f"#SBATCH {option}" for option in slurm.sbatch),
            # Variables of another job in the submitting shell would change the ranks.
            "unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK",
            *map(str, slurm.setup),
            # Since Slurm 22.05, srun does not inherit it from the job.
            '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
            f"exec srun --label --kill-on-bad-exit=1 {shlex.join(command)}",
            "",
        ]
    )


def submit(text: str, after: Sequence[str]) -> str:
    """Submits a batch script that starts when the jobs `after` have ended; returns its job id.

    Raises RuntimeError with the message of sbatch.
    """
    dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    # A sweep that is submitted within a job must not inherit the settings of that job.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SRUN_"))}
    done = subprocess.run(
        ["sbatch", "--parsable", *dependency],
        input=text,
        capture_output=True,
        text=True,
        env=inherited,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"sbatch refused a job: {done.stderr.strip()}; remedy: change runtime.slurm.*, for "
            "example partition, account, time, gres"
        )
    return done.stdout.strip().split(";")[0]


@dataclass(frozen=True)
class Queued:
    """A job in the queue: its state (RUNNING, PENDING, ...), the reason, the node."""

    state: str
    reason: str
    node: str


def queue() -> dict[str, Queued]:
    """The user's jobs that have not ended, by id, or `<id>_<index>` in arrays."""
    lines = _output("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N")
    split = (line.split("|") for line in lines)
    return {job: Queued(state, reason, node) for job, state, reason, node in split}


def ended(jobs: Sequence[str]) -> dict[str, str]:
    """The final states of jobs by id, as `OUT_OF_MEMORY (0:125)`; empty without accounting."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    whole = sorted({job.split("_")[0] for job in jobs})
    try:
        lines = _output(
            "sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode", "-j", ",".join(whole)
        )
    except RuntimeError:
        return {}
    found = {job: f"{state} ({code})" for job, state, code in (line.split("|") for line in lines)}
    return {job: found[job] for job in jobs if job in found}


def cancel(jobs: Sequence[str]) -> None:
    """Cancels jobs; ignores those that have ended."""
    if jobs:
        _output("scancel", "--quiet", *jobs)


def _output(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
    return [line for line in done.stdout.splitlines() if line]
