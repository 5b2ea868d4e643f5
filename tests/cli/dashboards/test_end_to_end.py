"""The pipeline in small, tracked offline, uploaded and shown, by the real client on loopback."""

import base64
import hashlib
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlparse

import pytest
import wandb
from tests.composing import composed
from tests.tracking.conftest import NAMES, python
from tests.tracking.wandb_server import wandb_server

from sidepipe.engine import pipeline
from sidepipe.engine.artifacts import read_manifest
from sidepipe.engine.plan import plan
from sidepipe.stages.evaluate.stage import load as load_results
from sidepipe.tracking import MetricsCSV
from sidepipe.tracking.runs import GLOBAL_STEP

pytestmark = pytest.mark.slow

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about the library
    pytest.importorskip("wandb_workspaces.workspaces")
    from sidepipe.cli.dashboards import overview

COMMANDS = """
import json, sys
from pathlib import Path
from sidepipe.cli.dashboards.overview import put
from sidepipe.tracking.sync import sync
outcomes = sync(Path(sys.argv[1]))
addresses = [put("lab", "sidepipe", "sizes") for _ in range(2)]
print(json.dumps([[vars(o) | {"fragments": len(o.fragments)} for o in outcomes], addresses]))
"""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The nodes of the smoke experiment by stage, the server that got them, what was said."""
    home = tmp_path_factory.mktemp("smoke")
    overrides = ["experiment=smoke", "tracking=offline", "tracking.group=sizes"]
    the_plan = plan(composed(*overrides, f"runtime.outputs={home / 'outputs'}"))
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setenv(f"WANDB_{name}", "")
            patch.delenv(f"WANDB_{name}")
        pipeline.run(the_plan, "evaluate")
        wandb.teardown()
    with wandb_server() as server:
        outcomes, addresses = python(server, home, COMMANDS, home / "outputs" / "wandb")
    nodes = {n.key: n for n in the_plan.nodes.values() if n.stage.name != "report"}
    by_stage = {the_plan.title(node): node for node in nodes.values()}
    return SimpleNamespace(
        plan=the_plan,
        nodes=nodes,
        side=by_stage["evaluate [side]"],
        dpm=by_stage["dpm"],
        server=server,
        outcomes=outcomes,
        addresses=addresses,
    )


def folder(smoke, node):
    return node.folder(smoke.plan.runtime)


def logged(run):
    """Every key that the server knows of a run."""
    return {name for row in [*run["history"], run["summary"]] for name in row}


def shown(value, names=("metrics", "xAxis", "yAxis")):
    """Every metric that a workspace names, as its panels spell them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in names and inner:
                yield from inner if isinstance(inner, list) else [inner]
            else:
                yield from shown(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from shown(inner)


def test_every_run_is_uploaded_once_under_its_key(smoke):
    assert smoke.server.unknown == []
    assert set(smoke.server.runs) == set(smoke.nodes)
    assert {o["state"] for o in smoke.outcomes} == {"uploaded"}
    assert all(o["arrived"] is not None and not o["failed"] for o in smoke.outcomes)
    for key, run in smoke.server.runs.items():
        assert run["groupName"] == "sizes"
        assert run["jobType"] == smoke.nodes[key].stage.name
        assert run["exitcode"] == 0


def test_a_runs_config_has_the_settings_of_all_it_was_made_from(smoke):
    config = {k: v["value"] for k, v in smoke.server.runs[smoke.side.key]["config"].items()}
    assert config["attack"] == "side"
    assert config["dpm"]["num_train_images"] == 64
    assert config["extract"]["guidance"]["guidance_scale"] == 1
    assert config["evaluate"] == json.loads(json.dumps(smoke.side.settings))
    assert config["inputs"] == {n: f"{n}-{i.key}" for n, i in smoke.side.inputs.items()}
    assert "attack" not in smoke.server.runs[smoke.dpm.key]["config"]


def test_a_trainings_history_is_its_csv_over_the_global_step(smoke):
    sent = {
        (row[GLOBAL_STEP], name.removeprefix("dpm/")): value
        for row in smoke.server.runs[smoke.dpm.key]["history"]
        for name, value in row.items()
        if name.startswith("dpm/")
    }
    kept = MetricsCSV(folder(smoke, smoke.dpm) / "metrics.csv").rows()
    assert len(kept) == 3
    assert sent == {(step, name): pytest.approx(value, rel=1e-4) for step, name, value in kept}


def test_an_evaluation_sends_its_result_and_curves(smoke):
    results = load_results(folder(smoke, smoke.side))
    run = smoke.server.runs[smoke.side.key]
    curve = [row for row in run["history"] if "evaluate/rarefaction/unique" in row]
    assert [row["evaluate/rarefaction/num_images"] for row in curve] == (
        results["rarefaction"]["num_images"]
    )
    at = results["calibrated"][0]
    summary = {k.removeprefix("evaluate/"): v for k, v in run["summary"].items()}
    assert summary["num_train_images"] == 64
    assert summary["hits"] == at["train"]["count"]
    assert summary["excess_low"] == pytest.approx(at["excess"]["interval"][0])
    assert summary["ums_mid"] == pytest.approx(results["bands"]["mid"]["train"]["ums"])
    assert summary["network_evaluations"] == results["cost"]["network_evaluations"]
    assert not [name for name in summary if name.startswith(("rarefaction", "curve"))]


def test_checkpoints_are_references_with_checksums(smoke):
    contents = smoke.server.artifacts[f"dpm-{smoke.dpm.key}"]["manifest"]["contents"]
    assert {"lineage.json", "settings.json", "model/model_index.json"} < set(contents)
    weights = [name for name in contents if name.endswith(".safetensors")]
    assert len(weights) == 1
    for entry in contents.values():
        path = Path(urlparse(entry["ref"]).path)
        md5 = base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()
        assert (entry["digest"], entry["size"]) == (md5, path.stat().st_size)


def test_lineage_on_disk_and_on_the_server_is_the_graph(smoke):
    edges = {
        (node.key, f"{n.stage.name}-{n.key}")
        for node in smoke.nodes.values()
        for n in node.inputs.values()
    }
    assert sorted(smoke.server.uses) == sorted(edges)
    for node in smoke.nodes.values():
        lineage = json.loads((folder(smoke, node) / "lineage.json").read_text())
        assert set(lineage) == set(node.upstream())
        assert lineage[node.key]["inputs"] == {name: n.key for name, n in node.inputs.items()}
        assert "lineage.json" in (read_manifest(folder(smoke, node)) or {})["files"]


def test_no_image_and_no_weights_leave_the_machine(smoke):
    kinds = {Path(path).suffix for path in smoke.server.uploads if "/manifests/" not in path}
    assert kinds <= {".json", ".yaml", ".txt"}
    assert not [k for run in smoke.server.runs.values() for k in logged(run) if "picture" in k]
    assert sum(map(len, smoke.server.uploads.values())) < 200_000


def test_every_metric_that_the_dashboard_names_is_one_that_runs_log(smoke):
    known = set().union(*map(logged, smoke.server.runs.values()))
    [view] = smoke.server.views.values()
    names = set(shown(json.loads(view["spec"])["section"]["panelBankConfig"]))
    plain = {name.removeprefix("summary:") for name in names} - {"_step"}
    assert len(plain) > 25
    assert plain <= known, "DPM losses, curves, bands: all of them"


def test_the_view_is_made_once_and_then_updated_under_its_name(smoke):
    [view] = smoke.server.views.values()
    assert view["displayName"] == "sidepipe sizes"
    assert len(set(smoke.addresses)) == 1
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [s.name for s in overview.sections()]
