"""Submission of the jobs of a sweep, and of refills, which submit the rest.

A job makes the artifacts of a group, after the jobs that make what it reads. Finished artifacts,
and those of active jobs of any sweep, are not submitted. Where the cluster accepts no more jobs, a
refill runs the same command again when one of them has ended.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sidepipe.cli.sweep import cluster
from sidepipe.cli.sweep.estimates import expected_seconds
from sidepipe.cli.sweep.grid import Sweep
from sidepipe.cli.sweep.groups import Group, grouped
from sidepipe.cli.sweep.records import Job, jobs, recorded
from sidepipe.cli.sweep.resources import RETRIED, Slurm, script
from sidepipe.engine import locks

# A refill starts no sooner than this after its submission: it plans the whole sweep.
REFILL_SECONDS = 15
# A canceled job may keep its place for as long as Slurm's KillWait.
PLACE_SECONDS = 60


@dataclass(frozen=True)
class History:
    """The jobs of a `make sweep` before a refill.

    failed: the final states of jobs that failed to make an artifact, by key. given_up: keys of
    artifacts that are not submitted again, and of those that read them.
    """

    failed: Mapping[str, list[str]] = field(default_factory=dict)
    given_up: frozenset[str] = frozenset()


NO_HISTORY = History()


@dataclass(frozen=True)
class Submitted:
    """jobs: in the order of submission. left: the number of jobs that `refill` will submit."""

    jobs: list[Job]
    left: int
    refill: Job | None


def history(sweep: Sweep, slurm: Slurm, run: int) -> History:
    """The history of the `make sweep` with the number `run`, for its refill."""
    queue = cluster.queue()
    known = [job for job in jobs(sweep.folder.parent) if (job.sweep, job.run) == (sweep.name, run)]
    active = {key for job in known if job.id in queue for key in job.keys}
    over = [job for job in known if job.id not in queue]
    states = cluster.ended([job.id for job in over])
    failed: dict[str, list[str]] = {}
    for job in over:
        # The job did not try the tasks after the first one that it did not finish.
        for key in [key for key in job.keys if not sweep.tasks[key].is_done][:1]:
            failed.setdefault(key, []).append(states.get(job.id, "").partition(" ")[0])
    given_up: set[str] = set()
    for key, task in sweep.tasks.items():
        inputs = {read.key for read in task.node.inputs.values()}
        if inputs & given_up:
            given_up.add(key)
        elif key not in active and not task.is_done:
            # Slurm cancels a job whose input failed; a person cancels one that could run.
            ends = failed.get(key, [])
            was_canceled = ends[-1:] == ["CANCELLED"]
            by_a_person = was_canceled and all(sweep.tasks[read].is_done for read in inputs)
            ends = [end for end in ends if by_a_person or end != "CANCELLED"]
            if len(ends) > slurm.retries or any(end not in RETRIED for end in ends):
                given_up.add(key)
    return History(failed, frozenset(given_up))


def submit(sweep: Sweep, slurm: Slurm, run: int, before: History = NO_HISTORY) -> Submitted:
    """Submits the missing artifacts of a sweep, and a refill where the cluster is full.

    before: the history where a refill submits. Concurrent calls run one after another, and the
    second skips the tasks of the first. Raises cluster.Full where the cluster accepts no job.
    """
    sweeps = sweep.folder.parent
    with locks.locked(sweeps / "submitting"):
        known, queue = jobs(sweeps), cluster.queue()
        waiting = {key: job.id for job in known if job.id in queue for key in job.keys}
        groups = groups_of(sweep, slurm, waiting, before)
        active = [job for job in known if job.id in queue and job.sweep == sweep.name and job.keys]
        refills = slurm.retries > 0
        free = cluster.free_places(slurm.max_jobs) if groups else 0
        places = free if len(groups) + refills <= free else free - 1
        made: list[Job] = []
        try:
            for group in groups[: max(0, places)]:
                made.append(_submit(sweep, run, group, slurm.array_parallelism, active, made))
        except cluster.Full:
            if not made:
                raise
            cluster.cancel([made[-1].id])  # its place is for the refill
            made.pop().record.unlink()
        left = len(groups) - len(made)
        others = [job.id for job in [*active, *made]]
        if left and not others:
            raise cluster.Full(f"{slurm.max_jobs - free} jobs of yours are in the queue")
        refill = _refill(sweep, slurm, run, others, left) if left or (made and refills) else None
        return Submitted(made, left, refill)


def groups_of(
    sweep: Sweep, slurm: Slurm, waiting: Mapping[str, str] = {}, past: History = NO_HISTORY
) -> list[Group]:
    """The groups of the artifacts that are neither finished, nor active, nor given up."""
    left = [
        task
        for key, task in sweep.tasks.items()
        if not (key in waiting or key in past.given_up or task.is_done)
    ]
    own = {name: slurm.of(name) for name in {task.node.stage.name for task in left}}
    slurms = {
        task.node.key: own[task.node.stage.name].again(past.failed.get(task.node.key, ()))
        for task in left
    }
    return grouped(left, slurms, expected_seconds(left), waiting, 60 * slurm.group_minutes)


def _submit(
    sweep: Sweep, run: int, group: Group, parallel: int | None, active: list[Job], made: list[Job]
) -> Job:
    """Submits the job of a group after those of the groups that it reads.

    parallel: each job also waits for the one that was submitted so many jobs earlier.
    """
    ok = sorted(made[each].id if isinstance(each, int) else each for each in group.after)
    earlier = [*active, *made]
    lane = [earlier[-parallel].id] if parallel and len(earlier) >= parallel else []

    def send(name: str, record: Path, log: Path) -> str:
        text = script(name, group.slurm, ["job", str(record)], log)
        record.with_suffix(".sh").write_text(text)
        return cluster.submit(text, ok=ok, ended=[each for each in lane if each not in ok])

    return recorded(sweep, run, group, send)


def _refill(sweep: Sweep, slurm: Slurm, run: int, others: Sequence[str], left: int) -> Job:
    """Submits the job that runs this command again: after any of `others`, or, to retry, all."""
    seconds = max(REFILL_SECONDS, 3 * int(time.process_time()))
    own = slurm.of("data")  # a stage without an accelerator
    own = replace(own, sbatch=[*own.sbatch, f"--begin=now+{seconds}"])
    overrides = [each for each in sweep.overrides if each != "runtime=slurm"]
    command = ["run", sweep.name, "--launcher", "slurm", "--refill", str(run), *overrides]

    def send(name: str, record: Path, log: Path) -> str:
        text = script(name, own, command, log)
        record.with_suffix(".sh").write_text(text)
        return cluster.submit(text, ended=others, any_of=left > 0)

    until = time.monotonic() + PLACE_SECONDS
    while True:
        try:
            return recorded(sweep, run, None, send)
        except cluster.Full:
            if time.monotonic() > until:
                raise
            time.sleep(2)
