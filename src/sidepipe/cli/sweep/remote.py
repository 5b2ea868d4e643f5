"""Running a sweep on Slurm: checks before anything is submitted, and the submission."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sidepipe.base import interruption
from sidepipe.cli.sweep import cluster, jobs
from sidepipe.cli.sweep.grid import Sweep, Task
from sidepipe.cli.sweep.resources import script, slurm_of

log = logging.getLogger(__name__)


def check(sweep: Sweep, left: Sequence[Task], dry: bool) -> None:
    """Raises where the settings are wrong, or where the cluster can never run the jobs of a stage.

    dry: prints the number of jobs, and does not require that the cluster answers.
    """
    slurm = slurm_of(sweep.points[0].plan.runtime.slurm)
    if dry and not cluster.is_there():
        return
    cluster.require_answer()
    stages = dict.fromkeys(task.node.stage.name for task in left)
    for name in {str(slurm.of(name)): name for name in stages}.values():
        try:
            cluster.test(script("sidepipe-test", slurm.of(name), [], Path(os.devnull)))
        except RuntimeError as error:
            raise RuntimeError(f"jobs of the stage {name}: {error}") from error
    if dry:
        count = len(jobs.groups_of(sweep, slurm))
        most = f", at most {slurm.max_jobs} in the queue at a time"
        print(f"{count} jobs" + (most if count > slurm.max_jobs else ""))


def run(sweep: Sweep, number: int, is_refill: bool) -> None:
    """Submits the jobs of the missing artifacts, as the `make sweep` with this number."""
    slurm = slurm_of(sweep.points[0].plan.runtime.slurm)
    try:
        before = jobs.history(sweep, slurm, number) if is_refill else jobs.NO_HISTORY
        submitted = jobs.submit(sweep, slurm, number, before)
    except cluster.Full as full:
        if is_refill:
            interruption.requeue()
        raise RuntimeError(
            f"the cluster accepts no job of yours now: {full}; remedy: run this again when some "
            "of your jobs have ended"
        ) from full
    for label, count in Counter(job.label for job in submitted.jobs).items():
        print(f"submitted {label}: {count} job{'s' * (count > 1)}")
    if submitted.left and submitted.refill is not None:
        print(f"{submitted.left} more: job {submitted.refill.id} submits them when there is room")
    done = f"{len(submitted.jobs)} submitted" if submitted.jobs else "nothing to submit"
    print(f"{done}; status: make status SWEEP={sweep.name}")
