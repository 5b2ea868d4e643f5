"""Uploads runs that were tracked offline, and proves that they arrived.

`python -m sidepipe.tracking.sync outputs/wandb`: fragments are made fit, uploaded by `wandb sync`,
counted on the server, and each run is joined to those it was made from. Safe to repeat.
"""

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidepipe.tracking.fragments import Fragment, make_fit, paths_by_run, read_all
from sidepipe.tracking.runs import keep_beside

log = logging.getLogger("sidepipe.tracking.sync")

ARRIVED = ".wandb.arrived"  # next to a fragment whose rows and edges were seen on the server
CONNECT_SECONDS = 20
ARRIVE_SECONDS, POLL_SECONDS = 30.0, 2.0  # a server counts rows a moment after it took them


@dataclass(kw_only=True)
class Outcome:
    """The result for a run: a line of the table. failed: whether a person has to check it."""

    run: str
    stage: str = ""
    fragments: Sequence[Fragment] = ()
    arrived: int | None = None
    joined: int = 0
    inputs: list[str] = field(default_factory=list)
    state: str = "there already"
    failed: bool = False

    @property
    def rows(self) -> int:
        return sum(fragment.rows for fragment in self.fragments)


@dataclass(frozen=True)
class Server:
    """A W&B server: its API and where runs go; project None for the one that a run names."""

    api: Any
    entity: str
    project: str | None

    def path(self, fragment: Fragment, name: str) -> str:
        """The API's path of something in the fragment's project."""
        assert fragment.run is not None
        return f"{self.entity}/{self.project or fragment.run['project']}/{name}"


def sync(folder: Path, project: str | None = None, entity: str | None = None) -> list[Outcome]:
    """Uploads every run of a `tracking.folder` that the server does not have yet.

    Raises FileNotFoundError for a folder without runs, ConnectionError where no server answers.
    """
    folder = folder.resolve()
    runs = paths_by_run(folder)
    if not runs:
        raise FileNotFoundError(f"{folder} holds no runs; remedy: name their tracking.folder")
    keep_beside(folder)
    os.environ.pop("WANDB_MODE", None)  # shells of clusters often set offline
    server = _connect(project, entity)
    outcomes = [Outcome(run=run) for run in runs]
    left = [o for o in outcomes if not all(map(_has_arrived, runs[o.run]))]
    for outcome in left:
        _prepare(outcome, read_all(runs[outcome.run]), folder)
    said = _upload([f for o in left for f in o.fragments], folder, server)
    for outcome in left:
        if outcome.fragments:
            _check(outcome, said, server)
    return outcomes


def _has_arrived(path: Path) -> bool:
    return path.with_suffix(ARRIVED).exists()


def _connect(project: str | None, entity: str | None) -> Server:
    import wandb

    try:
        api = wandb.Api(timeout=CONNECT_SECONDS)
        return Server(api, entity or str(api.default_entity), project)
    except Exception as error:  # of many kinds, and all mean the same
        raise ConnectionError(
            f"no W&B server lets us in: {error}; remedy: `wandb login`, or WANDB_API_KEY and, for "
            "a server of your own, WANDB_BASE_URL, on a machine that reaches it"
        ) from error


def _prepare(outcome: Outcome, fragments: Sequence[Fragment], folder: Path) -> None:
    """Notes the fragments that can go now: none from one on that a process is still writing."""
    resting = [not fragment.is_running for fragment in fragments]
    ready = fragments[: resting.index(False)] if False in resting else fragments
    outcome.fragments = [fragment for fragment in ready if make_fit(fragment, folder)]
    outcome.state = "running: later" if len(ready) < len(fragments) else "broken: set aside"
    for fragment in outcome.fragments:
        assert fragment.run is not None
        outcome.stage = str(fragment.run["job_type"])
        outcome.inputs = list(fragment.run["config"]["update"].get("inputs", {}).values())


def _upload(fragments: Sequence[Fragment], folder: Path, server: Server) -> str:
    """Runs `wandb sync` on fragments not yet uploaded; returns its output, not its exit code."""
    paths = [str(fragment.path.parent) for fragment in fragments if not fragment.is_uploaded]
    if not paths:
        return ""
    log.info("uploading %d fragments", len(paths))
    command = [sys.executable, "-m", "wandb", "sync", "--entity", server.entity]
    command += ["--project", server.project] if server.project else []
    done = subprocess.run(
        [*command, *paths],
        cwd=folder,
        stdin=subprocess.DEVNULL,  # or it may prompt for a key
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


def _check(outcome: Outcome, said: str, server: Server) -> None:
    """Compares the run with that on the server, and links it to its inputs."""
    outcome.failed = True
    if missing := [f for f in outcome.fragments if not f.is_uploaded]:
        errors = [line for line in said.splitlines() if missing[0].path.parent.name in line]
        outcome.state = f"not uploaded: {(errors or said.splitlines() or [''])[-1]}"
        return
    first = outcome.fragments[0]
    try:
        run = server.api.run(server.path(first, outcome.run))
        outcome.arrived = _arrived(run, outcome.rows)
        names = [server.path(first, f"{name}:latest") for name in outcome.inputs]
        outcome.joined = sum(_join(run, name, server.api) for name in names)
    except Exception as error:  # the API raises many kinds
        outcome.state = f"not found on the server: {error}"
        return
    if outcome.arrived != outcome.rows:
        outcome.state = "rows on the server differ"
        return
    outcome.failed, outcome.state = False, "uploaded"
    if outcome.joined == len(outcome.inputs):
        for fragment in outcome.fragments:
            fragment.path.with_suffix(ARRIVED).touch()


def _arrived(run: Any, expected: int) -> int:
    """Rows of history that the server has of a run, after waiting a little for `expected`."""
    until = time.monotonic() + ARRIVE_SECONDS
    while True:
        # Not the number of lines: an upload that was cut off and repeated sends some of them twice,
        # with the same steps.
        rows = run.lastHistoryStep + 1
        if rows >= expected or time.monotonic() > until:
            return rows
        time.sleep(POLL_SECONDS)


def _join(run: Any, name: str, api: Any) -> bool:
    """Lineage: makes the run use an input's artifact; False where the server has none yet."""
    used = {artifact.name.partition(":")[0] for artifact in run.used_artifacts()}
    if name.rpartition("/")[2].partition(":")[0] in used:
        return True
    if not api.artifact_exists(name):
        return False
    run.use_artifact(api.artifact(name))
    return True


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes for a terminal, a run a line."""
    heads = ("run", "stage", "fragments", "rows", "arrived", "inputs", "state")
    rows: list[tuple[str, ...]] = [heads]
    for o in outcomes:
        arrived = "-" if o.arrived is None else str(o.arrived)
        numbers = (str(len(o.fragments)), str(o.rows), arrived, f"{o.joined}/{len(o.inputs)}")
        known = numbers if o.fragments else ("-",) * 4
        rows.append((o.run, o.stage, *known, f"FAILED: {o.state}" if o.failed else o.state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """`python -m sidepipe.tracking.sync FOLDER [--project P] [--entity E]`."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the tracking.folder, as outputs/wandb")
    parser.add_argument("--project", help="instead of each run's own")
    parser.add_argument("--entity", help="a team or user; the account's own without it")
    try:
        outcomes = sync(**vars(parser.parse_args()))
    except OSError as error:
        sys.exit(str(error))
    print(table(outcomes))
    failed = sum(outcome.failed for outcome in outcomes)
    if failed:
        sys.exit(f"{failed} of {len(outcomes)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
