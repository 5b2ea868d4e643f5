"""The jobs of sweeps: submission, and records in the folder of the sweep.

A job is an array of tasks of one stage; a task makes one artifact, whose inputs earlier jobs make.
Finished artifacts, and those of active jobs of any sweep, are not submitted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from sidepipe.base import files
from sidepipe.cli.sweep import cluster
from sidepipe.cli.sweep.grid import Sweep, Task
from sidepipe.engine import locks

REMEDY = "remedy: cancel its jobs with scancel, delete it and run make sweep again"


@dataclass(frozen=True)
class Job:
    """One task of an array: its id `<array>_<index>`, the key of its artifact, and its log."""

    id: str
    sweep: str
    key: str
    log: Path


def jobs(sweeps: Path) -> list[Job]:
    """All jobs of the sweeps in the folder `sweeps`, oldest first."""
    found = []
    for path in sorted(sweeps.glob("*/jobs/*.json"), key=lambda path: path.stat().st_mtime):
        record = files.load_json(path, REMEDY)
        array, logs = record["array"], path.parent.parent / "logs"
        if array is None:
            continue  # the command was killed before sbatch returned
        for index, task in enumerate(record["tasks"]):
            job = f"{array}_{index}"
            found.append(
                Job(job, record["sweep"], task["key"], logs / f"{record['name']}-{job}.log")
            )
    return found


def at_work(sweeps: Path, queue: Mapping[str, cluster.Queued]) -> dict[str, Job]:
    """The jobs of any sweep that have not ended, by key."""
    return {job.key: job for job in jobs(sweeps) if job.id in queue}


def submit(sweep: Sweep, slurm: cluster.Slurm) -> Iterator[tuple[str, str, int]]:
    """Submits missing artifacts by stage; yields stage, job id and number of tasks of each array.

    Concurrent calls run one after another, and the second skips the tasks of the first.
    """
    sweeps = sweep.folder.parent
    with locks.locked(sweeps / "submitting"):
        waiting = {key: job.id for key, job in at_work(sweeps, cluster.queue()).items()}
        left = [t for key, t in sweep.tasks.items() if key not in waiting and not t.is_done]
        for stage, group in groupby(left, key=lambda task: task.node.stage.name):
            tasks = list(group)
            for start in range(0, len(tasks), cluster.MAX_ARRAY):
                part = tasks[start : start + cluster.MAX_ARRAY]
                read = {node.key for task in part for node in task.node.inputs.values()}
                after = [waiting[key] for key in read if key in waiting]
                array = _submit(sweep, slurm.of(stage), stage, part, after)
                waiting |= {task.node.key: array for task in part}
                yield stage, array, len(part)


def _submit(
    sweep: Sweep, slurm: cluster.Slurm, stage: str, tasks: Sequence[Task], after: list[str]
) -> str:
    """Submits one array after the jobs `after`, with its record first, which its jobs read."""
    folder, logs = sweep.folder / "jobs", sweep.folder / "logs"
    for each in (folder, logs):
        each.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.json")))
    path = folder / f"{number:04d}-{stage}.json"
    name = f"sidepipe-{sweep.name}-{stage}"
    content = {
        "sweep": sweep.name,
        "name": name,
        "array": None,
        "tasks": [{"key": t.node.key, "overrides": t.points[0].overrides} for t in tasks],
    }
    files.write_json(path, content)
    text = cluster.script(name, slurm, path, len(tasks), logs)
    path.with_suffix(".sh").write_text(text)
    try:
        array = cluster.submit(text, sorted({job.split("_")[0] for job in after}))
    except RuntimeError:
        path.unlink()
        raise
    files.write_json(path, {**content, "array": array})
    return array


def task_of(path: Path, index: int) -> tuple[str, list[str]]:
    """The key and the overrides of one task of a job file."""
    task = files.load_json(path, REMEDY)["tasks"][index]
    return task["key"], task["overrides"]
