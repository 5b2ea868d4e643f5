"""Running the graph of stages: makes missing artifacts in order, with lock, log and manifest."""

import logging
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sidepipe import stages
from sidepipe.base import files
from sidepipe.base.settings import require_known
from sidepipe.engine import artifacts, integrity, locks
from sidepipe.engine.attempts import save_seconds, working_seconds
from sidepipe.engine.graph import Node, Plan
from sidepipe.engine.logs import stage_log
from sidepipe.engine.measures import LINEAGE, SETTINGS, measured, run_config
from sidepipe.engine.places import records
from sidepipe.engine.plan import check_parts
from sidepipe.engine.shards import check_disk
from sidepipe.engine.stage import Job, NoMaterial

log = logging.getLogger(__name__)

# Files of an artifact: its log, and the error of the last attempt.
LOG, ERROR = "log.txt", "error.json"


def run(the_plan: Plan, stage: str) -> list[Node]:
    """Makes the missing artifacts of `stage` (or `all`), and returns the nodes of the stage."""
    require_known("stage", stage, ["all", "status", *stages.STAGES])
    order = the_plan.needed(stage)
    missing = [n for n in order.values() if not integrity.is_done(n.folder(the_plan.runtime))]
    check_parts(missing, the_plan.runtime)
    _require_room(missing, the_plan)
    if missing:
        the_plan.runtime.limit_threads()
    made = [node for node in order.values() if make(node, the_plan, order)]
    if not made:
        log.info("nothing to do: all %d artifacts are finished", len(order))
    goals = the_plan.goals(stage)
    for goal in goals:  # its table is printed, and its page is opened
        integrity.require_unchanged(goal.folder(the_plan.runtime))
    return goals


def make(node: Node, the_plan: Plan, order: Container[str] | None = None) -> bool:
    """Makes the node's artifact unless it is finished; returns whether this call made it.

    order: the keys of all nodes that this command makes, None for those of the whole plan. An
    artifact with missing files is made again. Raises FileNotFoundError for an unfinished input,
    and ValueError for one that has changed.
    """
    folder, title = node.folder(the_plan.runtime), the_plan.title(node)
    if integrity.is_whole(folder):
        summary = _checked_summary(node, folder)
        _check_data(node, the_plan, order)
        is_empty = "empty" in summary
        if not is_empty and (why := node.stage.source_changed(summary, the_plan.runtime)):
            raise ValueError(f"{title} {node.key}: {why}: {folder}")
        return False

    def log_wait(owner: locks.Owner) -> None:
        log.info("%s %s: waiting for %s pid %d", title, node.key, owner.host, owner.pid)

    _check_before(node, the_plan, order)
    with locks.locked(folder, log_wait):
        if integrity.is_whole(folder):  # another process made it during the wait
            _checked_summary(node, folder)
            return False
        folder.mkdir(parents=True, exist_ok=True)
        _compute_or_record_error(node, folder, title, the_plan)
    return True


def _check_before(node: Node, the_plan: Plan, order: Container[str] | None) -> None:
    """Checks inputs, disk, data, folder and accelerator before the stage runs."""
    folder, title = node.folder(the_plan.runtime), the_plan.title(node)
    for name, read in node.inputs.items():
        if not integrity.is_whole(read.folder(the_plan.runtime)):
            raise FileNotFoundError(f"{title} {node.key} reads {name} {read.key}: not finished")
    _check_upstream(node, the_plan)
    _require_room([node], the_plan)
    _check_data(node, the_plan, order)
    there = files.existing(folder)
    if not os.access(there, os.W_OK):
        remedy = "set runtime.outputs to a folder of yours"
        raise PermissionError(f"{there} is not writable, {title} cannot be made; remedy: {remedy}")
    the_plan.runtime.require_accelerator()


def _compute_or_record_error(node: Node, folder: Path, title: str, the_plan: Plan) -> None:
    """Makes the artifact in its locked folder; writes an error there for `stage=status`."""
    (folder / ERROR).unlink(missing_ok=True)
    try:
        earlier = _reopen(folder, f"{title} {node.key}")
        _compute(node, folder, title, the_plan)
        _warn_of_changes(folder, earlier, f"{title} {node.key}")
    except Exception as error:  # not Preempted, a SystemExit
        if files.is_disk_full(error):
            error = files.cannot_write(folder, error)
        with suppress(OSError):  # the disk may be full
            files.write_json(folder / ERROR, {"error": str(error) or repr(error)})
        raise error


def _checked_summary(node: Node, folder: Path) -> dict[str, Any]:
    """The summary of the finished artifact in `folder`.

    Raises ValueError where the artifact cannot be used. An empty artifact needs no check, as its
    summary holds only the reason.
    """
    summary = (artifacts.read_manifest(folder) or {"summary": {}})["summary"]
    if "empty" not in summary:
        node.stage.check_artifact(folder, summary)
    return summary


def _check_upstream(node: Node, the_plan: Plan) -> None:
    """Raises ValueError where a finished artifact upstream of the node cannot be used.

    Sweeps and jobs visit only unfinished artifacts, so they check the finished ones here.
    """
    for read in node.upstream().values():
        folder = read.folder(the_plan.runtime)
        if artifacts.read_manifest(folder) is not None:
            _checked_summary(read, folder)


def _require_room(nodes: Iterable[Node], the_plan: Plan) -> None:
    """Raises OSError unless the disk has room for the images of the unfinished nodes."""
    left: dict[str, int] = {}
    for node in nodes:
        folder = node.folder(the_plan.runtime)
        upstream = {n.stage.name: n.stage for n in node.upstream().values()}
        num_bytes = node.stage.num_bytes(upstream)
        if num_bytes > 0 and artifacts.read_manifest(folder) is None:
            there = sum(path.stat().st_size for path in folder.rglob("*.npy"))
            left[f"{the_plan.title(node)} {node.key}"] = max(0, num_bytes - there)
    if left:
        most = max(left, key=lambda name: left[name])
        what = f"images, {files.gigabytes(left[most])} of them of {most}"
        check_disk(the_plan.runtime.outputs_folder, sum(left.values()), what)


