"""Runs the grid of a file in conf/sweep, here or on Slurm; see docs/cluster.md."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sidepipe.base import files
from sidepipe.cli.main import CONF, FAULTS, refuse_null_groups
from sidepipe.cli.sweep import cluster, jobs, local
from sidepipe.cli.sweep.estimates import estimates
from sidepipe.cli.sweep.grid import Point, Sweep, folder_of, point_of, sweep_of
from sidepipe.cli.sweep.states import Seen, aligned, look, table
from sidepipe.engine import artifacts, pipeline, ranks
from sidepipe.engine.graph import Node
from sidepipe.engine.logs import quiet_libraries
from sidepipe.engine.plan import check_parts
from sidepipe.engine.refusals import in_one_line
from sidepipe.engine.stage import Runtime
from sidepipe.stages.report.stage import load_table

if TYPE_CHECKING:
    from sidepipe.stages.report.sweep.points import Missing
    from sidepipe.stages.report.sweep.points import Point as ReportedPoint

log = logging.getLogger("sidepipe")

RECORD = "sweep.json"


def run(name: str, overrides: Sequence[str], launcher: str, dry: bool) -> int:
    """Makes the missing artifacts of a sweep, here or on Slurm."""
    if launcher == "auto":
        launcher = "slurm" if cluster.is_there() else "local"
    sweep = sweep_of(name, [f"runtime={launcher}", *overrides])
    slurm = None
    if launcher == "slurm":
        slurm = cluster.slurm_of(sweep.points[0].plan.runtime.slurm)
    left = [task for task in sweep.tasks.values() if not task.is_done]
    check_parts((task.node for task in left), sweep.points[0].plan.runtime)
    print(forecast(sweep))
    if dry:
        return 0
    if slurm is not None:
        cluster.require_answer()
    for task in left:
        task.node.stage.check_sources(task.plan.runtime)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(sweep.folder / RECORD, {"overrides": list(sweep.overrides)})
    if slurm is not None:
        return _submit(sweep, slurm)
    local.run(sweep)
    seen = look(sweep)
    print(f"{table(sweep, seen)}\nresults: make report SWEEP={sweep.name}")
    return int(any(at.kind != "done" for at in seen.values()))


def _submit(sweep: Sweep, slurm: cluster.Slurm) -> int:
    count = 0
    for stage, array, tasks in jobs.submit(sweep, slurm):
        print(f"submitted {stage}: job {array}, {tasks} task{'s' * (tasks > 1)}")
        count += tasks
    done = f"{count} submitted" if count else "nothing to submit"
    print(f"{done}; status: make status SWEEP={sweep.name}")
    return 0


def forecast(sweep: Sweep) -> str:
    """A table of finished and missing artifacts by stage, with an estimate of the device-hours."""
    left = {key: task for key, task in sweep.tasks.items() if not task.is_done}
    expected = estimates(left.values())
    rows: list[list[object]] = [
        ["stage", "artifacts", "done", "to make", "device-hours", "unknown"]
    ]
    for stage in dict.fromkeys(task.node.stage.name for task in sweep.tasks.values()):
        all_of = [key for key, task in sweep.tasks.items() if task.node.stage.name == stage]
        mine = [key for key in all_of if key in left]
        known = [e.seconds for key in mine if (e := expected[key]) is not None]
        hours = f"{sum(known) / 3600:.2f}" if known else ""
        done = len(all_of) - len(mine)
        rows.append([stage, len(all_of), done, len(mine), hours, len(mine) - len(known)])
    total = sum(e.seconds for e in expected.values() if e is not None)
    devices = sorted({e.device for e in expected.values() if e is not None})
    axes = ", ".join(
        f"{axis}={','.join(dict.fromkeys(str(p.axes[axis]) for p in sweep.points))}"
        for axis in sweep.axes
    )
    lines = [f"sweep {sweep.name}: {len(sweep.points)} points" + (f", {axes}" if axes else "")]
    lines += aligned(rows)
    if devices:
        lines.append(
            f"{total / 3600:.1f} device-hours in all, estimated from runs on {'; '.join(devices)}"
        )
    return "\n".join(lines)


def status(name: str, overrides: Sequence[str]) -> int:
    """Prints the states of the artifacts of a sweep."""
    sweep = _known(name, overrides)
    print(table(sweep, look(sweep)))
    return 0


def cancel(name: str, overrides: Sequence[str]) -> int:
    """Cancels the queued and running jobs of a sweep; their finished work is kept."""
    cluster.require_answer()
    sweep = _known(name, overrides)
    mine = [
        job.id
        for job in jobs.at_work(sweep.folder.parent, cluster.queue()).values()
        if job.sweep == name
    ]
    cluster.cancel(mine)
    print(f"canceled {len(mine)} jobs of sweep {name}")
    return 0


def report(name: str, overrides: Sequence[str]) -> int:
    """Writes the report of the finished artifacts of a sweep, and prints its table."""
    from sidepipe.stages.report.sweep.page import write_sweep

    sweep = _known(name, overrides)
    seen = look(sweep)
    points = [_reported(point, seen) for point in sweep.points]
    title = sweep.points[0].plan.goals("report")[0].settings["title"]
    page = write_sweep(sweep.folder / "report", title, points)
    print(f"{load_table(page.parent)}\nreport: {page}")
    return 0


def _reported(point: Point, seen: Mapping[str, Seen]) -> ReportedPoint:
    """The point in the form that the report of a sweep takes."""
    from sidepipe.stages.report.sweep.points import Point as ReportedPoint

    runtime = point.plan.runtime
    (page,) = point.plan.goals("report")
    states = {node.key: seen.get(node.key, Seen("missing", "")) for node in page.inputs.values()}
    return ReportedPoint(
        point.axes,
        {
            attack: reported_attack(node, states[node.key], runtime)
            for attack, node in page.inputs.items()
        },
        page.folder(runtime) if page.key in seen and seen[page.key].kind == "done" else None,
    )


def reported_attack(node: Node, at: Seen, runtime: Runtime) -> Path | Missing:
    """The folder of a finished attack, or the reason why it has no result."""
    from sidepipe.stages.report.sweep.points import Missing

    if at.kind != "done":
        return Missing(node.key, str(at))
    folder = node.folder(runtime)
    why = artifacts.Artifact(folder).why_empty
    return folder if why is None else Missing(node.key, f"empty: {why}")


def _known(name: str, overrides: Sequence[str]) -> Sweep:
    """The sweep with the overrides of its last run and further ones."""
    record = folder_of(name, overrides) / RECORD
    remedy = "remedy: delete it and repeat all overrides"
    before = files.load_json(record, remedy)["overrides"] if record.exists() else []
    return sweep_of(name, [*before, *overrides])


def task(path: Path, index: int) -> int:
    """Makes one artifact of a job file, in a Slurm job."""
    key, overrides = jobs.task_of(path, index)
    the_plan = point_of(overrides)
    if key not in the_plan.nodes:
        raise ValueError(
            f"{key} is no artifact of this config any more: code or configs have changed since "
            "submission; remedy: run make sweep again"
        )
    check_parts([the_plan.nodes[key]], the_plan.runtime)
    the_plan.runtime.limit_threads()
    pipeline.make(the_plan.nodes[key], the_plan)
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `sidepipe-sweep` command."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    quiet_libraries()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    chosen = _parsed(arguments)
    refuse_null_groups(chosen.get("overrides", ()))
    command = chosen.pop("command")
    with ranks.leading() as leads:
        if leads:
            sys.exit(_tried(command, chosen))


def _tried(command: Callable[..., int], arguments: Mapping[str, Any]) -> int:
    """Runs the command; returns its exit code, 1 after an error, which it logs."""
    try:
        return command(**arguments)
    except FAULTS as error:
        of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
        log.error(
            "%s", in_one_line(error, CONF, arguments.get("overrides", ())) if of_hydra else error
        )
        return 1


def _parsed(arguments: Sequence[str] | None) -> dict[str, Any]:
    parser = _parser()
    known, further = parser.parse_known_args(arguments)
    # argparse accepts no more overrides after an option.
    if wrong := [each for each in further if each.startswith("-") or "overrides" not in known]:
        parser.error(f"unknown arguments: {' '.join(wrong)}")
    if further:
        known.overrides += further
    return vars(known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sidepipe-sweep", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (run, status, report, cancel):
        sub = commands.add_parser(command.__name__, help=(command.__doc__ or "").split(".")[0])
        sub.set_defaults(command=command)
        sub.add_argument("name", help="the name of a file in conf/sweep")
        sub.add_argument(
            "overrides", nargs="*", help="settings, as for sidepipe; a=1,2 adds an axis"
        )
        if command is run:
            sub.add_argument(
                "--launcher",
                choices=["auto", "slurm", "local"],
                default="auto",
                help="auto: slurm where a cluster answers, else local",
            )
            sub.add_argument("--dry", action="store_true", help="only print the plan")
    sub = commands.add_parser("task", help="run one task of a job array; Slurm jobs use it")
    sub.set_defaults(command=task)
    sub.add_argument("path", type=Path, help="the job file")
    index = os.environ.get("SLURM_ARRAY_TASK_ID")
    sub.add_argument(
        "index",
        type=int,
        nargs="?",
        default=index,
        help="index of the task; default: SLURM_ARRAY_TASK_ID",
    )
    return parser
