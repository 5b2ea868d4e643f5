"""The workspace as it would be sent: its structure, without any server."""

import json
import warnings

import pytest

from sidepipe.stages.classifier import charts as classifier
from sidepipe.stages.dpm import charts as dpm
from sidepipe.stages.evaluate import charts as k

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about the library
    pytest.importorskip("wandb_workspaces.workspaces")
    from sidepipe.cli.dashboards import overview


def spec(group=None):
    model = overview.workspace("lab", "faces", group)._to_model()
    return json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels(spec):
    sections = spec["panelBankConfig"]["sections"]
    return {panel["config"]["chartTitle"]: panel for s in sections for panel in s["panels"]}


def without_ids(value):
    if isinstance(value, dict):
        return {n: without_ids(v) for n, v in value.items() if n not in ("__id__", "id")}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


def test_a_workspace_is_the_same_each_time_but_for_random_ids():
    assert without_ids(spec()) == without_ids(spec())


def test_hits_are_a_line_an_attack_over_the_subset_size():
    panel = panels(spec())["hits at 0.1 % false positives"]
    assert panel["viewType"] == "Run History Line Plot"
    config = panel["config"]
    assert (config["xAxis"], config["metrics"]) == (k.TRAIN_IMAGES, [k.HITS])
    assert config["groupBy"] == "attack.value"


def test_every_panel_has_a_title_of_its_own_and_draws_something():
    drawn = panels(spec())
    assert len(drawn) == sum(len(s.panels) for s in overview.sections())
    for panel in drawn.values():
        assert panel["config"].get("metrics") or panel["config"]["yAxis"]


def test_the_lower_bound_is_named_by_its_confidence():
    (panel,) = (p for p in panels(spec()).values() if p["config"].get("metrics") == [k.AT_LEAST])
    assert panel["config"]["chartTitle"] == "lower bound of images that can be hit, 95 % confidence"


def test_one_sweeps_workspace_has_its_name_and_its_runs_alone():
    filters = spec("subset_size")["runSets"][0]["filters"]["filters"]
    key = {"section": "run", "name": "group"}
    assert [(f["key"], f["value"]) for f in filters] == [(key, "subset_size")]
    assert not spec()["runSets"][0]["filters"]["filters"]
    assert overview.name_of("subset_size") == "sidepipe subset_size"
    assert overview.name_of(None) == "sidepipe"


def test_all_that_a_sweep_is_read_for_is_there():
    drawn = {m for p in panels(spec()).values() for m in p["config"].get("metrics", [])}
    bands = {k.band_key(b, s) for b in ("low", "mid", "high") for s in ("ams", "ums")}
    assert bands <= drawn
    assert {k.HITS, k.EXCESS, k.RAREFACTION_UNIQUE, dpm.LOSS_HELDOUT} <= drawn
    assert {classifier.CROSS_ENTROPY, k.EVALUATIONS, k.SYNTHETIC_EVALUATIONS} <= drawn