def _reopen(folder: Path, name: str) -> dict[str, Any]:
    """Makes a finished artifact with missing files unfinished; returns the files it had."""
    manifest = artifacts.read_manifest(folder)
    if manifest is None:
        return {}
    lost = ", ".join(integrity.missing_files(folder, manifest)[:5])
    integrity.require_unchanged(folder)
    log.warning("%s has lost %s and is made again", name, lost)
    save_seconds(folder, manifest["seconds"])
    (folder / artifacts.MANIFEST).unlink()
    return manifest["files"]


def _warn_of_changes(folder: Path, earlier: Mapping[str, Any], name: str) -> None:
    """Warns where a re-run wrote different arrays, which can happen on another device."""
    made = (artifacts.read_manifest(folder) or {"files": {}})["files"]
    arrays = [n for n in earlier if n.endswith((".npy", ".safetensors"))]
    if changed := [n for n in arrays if made.get(n) != earlier[n]]:
        log.warning(
            "%s: %s differ from the earlier files, and artifacts made from those are kept; remedy: "
            "delete the artifacts that read it to make them again",
            name,
            ", ".join(changed[:5]),
        )


def _check_data(node: Node, the_plan: Plan, order: Container[str] | None) -> None:
    """Raises ValueError where the node's settings do not fit the images of its finished data.

    Where the stage `checks_ahead`, as the stage dpm does, this includes all missing artifacts
    downstream, so that settings that do not fit are an error before hours of training, or a warning
    where they are of a stage that is not in `order`.
    """
    nodes = [node]
    if node.stage.checks_ahead:
        nodes = [n for n in the_plan.nodes.values() if node.key in n.upstream()]
    for other in nodes:
        finished = artifacts.read_manifest(other.folder(the_plan.runtime)) is not None
        if "data" in other.inputs and not finished and other.key not in the_plan.checked:
            data = other.inputs["data"].folder(the_plan.runtime)
            integrity.require_unchanged(data)
            try:
                other.stage.check_data(data, other.stages_read(), the_plan.runtime)
            except (ValueError, OSError) as error:
                if order is None or other.key in order:
                    raise
                log.warning(
                    "%s does not need this, but later stages do: %s", node.stage.name, error
                )
            the_plan.checked.add(other.key)


def _compute(node: Node, folder: Path, title: str, the_plan: Plan) -> None:
    content = {
        "stage": node.stage.name,
        "version": node.stage.version,
        "key": node.key,
        "settings": node.settings,
        "inputs": {name: n.key for name, n in node.inputs.items()},
    }
    files.write_json(folder / SETTINGS, content)
    files.write_json(folder / LINEAGE, node.lineage())
    with _tracked(node, folder, the_plan) as send:
        with stage_log(folder / LOG), working_seconds(folder) as seconds:
            log.info("%s: writing %s", title, folder)
            for read in [n for n in node.upstream().values() if n is not node]:
                integrity.require_unchanged(read.folder(the_plan.runtime))
            summary = _summary(node, folder, title, the_plan)
            if "empty" not in summary:
                integrity.require_complete(folder, summary)
            log.info("%s: done in %.1f s", title, seconds())
            total = round(seconds(), 2)
        for name in (artifacts.PROGRESS, artifacts.SECONDS):
            (folder / name).unlink(missing_ok=True)
        made = {
            "summary": summary,
            "seconds": total,
            "device": the_plan.runtime.device_name(),
            "attacks": the_plan.attacks.get(node.key, []),
            "tracking": {"group": the_plan.tracking.group, "tags": the_plan.tracking.tags},
        }
        artifacts.write_manifest(folder, {**content, **made})
        send()


@contextmanager
def _tracked(node: Node, folder: Path, the_plan: Plan) -> Iterator[Callable[[], None]]:
    """The run of the artifact in W&B; yields the function that sends the finished artifact."""
    tracking = the_plan.tracking
    if tracking.mode == "none":
        yield lambda: None
        return
    sweeps = [r for r in records(folder.parents[1]).values() if r.group == tracking.group]
    place = sweeps[0].place(node.key) if sweeps else None
    config = run_config(folder, the_plan.attacks.get(node.key, []), place)
    with tracking.run(node.stage.name, node.key, config) as tracked:
        yield lambda: tracked.send(partial(measured, type(node.stage), folder, place))


def _summary(node: Node, folder: Path, title: str, the_plan: Plan) -> dict[str, Any]:
    """The summary of the stage's run, or `empty` and the reason where it has no input to work on.

    A stage with an empty input is empty for the same reason; other rows are not affected.
    """
    inputs = {name: n.folder(the_plan.runtime) for name, n in node.inputs.items()}
    empty = [why for path in inputs.values() if (why := artifacts.Artifact(path).why_empty)]
    if empty and not node.stage.takes_empty:
        log.info("%s: skipped, because one of its inputs has no result", title)
        return {"empty": empty[0]}
    try:
        return node.stage.run(Job(folder, inputs, the_plan.runtime))
    except NoMaterial as error:
        log.warning("%s: %s", title, error)
        return {"empty": str(error)}


def show(node: Node, the_plan: Plan) -> str:
    """The result of a finished node as text for a terminal, with its folder."""
    title = f"{the_plan.title(node)} {node.key}"
    return node.stage.describe(node.folder(the_plan.runtime), title)
