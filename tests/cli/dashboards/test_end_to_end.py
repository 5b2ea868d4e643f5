"""A sweep in small, sent to a server on loopback by the real client, and shown as in its report."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.tracking.conftest import python
from tests.tracking.wandb_server import wandb_server

from sidepipe.base import files
from sidepipe.cli.sweep.grid import sweep_of
from sidepipe.cli.sweep.results import _reported
from sidepipe.cli.sweep.states import look
from sidepipe.engine.artifacts import read_manifest, write_manifest
from sidepipe.engine.places import read_record
from sidepipe.stages.evaluate.stage import load as load_results
from sidepipe.stages.report.sweep.points import read as read_sweep
from sidepipe.tracking import MetricsCSV
from sidepipe.tracking.content import GLOBAL_STEP

pytestmark = pytest.mark.slow

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about the library
    pytest.importorskip("wandb_workspaces.workspaces")
    from sidepipe.cli.dashboards import overview

SCALE, SIZE = "extract.guidance.guidance_scale", "dpm.num_train_images"
GRID = ("experiment=smoke", "attacks=compare", "seed=0", f"{SCALE}=1,4", f"{SIZE}=64,32")
GRID += ("extract.seed=0,1", "stage=evaluate")
COMMANDS = """
import json, sys
from pathlib import Path
from sidepipe.cli.dashboards.overview import put
from sidepipe.cli.sync import sync
from sidepipe.engine.artifacts import read_manifest, write_manifest
from sidepipe.engine.places import read_record
outputs = Path(sys.argv[1])
outcomes = sync(outputs, sweep="attack_demo")
record = read_record(outputs / "sweeps" / "attack_demo")
addresses = [put("lab", "sidepipe", record) for _ in range(2)]
print(json.dumps([[vars(o) for o in outcomes], addresses]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sweep that ran without tracking, the server that got it, and the results of sending it."""
    home = tmp_path_factory.mktemp("sweep")
    given = (*GRID, f"runtime.outputs={home / 'outputs'}")
    command = [sys.executable, "-m", "sidepipe.cli.sweep", "run", "attack_demo"]
    subprocess.run([*command, "--launcher", "local", *given], check=True, capture_output=True)
    sweep = sweep_of("attack_demo", given)
    plant_hits([task.folder for task in sweep.tasks.values() if task.node.stage.name == "evaluate"])
    with wandb_server() as server:
        outcomes, addresses = python(server, home, COMMANDS, home / "outputs")
    tasks = sweep.tasks.values()
    wanted = {SCALE: 4, SIZE: 64, "extract.seed": 0}
    (side,) = [
        task.node
        for task in tasks
        if task.title == "evaluate [side]" and wanted.items() <= task.points[0].axes.items()
    ]
    return SimpleNamespace(
        home=home,
        sweep=sweep,
        nodes={task.node.key: task.node for task in tasks},
        side=side,
        dpm=next(node for node in side.upstream().values() if node.stage.name == "dpm"),
        server=server,
        outcomes=outcomes,
        addresses=addresses,
        record=read_record(sweep.folder),
    )


def plant_hits(folders):
    """Gives every evaluation another number of hits, as such small models have none."""
    for number, folder in enumerate(folders):
        results, manifest = load_results(folder), read_manifest(folder)
        at = results["calibrated"][0]["train"]
        at |= {"count": 3 * number + 2, "unique": number + 1, "ams": (3 * number + 2) / 100}
        files.write_json(folder / "results.json", results)
        write_manifest(folder, manifest)


def run_of(made, node):
    return made.server.runs[f"attack_demo-{node.key}"]


def folder(made, node):
    return node.folder(made.sweep.points[0].plan.runtime)


def logged(run):
    """Every key that the server has of a run."""
    return {name for row in [*run["history"], run["summary"]] for name in row}


def section(made):
    [view] = made.server.views.values()
    return json.loads(view["spec"])["section"]


def panels(made):
    sections = section(made)["panelBankConfig"]["sections"]
    return {p["config"].get("chartTitle"): p["config"] for s in sections for p in s["panels"]}


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


def drawn(panel, runs):
    """The lines of a panel as W&B draws them: means by x, of the runs with equal values."""
    [metric], key = panel["metrics"], panel["groupBy"].removesuffix(".value")
    lines = {}
    for run in runs:
        for row in run["history"]:
            if panel["xAxis"] in row and metric in row:
                line = lines.setdefault(run["config"][key]["value"], {})
                line.setdefault(row[panel["xAxis"]], []).append(row[metric])
    assert panel["groupAgg"] == "mean"
    return {name: {x: np.mean(y) for x, y in line.items()} for name, line in lines.items()}


def reported(made, axis, value):
    """The same lines from the data of the figures in the report of the sweep."""
    seen = look(made.sweep)
    sweep = read_sweep([_reported(point, seen) for point in made.sweep.points])
    sweep.__dict__["x"] = axis
    lines = {}
    for spot in sweep.spots:
        # Plain sampling has no guidance scale, so over the size it is one line.
        shared = spot.attack == "unconditional" and axis == SIZE
        name = spot.attack if shared else f"{spot.attack}, {spot.panel}"
        assert len(spot.finished) == 2, "seeds"
        lines.setdefault(name, {})[spot.x] = np.mean([value(attack) for attack in spot.finished])
    return lines


@pytest.mark.parametrize("axis", [SCALE, SIZE])
@pytest.mark.parametrize(
    ("title", "value"),
    [
        ("different training images hit", lambda attack: attack.unique),
        ("share of images that hit", lambda attack: attack.headline["train"]["ams"]),
    ],
    ids=["unique", "share"],
)
def test_a_panel_draws_what_the_figure_of_the_report_draws(made, axis, title, value):
    panel = panels(made)[f"{title}, over {axis}"]
    lines = drawn(panel, made.server.runs.values())
    expected = reported(made, axis, value)
    assert set(lines) == set(expected)
    for name, line in expected.items():
        assert lines[name] == {x: pytest.approx(y) for x, y in line.items()}
    assert len({y for line in lines.values() for y in line.values()}) > 2, "values that differ"


def test_the_list_of_runs_has_this_sweep_without_other_artifacts(made):
    filters = section(made)["runSets"][0]["filters"]
    text = json.dumps(filters)
    assert '"attack_demo"' in text
    assert all(f'"{stage}"' in text for stage in ("evaluate", "dpm", "classifier"))
    kept = [run for run in made.server.runs.values() if run["jobType"] in overview.SHOWN]
    assert len([run for run in kept if run["jobType"] == "evaluate"]) == 12
    assert len(kept) < len(made.server.runs)


def test_every_run_is_sent_once_with_group_tags_and_end(made):
    assert made.server.unknown == []
    assert set(made.server.runs) == {f"attack_demo-{key}" for key in made.nodes}
    assert {o["state"] for o in made.outcomes} == {"sent"}
    for key, node in made.nodes.items():
        run = made.server.runs[f"attack_demo-{key}"]
        assert (run["groupName"], run["tags"]) == ("attack_demo", ["smoke"])
        assert (run["jobType"], run["exitcode"]) == (node.stage.name, 0)


def test_a_runs_config_has_the_settings_of_all_it_was_made_from(made):
    config = {k: v["value"] for k, v in run_of(made, made.side)["config"].items()}
    assert config["attack"] == "side"
    assert config["point"] == f"side, {SIZE}=64, {SCALE}=4"
    assert config["dpm"]["num_train_images"] == 64
    assert config["extract"]["guidance"]["guidance_scale"] == 4
    assert config["evaluate"] == json.loads(json.dumps(made.side.settings))
    assert config["inputs"] == {n: f"{n}-{i.key}" for n, i in made.side.inputs.items()}
    assert "attack" not in run_of(made, made.dpm)["config"]
    assert f"dpm {SIZE}=64 {made.dpm.key}" == run_of(made, made.dpm)["displayName"]


def test_a_trainings_history_is_its_csv_over_the_global_step(made):
    sent = {
        (row[GLOBAL_STEP], name.removeprefix("dpm/")): value
        for row in run_of(made, made.dpm)["history"]
        for name, value in row.items()
        if name.startswith("dpm/")
    }
    kept = MetricsCSV(folder(made, made.dpm) / "metrics.csv").rows()
    assert len(kept) == 3
    assert sent == {(step, name): pytest.approx(value, rel=1e-4) for step, name, value in kept}


def test_an_evaluation_sends_its_result_and_curves(made):
    results = load_results(folder(made, made.side))
    run = run_of(made, made.side)
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


def test_checkpoints_are_sent_as_checksums(made):
    sent = json.loads(made.server.artifacts[f"dpm-{made.dpm.key}"]["metadata"])["files"]
    listed = json.loads((folder(made, made.dpm) / "manifest.json").read_text())["files"]
    assert {"lineage.json", "settings.json", "model/model_index.json"} < set(sent)
    assert len([name for name in sent if name.endswith(".safetensors")]) == 1
    assert sent == {name: listed[name] for name in sent}


def test_lineage_on_the_server_is_the_graph(made):
    edges = {
        (f"attack_demo-{node.key}", f"{n.stage.name}-{n.key}")
        for node in made.nodes.values()
        for n in node.inputs.values()
    }
    assert sorted(made.server.uses) == sorted(edges)


def test_no_image_and_no_weights_leave_the_machine(made):
    kinds = {Path(path).suffix for path in made.server.uploads if "/manifests/" not in path}
    assert kinds <= {".json", ".yaml", ".txt"}
    assert not [k for run in made.server.runs.values() for k in logged(run) if "picture" in k]
    assert sum(map(len, made.server.uploads.values())) < 20_000 * len(made.nodes)
    sent = json.dumps(made.server.received)
    assert "file://" not in sent
    assert str(made.home) not in sent


def test_every_metric_that_the_dashboard_names_is_one_that_runs_log(made):
    known = set().union(*map(logged, made.server.runs.values()))
    [view] = made.server.views.values()
    names = set(shown(json.loads(view["spec"])["section"]["panelBankConfig"]))
    plain = {name.removeprefix("summary:") for name in names} - {"_step"}
    assert len(plain) > 25
    assert plain <= known, "DPM losses, curves, bands: all of them"


def test_the_view_is_made_once_and_then_updated_under_its_name(made):
    [view] = made.server.views.values()
    assert view["displayName"] == "sidepipe attack_demo"
    assert len(set(made.addresses)) == 1
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [
        s.name for s in overview.sections(made.record.axes)
    ]
