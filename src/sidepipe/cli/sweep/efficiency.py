"""The resources that the jobs of a sweep requested and used, from the accounting of Slurm."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sidepipe.cli.sweep import cluster
from sidepipe.cli.sweep.grid import Sweep
from sidepipe.cli.sweep.records import Job, jobs
from sidepipe.engine import artifacts

FIELDS = ("Eligible", "Start", "ElapsedRaw", "CPUTimeRAW", "TotalCPU", "ReqMem", "MaxRSS")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
HEAD = ("jobs", "number", "waited", "ran", "worked", "CPU", "memory", "used")


def efficiency(sweep: Sweep) -> list[list[Any]]:
    """A table with a row per kind of job, headed by HEAD; [] without accounting.

    waited: the mean time in the queue after the inputs were made. ran, worked: the sum of the time
    of jobs, and of the work on finished artifacts within. CPU: the share of the requested cores'
    time that was used. memory, used: requested per job, and the most that a process used.
    """
    mine = [job for job in jobs(sweep.folder.parent) if job.sweep == sweep.name]
    found = cluster.accounted([job.id for job in mine], *FIELDS)
    labels: dict[str, list[Job]] = {}
    for job in mine:
        if found.get(job.id, {}).get("ElapsedRaw", "0") != "0":
            labels.setdefault(job.label, []).append(job)
    rows: list[list[Any]] = [[label, *_row(sweep, of, found)] for label, of in labels.items()]
    return [list(HEAD), *rows] if rows else []


def _row(sweep: Sweep, of: Sequence[Job], found: Mapping[str, Mapping[str, str]]) -> list[Any]:
    rows = [found[job.id] for job in of]
    steps = [row for job in of for name, row in found.items() if name.startswith(f"{job.id}.")]
    waits = [(_time(row["Start"]) - _time(row["Eligible"])).total_seconds() for row in rows]
    ran = sum(int(row["ElapsedRaw"]) for row in rows)
    cores = sum(int(row["CPUTimeRAW"]) for row in rows)
    used = sum(map(_seconds, (row["TotalCPU"] for row in rows)))
    return [
        len(of),
        f"{sum(waits) / len(waits):.0f} s",
        f"{ran} s",
        f"{_worked(sweep, {key for job in of for key in job.keys}):.0f} s",
        f"{100 * used / cores:.0f} %" if cores else "",
        _gigabytes(row["ReqMem"] for row in rows),
        _gigabytes(row["MaxRSS"] for row in steps),
    ]


def _worked(sweep: Sweep, keys: set[str]) -> float:
    folders = [sweep.tasks[key].folder for key in keys & sweep.tasks.keys()]
    manifests = (artifacts.read_manifest(folder) for folder in folders)
    return sum(manifest["seconds"] for manifest in manifests if manifest is not None)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _seconds(text: str) -> float:
    """The seconds of `1-02:03:04` or `03:04.500`."""
    days, _, rest = text.rpartition("-")
    parts = [float(part) for part in rest.split(":")]
    clock = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    return 86400 * int(days or 0) + clock


def _gigabytes(texts: Iterable[str]) -> str:
    """The largest of amounts such as `1500M`; "" where there are none."""
    sizes = [float(text[:-1]) * UNITS[text[-1]] for text in texts if text and text[-1] in UNITS]
    return f"{max(sizes) / 2**30:.1f} GiB" if sizes else ""
