"""Sends the finished artifacts below a folder to W&B, as runs with the numbers on disk.

`python -m sidepipe.cli.sync outputs`: how an artifact was tracked while it was made does not
matter. A run that the server has is skipped, and one that was cut off is resumed.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidepipe import stages
from sidepipe.engine import integrity
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.graph import stage_class
from sidepipe.engine.logs import quiet_libraries
from sidepipe.engine.measures import measured, run_config
from sidepipe.engine.places import Record, records
from sidepipe.tracking.content import GLOBAL_STEP, history
from sidepipe.tracking.runs import (
    Tracking,
    define_training,
    keep_beside,
    note_sent,
    send,
    sent_mark,
)

log = logging.getLogger("sidepipe.cli.sync")

# Files that runs are made of, as patterns; arrays and weights are neither hashed nor sent.
SENT = ("*.json", "*.csv")
CONNECT_SECONDS = 20
ARRIVE_SECONDS, POLL_SECONDS = 30.0, 2.0  # a server counts rows a moment after it took them


@dataclass(kw_only=True)
class Outcome:
    """The result for a run: a line of the table. failed: whether a person has to check it."""

    run: str
    stage: str
    rows: int = 0
    inputs: list[str] = field(default_factory=list)
    joined: int = 0
    state: str = "there already"
    failed: bool = False


@dataclass(frozen=True)
class Server:
    """A W&B server: its API, and the project to which runs go."""

    api: Any
    entity: str
    project: str

    def path(self, name: str) -> str:
        """The API's path of a run or an artifact of the project."""
        return f"{self.entity}/{self.project}/{name}"


def sync(
    outputs: Path,
    *,
    project: str = "sidepipe",
    entity: str | None = None,
    sweep: str | None = None,
    images: bool = False,
) -> list[Outcome]:
    """Sends every finished artifact that the server does not have yet.

    sweep: send only the runs of this sweep. Raises FileNotFoundError for a folder without finished
    artifacts or such a sweep, ConnectionError where no server answers.
    """
    outputs = outputs.expanduser().resolve()
    made = _finished(outputs)
    sweeps = records(outputs)
    if sweep is not None and sweep not in sweeps:
        raise FileNotFoundError(
            f"{outputs}/sweeps/{sweep} has no record of its points; remedy: run make sweep "
            f"SWEEP={sweep} once more, which writes it"
        )
    if not made:
        raise FileNotFoundError(
            f"{outputs} holds no finished artifacts; remedy: name runtime.outputs"
        )
    os.environ.pop("WANDB_MODE", None)  # shells of clusters often set offline
    folder = outputs / "wandb"
    keep_beside(folder)
    server = _connect(project, entity)
    chosen = sweeps if sweep is None else {sweep: sweeps[sweep]}
    outcomes = []
    for artifact, record in _runs(made, chosen, alone=sweep is None):
        tracking = _tracking(artifact, record, folder, project, images)
        outcomes.append(_tried(artifact, record, tracking, server))
    return outcomes


def _finished(outputs: Path) -> list[Artifact]:
    """The finished artifacts, inputs before their readers; folders of other kinds are skipped."""
    return [
        Artifact(path.parent)
        for stage in stages.STAGES
        for path in sorted(outputs.glob(f"{stage}/*/manifest.json"))
    ]


def _runs(
    made: Sequence[Artifact], sweeps: Mapping[str, Record], alone: bool
) -> Iterator[tuple[Artifact, Record | None]]:
    """Every artifact once per sweep that needs it; alone: also those that no sweep needs."""
    for artifact in made:
        of = [record for record in sweeps.values() if record.place(artifact.key)]
        yield from ((artifact, record) for record in of)
        if alone and not of:
            yield artifact, None


def _tracking(
    artifact: Artifact, record: Record | None, folder: Path, project: str, images: bool
) -> Tracking:
    """The group and the tags of the sweep, or those under which the artifact was made."""
    if record is not None:
        named = {"group": record.group, "tags": record.tags}
    else:
        try:
            named = artifact.manifest.get("tracking", {})
        except ValueError:
            named = {}  # a damaged manifest, the reason of which its outcome has
    return Tracking(mode="online", project=project, folder=str(folder), images=images, **named)


