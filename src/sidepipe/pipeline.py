"""Running the graph of stages: what is missing is made, in order, under lock, log and manifest."""

import json
import logging
import time
from functools import partial
from pathlib import Path

from sidepipe import artifacts
from sidepipe.dashboards.measures import LINEAGE, measured, run_config
from sidepipe.graph import STAGES, Node, Plan, needed
from sidepipe.progress import stage_log
from sidepipe.report.stage import load_table, page_path
from sidepipe.settings import require_known

log = logging.getLogger(__name__)

# Beside an artifact's results: what was logged, and why the last try failed.
LOG, ERROR = "log.txt", "error.json"


def run(the_plan: Plan, stage: str) -> list[Node]:
    """Runs whatever is missing for `stage` (or `all`), and returns the nodes asked for."""
    require_known("stage", stage, ["all", "status", *STAGES])
    order = needed(the_plan, stage)
    the_plan.runtime.limit_threads()
    made = [node for node in order.values() if make(node, the_plan)]
    if not made:
        log.info("nothing to do: all %d artifacts are there", len(order))
    return the_plan.goals(stage)


def make(node: Node, the_plan: Plan) -> bool:
    """Makes the node's artifact unless it is there; whether it was made now, by us.

    Raises FileNotFoundError where an artifact that it reads is not finished.
    """
    folder, title = node.folder(the_plan.runtime), the_plan.title(node)
    manifest = artifacts.read_manifest(folder)
    if manifest is not None:
        if why := node.stage.source_changed(manifest["summary"], the_plan.runtime):
            log.warning("%s %s: %s", title, node.key, why)
        return False

    def say_wait(owner: artifacts.Owner) -> None:
        log.info("%s %s: waiting for %s pid %d", title, node.key, owner.host, owner.pid)

    for name, read in node.inputs.items():
        if artifacts.read_manifest(read.folder(the_plan.runtime)) is None:
            raise FileNotFoundError(f"{title} {node.key} reads {name} {read.key}: not finished")
    with artifacts.locked(folder, say_wait):
        if artifacts.read_manifest(folder) is not None:
            return False  # made by the process we waited for
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).unlink(missing_ok=True)
        try:
            _compute(node, folder, title, the_plan)
        except Exception as error:  # being asked to stop is none
            artifacts.write_json(folder / ERROR, {"error": str(error) or repr(error)})
            raise
    return True


def _compute(node: Node, folder: Path, title: str, the_plan: Plan) -> None:
    inputs = {name: n.folder(the_plan.runtime) for name, n in node.inputs.items()}
    content = {
        "stage": node.stage.name,
        "version": node.stage.version,
        "key": node.key,
        "settings": node.settings,
        "inputs": {name: n.key for name, n in node.inputs.items()},
    }
    artifacts.write_json(folder / "settings.json", content)
    lineage = node.lineage()
    artifacts.write_json(folder / LINEAGE, lineage)
    settings = [(n.stage.name, n.settings) for n in node.upstream().values()]
    config = run_config(content, the_plan.attacks.get(node.key, []), lineage, settings)
    started = time.monotonic()
    tracked_run = the_plan.tracking.run(node.stage.name, node.key, config)
    with stage_log(folder / LOG), tracked_run as tracked:
        log.info("%s: %s", title, folder)
        summary = node.stage.run(folder, inputs, the_plan.runtime)
        tracked.send(partial(measured, node.stage.name, folder, summary))
        seconds = round(time.monotonic() - started, 2)
        log.info("%s: done in %.1f s", title, seconds)
    (folder / artifacts.PROGRESS).unlink(missing_ok=True)
    device = the_plan.runtime.device_name()
    manifest = {**content, "summary": summary, "seconds": seconds, "device": device}
    artifacts.write_manifest(folder, manifest)


def show(node: Node, the_plan: Plan) -> str:
    """What a person wants to see of a finished node: its result and where it lies."""
    folder = node.folder(the_plan.runtime)
    if node.stage.name == "report":
        return f"{load_table(folder)}\nreport: {page_path(folder)}"
    manifest = artifacts.read_manifest(folder) or {}
    summary = json.dumps(manifest.get("summary"), indent=2)
    return f"{the_plan.title(node)} {node.key}: {folder}\n{summary}"
