"""Processes as srun starts them: the variables of a step, without Slurm."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def step_variables(task: int, tasks: int, job: int, nodes: int = 1) -> dict[str, str]:
    """What srun sets in one task of a step, tasks of a node side by side."""
    each = tasks // nodes
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_NODEID": str(task // each),
        "SLURM_LOCALID": str(task % each),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})" if nodes > 1 else str(each),
    }


@contextmanager
def step(
    *command: str,
    tasks: int = 2,
    nodes: int = 1,
    start_new_session: bool = False,
    **environment: str,
) -> Iterator[list[subprocess.Popen[str]]]:
    """Python processes of one step, first first; whatever still runs at the end is killed.

    command: Python's arguments. start_new_session: each is a process group of its own. The number
    of the job comes from this process's, so that steps of tests that run at once do not meet.
    """
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "1", "RANK": "1", **environment}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**quiet, **step_variables(task, tasks, os.getpid(), nodes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=start_new_session,
        )
        for task in range(tasks)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
