"""The states of the artifacts of a sweep, from disk and from the cluster, as a table."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidepipe.cli.sweep import cluster
from sidepipe.cli.sweep.grid import Sweep, Task
from sidepipe.cli.sweep.records import Job, jobs
from sidepipe.engine.status import State, state
from sidepipe.stages.report import terminal

KINDS = ("done", "running", "queued", "failed", "damaged", "blocked", "unfinished", "missing")
# The table lists artifacts of these kinds; it only counts the others.
LISTED = ("running", "failed", "damaged", "blocked", "unfinished")
BLOCKING = ("failed", "damaged", "blocked")
UNKNOWN = "unknown"
# `srun --label` begins each line with the rank.
RANK = re.compile(r"(?: *(\d+): ?)?(.*)")


@dataclass(frozen=True)
class Seen:
    """The state of an artifact in a sweep: one of KINDS, and details for the user."""

    kind: str
    details: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.details}" if self.details else self.kind


def look(sweep: Sweep) -> dict[str, Seen]:
    """The state of every artifact of the sweep by key, in running order."""
    known = jobs(sweep.folder.parent)
    latest = {key: job for job in known for key in job.keys if key in sweep.tasks}
    answers = not latest or cluster.is_there()
    queue = cluster.queue() if latest and answers else {}
    on_disk = {key: state(task.node, task.plan.runtime) for key, task in sweep.tasks.items()}
    over = {
        job.id: job
        for key, job in latest.items()
        if job.id not in queue and on_disk[key].kind not in ("done", "running")
    }
    ended = cluster.ended(list(over))
    seen: dict[str, Seen] = {}
    for key, task in sweep.tasks.items():
        job = latest.get(key)
        if job is None or on_disk[key].kind in ("done", "running"):
            at = _plain(on_disk[key])
        elif job.id in queue:
            at = _queued(job, key, queue[job.id])
        else:
            unfinished = [each for each in job.keys if not _is_done(each, on_disk)]
            how = ended.get(job.id, "ended" if answers else UNKNOWN)
            at = _over(on_disk[key], job, how, is_first=unfinished[0] == key)
        inputs = task.node.inputs.values()
        bad = [read for read in inputs if seen[read.key].kind in BLOCKING]
        if at.kind == "failed":  # its job may have lacked an input
            bad += [read for read in inputs if seen[read.key].kind != "done"]
        if bad and at.kind in ("failed", "missing", "unfinished") and on_disk[key].kind != "failed":
            at = Seen("blocked", f"blocked by {bad[0].stage.name} {bad[0].key}")
        seen[key] = at
    return seen


def _is_done(key: str, on_disk: Mapping[str, State]) -> bool:
    # A job may also make artifacts of other sweeps.
    return key in on_disk and on_disk[key].kind == "done"


def _plain(at: State) -> Seen:
    return Seen(at.kind, at.details.strip(" ,:"))


def _queued(job: Job, key: str, queued: cluster.Queued) -> Seen:
    """The state of an artifact that the job `job` in the queue has not begun."""
    if queued.state != "RUNNING":
        return Seen("queued", f"job {job.id}: {queued.reason}")
    if key == job.keys[0]:
        return Seen("running", f"job {job.id} starts on {queued.node}; log: {job.log}")
    return Seen("queued", f"job {job.id} on {queued.node} makes other artifacts first")


def _over(at: State, job: Job, how: str, is_first: bool) -> Seen:
    """The state of an artifact whose job has ended, or is unknown, without making it.

    how: its final state in Slurm. is_first: whether the job made all artifacts before it.
    """
    if at.kind in ("failed", "damaged"):
        return _plain(at)
    if how == UNKNOWN or how.startswith(("PENDING", "RUNNING", "REQUEUED")):
        return Seen("queued", f"job {job.id}: Slurm does not answer")
    if how.startswith("CANCELLED"):
        return Seen(at.kind, f"job {job.id} was canceled{at.details}")
    if not is_first:
        return Seen(at.kind, f"job {job.id} ended before{at.details}")
    last = " | ".join(last_lines(job.log)) or "nothing was logged"
    return Seen("failed", f"job {job.id} {how}: {last}; log: {job.log}")


def last_lines(log: Path) -> list[str]:
    """The last line of each rank in a job's log, by srun's labels."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        lines = file.read().decode(errors="replace").splitlines()
    last: dict[str, str] = {}
    for line in lines:
        found = RANK.fullmatch(line)
        rank, text = found.groups() if found else ("", line)
        if text.strip():
            last[rank] = line.strip()
    return list(last.values())


def table(sweep: Sweep, seen: Mapping[str, Seen]) -> str:
    """The counts by stage, then the running, failed and blocked artifacts."""
    stages: dict[str, Counter[str]] = {}
    for key, at in seen.items():
        stages.setdefault(sweep.tasks[key].node.stage.name, Counter())[at.kind] += 1
    kinds = [kind for kind in KINDS if any(stage[kind] for stage in stages.values())]
    rows = [[name, *(count[kind] for kind in kinds)] for name, count in stages.items()]
    lines = [f"sweep {sweep.name}: {len(sweep.points)} points, {len(seen)} artifacts"]
    lines += aligned([["stage", *kinds], *rows])
    for kind in LISTED:
        keys = [key for key, at in seen.items() if at.kind == kind]
        lines += [f"{kind}:"] * bool(keys)
        lines += [f"  {about(sweep.tasks[key], sweep)}: {seen[key].details}" for key in keys]
    return "\n".join(lines)


def about(task: Task, sweep: Sweep) -> str:
    """A task as text: stage, attacks, key and values on the axes."""
    values = task.values(sweep.axes)
    return f"{task.title} {task.node.key}" + (f" ({values})" if values else "")


def aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table: names to the left, numbers to the right, 0 as an empty cell."""
    text = [[str(cell) if cell != 0 else "" for cell in row] for row in rows]
    names, *columns = zip(*text, strict=True)
    return [line.rstrip() for line in terminal.aligned(names, columns)]
