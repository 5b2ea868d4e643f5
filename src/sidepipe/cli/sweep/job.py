"""The work of a Slurm job of a sweep: the artifacts of its record, one after another."""

import os
from pathlib import Path

from sidepipe.cli.sweep import local
from sidepipe.cli.sweep.grid import plans_of
from sidepipe.cli.sweep.records import tasks_of
from sidepipe.cli.sweep.resources import Slurm, slurm_of


def job(record: Path) -> int:
    """Makes the artifacts of the record of a job, in this job.

    Returns 1 where one failed that other jobs read, or, where they read none of them, any.
    """
    tasks = tasks_of(record)
    plans = plans_of([task["overrides"] for task in tasks])
    _require_few_restarts(slurm_of(plans[0].runtime.slurm))
    for task, plan in zip(tasks, plans, strict=True):
        if task["key"] not in plan.nodes:
            raise ValueError(
                f"{task['key']} is no artifact of this config any more: code or configs have "
                "changed since submission; remedy: run make sweep again"
            )
    nodes = [plan.nodes[task["key"]] for task, plan in zip(tasks, plans, strict=True)]
    titles = (f"{plan.title(n)} {n.key}" for n, plan in zip(nodes, plans, strict=True))
    failed = local.make_each(zip(nodes, plans, titles, strict=True))
    read = {task["key"] for task in tasks if task["read"]}
    return int(bool(failed & read if read else failed))


def _require_few_restarts(slurm: Slurm) -> None:
    """Raises RuntimeError where Slurm has restarted this job too often."""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if restarts > slurm.max_requeues:
        raise RuntimeError(
            f"this job was restarted {restarts} times, and runtime.slurm.max_requeues is "
            f"{slurm.max_requeues}; finished work is saved; remedy: a longer runtime.slurm.time, "
            "then make sweep again"
        )