def _connect(project: str, entity: str | None) -> Server:
    import wandb

    try:
        api = wandb.Api(timeout=CONNECT_SECONDS)
        return Server(api, entity or str(api.default_entity), project)
    except Exception as error:  # of many kinds, and all mean the same
        raise ConnectionError(
            f"no W&B server lets us in: {error}; remedy: `wandb login`, or WANDB_API_KEY and, for "
            "a server of your own, WANDB_BASE_URL, on a machine that reaches it"
        ) from error


def _tried(
    artifact: Artifact, record: Record | None, tracking: Tracking, server: Server
) -> Outcome:
    """The outcome for one run; an error is its state, and the others are still sent."""
    run = tracking.run_id(artifact.key)
    outcome = Outcome(run=run, stage=artifact.stage)
    mark = sent_mark(tracking.resolved, server.entity, server.project, run)
    if mark.exists():
        return outcome
    try:
        _send(artifact, record, tracking, server, outcome)
        outcome.state = "sent"
        note_sent(mark)
    except Exception as error:  # wandb raises many kinds
        outcome.failed, outcome.state = True, f"{error}" or repr(error)
    return outcome


def _send(
    artifact: Artifact,
    record: Record | None,
    tracking: Tracking,
    server: Server,
    outcome: Outcome,
) -> None:
    """Sends the run, waits until the server has all of its rows, and links it to its inputs."""
    folder, stage = artifact.folder, stage_class(artifact.stage)
    integrity.require_unchanged(folder, SENT)
    place = None if record is None else record.place(artifact.key)
    config = run_config(folder, artifact.manifest.get("attacks", []), place)
    content = measured(stage, folder, place, tracking.images)
    rows = history(artifact.stage, folder / "metrics.csv")
    outcome.inputs = list(config["inputs"].values())
    with tracking.start(
        "online", artifact.stage, artifact.key, config, entity=server.entity, x_disable_stats=True
    ) as run:
        define_training(run, artifact.stage)
        last = run.summary.get(GLOBAL_STEP, -1) if run.resumed else -1
        for row in rows:
            if row[GLOBAL_STEP] > last:
                run.log(row)
        send(run, stage=artifact.stage, key=artifact.key, content=content)
        outcome.rows = run.step
    there = server.api.run(server.path(run.id))
    if (arrived := _arrived(there, outcome.rows)) < outcome.rows:
        raise ConnectionError(
            f"the server has {arrived} of {outcome.rows} rows; repeat the command"
        )
    names = [server.path(f"{name}:latest") for name in outcome.inputs]
    outcome.joined = sum(_join(there, name, server.api) for name in names)


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
    rows: list[tuple[str, ...]] = [("run", "stage", "rows", "inputs", "state")]
    for o in outcomes:
        numbers = (str(o.rows), f"{o.joined}/{len(o.inputs)}") if o.inputs or o.rows else ("-", "-")
        rows.append((o.run, o.stage, *numbers, f"FAILED: {o.state}" if o.failed else o.state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Entry point of `python -m sidepipe.cli.sync`."""
    quiet_libraries()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser("python -m sidepipe.cli.sync", description=__doc__)
    parser.add_argument("outputs", type=Path, help="the runtime.outputs of the artifacts")
    parser.add_argument("--sweep", help="send only the runs of this sweep")
    parser.add_argument("--project", default="sidepipe", help="default: sidepipe")
    parser.add_argument("--entity", help="a team or user; default: that of the account")
    parser.add_argument("--images", action="store_true", help="send pictures too, as of faces")
    try:
        outcomes = sync(**vars(parser.parse_args()))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(table(outcomes))
    if failed := sum(outcome.failed for outcome in outcomes):
        sys.exit(f"{failed} of {len(outcomes)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
