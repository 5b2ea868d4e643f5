"""Runs the grid of a file in conf/sweep, here or on Slurm; see docs/cluster.md."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sidepipe.base import files
from sidepipe.cli.main import CONF, FAULTS, refuse_null_groups
from sidepipe.cli.sweep import cluster, local, records, remote
from sidepipe.cli.sweep.efficiency import efficiency
from sidepipe.cli.sweep.estimates import estimates
from sidepipe.cli.sweep.grid import Sweep, folder_of, sweep_of
from sidepipe.cli.sweep.job import job
from sidepipe.cli.sweep.results import write_report
from sidepipe.cli.sweep.states import aligned, look, table
from sidepipe.engine import ranks
from sidepipe.engine.logs import quiet_libraries
from sidepipe.engine.places import RECORD
from sidepipe.engine.plan import check_parts
from sidepipe.engine.refusals import in_one_line
from sidepipe.stages.report.stage import load_table

log = logging.getLogger("sidepipe")


def run(
    name: str, overrides: Sequence[str], launcher: str, dry: bool, refill: int | None = None
) -> int:
    """Makes the missing artifacts of a sweep, here or on Slurm."""
    launcher = _launcher(name, overrides, launcher)
    if launcher == "local":
        overrides = _without_slurm(overrides)
    sweep = sweep_of(name, [f"runtime={launcher}", *overrides])
    if refill is not None and refill != (number := _number(sweep)):
        print(f"make sweep {number} submits what make sweep {refill} did not")
        return 0
    left = [task for task in sweep.tasks.values() if not task.is_done]
    check_parts((task.node for task in left), sweep.points[0].plan.runtime)
    print(forecast(sweep))
    if launcher == "slurm":
        remote.check(sweep, left, dry)
    if dry:
        return 0
    for task in left:
        task.node.stage.check_sources(task.plan.runtime)
    if launcher == "slurm":
        remote.run(sweep, _begin(sweep) if refill is None else refill, refill is not None)
        return 0
    _begin(sweep)
    local.run(sweep)
    seen = look(sweep)
    print(f"{table(sweep, seen)}\nresults: make report SWEEP={sweep.name}")
    return int(any(at.kind != "done" for at in seen.values()))


def _launcher(name: str, overrides: Sequence[str], chosen: str) -> str:
    """slurm or local; `auto` is slurm where a cluster answers.

    Raises RuntimeError where `auto` would compute on a machine whose sweeps run on Slurm.
    """
    if chosen != "auto":
        return chosen
    if cluster.is_there():
        return "slurm"
    records = folder_of(name, ["runtime=slurm", *overrides]) / "jobs"
    why = "Slurm's commands are on this machine" if cluster.has_commands() else None
    why = "this sweep was submitted to Slurm" if any(records.glob("*.json")) else why
    why = "runtime.slurm is set" if list(overrides) != _without_slurm(overrides) else why
    if why is not None:
        raise RuntimeError(
            f"no Slurm cluster answers, but {why}; nothing runs here without a choice; remedy: try "
            "again later or on a login node, or set LAUNCHER=local to compute on this machine"
        )
    return "local"


def _without_slurm(overrides: Sequence[str]) -> list[str]:
    """The overrides without those of `runtime.slurm`, which runtime=local does not have."""
    return [each for each in overrides if not each.lstrip("+~").startswith("runtime.slurm")]


def _begin(sweep: Sweep) -> int:
    """Records the overrides and the points of this run; returns its number."""
    number = _number(sweep) + 1
    sweep.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(sweep.folder / RECORD, {"run": number, **sweep.record})
    return number


def _number(sweep: Sweep) -> int:
    """How many times `make sweep` has run this sweep."""
    return int((files.read_json(sweep.folder / RECORD) or {}).get("run", 0))


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
    axes = ", ".join(f"{axis}={_values(axis, sweep)}" for axis in sweep.axes)
    lines = [f"sweep {sweep.name}: {len(sweep.points)} points" + (f", {axes}" if axes else "")]
    lines += aligned(rows)
    if devices:
        lines.append(
            f"{total / 3600:.1f} device-hours in all, estimated from runs on {'; '.join(devices)}"
        )
    return "\n".join(lines)


def _values(axis: str, sweep: Sweep) -> str:
    """The values on an axis, of which a long list is shortened."""
    values = list(dict.fromkeys(str(point.axes[axis]) for point in sweep.points))
    return ",".join(values if len(values) <= 12 else [*values[:5], "...", values[-1]])


def status(name: str, overrides: Sequence[str]) -> int:
    """Prints the states of the artifacts of a sweep."""
    sweep = _known(name, overrides)
    seen = look(sweep)
    print(table(sweep, seen))
    is_over = all(at.kind not in ("running", "queued") for at in seen.values())
    if is_over and (rows := efficiency(sweep)):
        print("\n".join(aligned(rows)))
    return 0


def cancel(name: str, overrides: Sequence[str]) -> int:
    """Cancels the queued and running jobs of a sweep; their finished work is kept."""
    cluster.require_answer()
    folder, queue = folder_of(name, ["runtime=slurm", *overrides]), cluster.queue()
    known = records.jobs(folder.parent)
    mine = [job.id for job in known if job.sweep == name and job.id in queue]
    cluster.cancel(mine)
    print(f"canceled {len(mine)} jobs of sweep {name}")
    return 0


def report(name: str, overrides: Sequence[str]) -> int:
    """Writes the report of the finished artifacts of a sweep, and prints its table."""
    sweep = _known(name, overrides)
    page = write_report(sweep, look(sweep))
    print(f"{load_table(page.parent)}\nreport: {page}")
    return 0


def _known(name: str, overrides: Sequence[str]) -> Sweep:
    """The sweep with the overrides of its last run and further ones."""
    record = folder_of(name, overrides) / RECORD
    remedy = "remedy: delete it and repeat all overrides"
    before = files.load_json(record, remedy)["overrides"] if record.exists() else []
    return sweep_of(name, [*before, *overrides])


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
                help="auto: slurm where a cluster answers; local where Slurm is not installed",
            )
            sub.add_argument("--dry", action="store_true", help="only print the plan")
            sub.add_argument("--refill", type=int, help=argparse.SUPPRESS)
    sub = commands.add_parser("job", help="make the artifacts of a Slurm job, which runs this")
    sub.set_defaults(command=job)
    sub.add_argument("record", type=Path, help="the record of the job")
    return parser
