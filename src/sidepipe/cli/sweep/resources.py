"""The resources of Slurm jobs, as settings, and the batch scripts that request them."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sidepipe import stages
from sidepipe.base.settings import bind, check_field_types, require, require_known
from sidepipe.engine.graph import stage_class

# A job that ended in one of these states is submitted again, with twice this resource.
RETRIED = {"OUT_OF_MEMORY": "mem", "TIMEOUT": "time", "NODE_FAIL": None, "BOOT_FAIL": None}


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """The resources of a job, named as in sbatch; None for the cluster's default or your SBATCH_*.

    nodes x tasks_per_node processes share one training or sampling run, with one device each.
    array_parallelism: jobs of a sweep that run together, None for no limit. group_minutes: cheaper
    artifacts share jobs of about this estimated time, 0 for one job per artifact. max_jobs: jobs in
    the queue at a time. max_requeues: restarts of a job. retries: further jobs after one that ran
    out of memory or time, each with twice as much. signal_seconds: time before the limit at which a
    job saves and requeues itself. setup: shell lines that run first. sbatch: further options.
    stages: other resources, by stage; by default a stage without several processes or an
    accelerator requests one process or no accelerator.
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
    group_minutes: float = 10
    max_jobs: int = 1000
    max_requeues: int = 100
    retries: int = 0
    signal_seconds: int = 120
    setup: list = field(default_factory=list)
    sbatch: list = field(default_factory=list)
    stages: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"nodes": 1, "tasks_per_node": 1, "signal_seconds": 1, "max_jobs": 3}
        least |= {"group_minutes": 0, "max_requeues": 0, "retries": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            require(value >= bound, f"runtime.slurm.{name}", f">= {bound}", value)
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

    def covers(self, other: "Slurm") -> bool:
        """Whether a job with these resources can also do the work of a job with the `other` ones.

        It may have an accelerator and processes that the other one does not need.
        """
        same = replace(
            self,
            gres=self.gres if other.gres else None,
            nodes=min(self.nodes, other.nodes),
            tasks_per_node=min(self.tasks_per_node, other.tasks_per_node),
        )
        return same == other

    def again(self, states: Sequence[str]) -> "Slurm":
        """These resources after jobs that ended in these `states`: twice what each ran out of."""
        grown = self
        for resource in filter(None, map(RETRIED.get, states)):
            grown = replace(grown, **{resource: _doubled(getattr(grown, resource))})
        return grown


def slurm_of(settings: Mapping[str, Any] | None) -> Slurm:
    """The checked `runtime.slurm` settings; raises ValueError for a wrong one."""
    where = "runtime.slurm"
    remedy = "choose runtime=slurm, or LAUNCHER=local"
    require(settings is not None, where, "set", settings, remedy)
    assert settings is not None
    bind(where, "sidepipe.cli.sweep.resources.Slurm", settings)
    slurm = Slurm(**check_field_types(where, Slurm, settings))
    for stage in slurm.stages:
        require_known(f"{where}.stages", stage, stages.STAGES)
        slurm.of(stage)
    return slurm


def _doubled(value: str | int | None) -> str | int | None:
    """Twice an amount of memory (`64G`) or of time (minutes, `1-00:00:00`); None stays None."""
    if isinstance(value, int):
        return 2 * value
    if value is None or not (parts := re.findall(r"\d+", value)):
        return value
    if ":" not in value and "-" not in value:
        return value.replace(parts[0], str(2 * int(parts[0])), 1)
    # Slurm takes 90 seconds and 26 hours as they are.
    return re.sub(r"\d+", lambda part: f"{2 * int(part[0]):02d}", value)


def script(name: str, slurm: Slurm, command: Sequence[str], log: Path) -> str:
    """The batch script of a job that runs the `sidepipe-sweep` command `command`.

    It runs with srun, whose processes receive signals; without srun only the shell does.
    """
    written = str(log).replace("%", "%%")  # sbatch has patterns such as %A
    options = {
        "job-name": name,
        "output": f'"{written}"',
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
    python = [sys.executable, "-m", "sidepipe.cli.sweep", *command]
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
            f"exec srun --label --kill-on-bad-exit=1 {shlex.join(python)}",
            "",
        ]
    )
