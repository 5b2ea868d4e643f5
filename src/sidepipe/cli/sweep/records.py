"""The records of the jobs of sweeps: a file per job, in `sweeps/<name>/jobs`, which it reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidepipe.base import files, interruption
from sidepipe.cli.sweep.grid import Point, Sweep
from sidepipe.cli.sweep.groups import Group

REMEDY = "remedy: cancel its jobs with scancel, delete it and run make sweep again"
REFILL = "refill"


@dataclass(frozen=True)
class Job:
    """A job: its id, its sweep, the stages that it runs, its artifacts in running order.

    run: the number of the `make sweep` that submitted it. A job without artifacts submits others.
    """

    id: str
    sweep: str
    label: str
    run: int
    keys: tuple[str, ...]
    record: Path

    @property
    def log(self) -> Path:
        return _log(self.record)


def jobs(sweeps: Path) -> list[Job]:
    """All jobs of the sweeps in the folder `sweeps`, oldest first."""
    paths = sorted(sweeps.glob("*/jobs/*.json"), key=lambda path: path.stat().st_mtime)
    found = ((path, files.load_json(path, REMEDY)) for path in paths)
    # A record without an id is of a command that was killed before sbatch returned.
    return [_job(path, record) for path, record in found if record["job"] is not None]


def _job(path: Path, record: Mapping[str, Any]) -> Job:
    keys = tuple(task["key"] for task in record["tasks"])
    label = path.stem.partition("-")[2]
    return Job(record["job"], record["sweep"], label, record["run"], keys, path)


def _log(path: Path) -> Path:
    return path.parent.parent / "logs" / f"{path.stem}.log"


def tasks_of(path: Path) -> list[dict[str, Any]]:
    """The tasks of the record of a job: key, overrides, and whether other jobs read them."""
    return files.load_json(path, REMEDY)["tasks"]


def recorded(
    sweep: Sweep, run: int, group: Group | None, submit: Callable[[str, Path, Path], str]
) -> Job:
    """The job that `submit` submits for `group`, or for a refill, with its record.

    submit: takes the name of the job, its record, which the job reads, and its log; returns the id.
    Where it raises, no record remains. A signal waits until the id is written.
    """
    for each in ("jobs", "logs"):
        (sweep.folder / each).mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name.partition("-")[0]) for path in sweep.folder.glob("jobs/*.json")]
    label = _label(group)
    path = sweep.folder / "jobs" / f"{max(numbers, default=-1) + 1:04d}-{label}.json"
    content = {"sweep": sweep.name, "run": run, "job": None, "tasks": _tasks(group)}
    with interruption.deferred():
        files.write_json(path, content)
        try:
            content["job"] = submit(f"sidepipe-{sweep.name}-{label}", path, _log(path))
        except RuntimeError:
            path.unlink()
            raise
        files.write_json(path, content)
    return _job(path, content)


def _label(group: Group | None) -> str:
    """The stages of a group as `generate-evaluate`: the first and the last one."""
    if group is None:
        return REFILL
    first, last = (group.tasks[at].node.stage.name for at in (0, -1))
    return first if first == last else f"{first}-{last}"


def _tasks(group: Group | None) -> list[dict[str, Any]]:
    """The tasks of a record, with the overrides of few points, each of which the job plans."""
    chosen: dict[str, Point] = {}
    tasks = group.tasks if group else []
    for task in reversed(tasks):  # fewer points need later stages
        if task.node.key not in chosen:
            nodes = task.points[0].plan.nodes
            own = {t.node.key: task.points[0] for t in tasks if t.node.key in nodes}
            chosen = {**own, **chosen}
    read = group.read if group else frozenset()
    keys = [task.node.key for task in tasks]
    return [{"key": key, "overrides": chosen[key].overrides, "read": key in read} for key in keys]
