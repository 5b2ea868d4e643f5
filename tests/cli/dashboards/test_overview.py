"""The workspace as it would be sent: its structure, without any server."""

import json
import warnings

import pytest

from sidepipe.engine.places import Record
from sidepipe.stages.classifier import charts as classifier
from sidepipe.stages.dpm import charts as dpm
from sidepipe.stages.evaluate import charts as k

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about the library
    pytest.importorskip("wandb_workspaces.workspaces")
    from sidepipe.cli.dashboards import overview

SCALE, SIZE = "extract.guidance.guidance_scale", "dpm.num_train_images"


def swept(**axes):
    """The record of a sweep of these values of each setting; two underscores are a dot."""
    named = {name.replace("__", "."): values for name, values in axes.items()}
    first = {name: values[0] for name, values in named.items()}
    points = [{**first, name: value} for name, values in named.items() for value in values]
    return Record("mine", None, [{"axes": p, "keys": [], "attacks": {}} for p in points])


def spec(record=None, images=False):
    model = overview.workspace("lab", "faces", record, images)._to_model()
    return json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels(record=None, images=False):
    sections = spec(record, images)["panelBankConfig"]["sections"]
    drawn = [panel for section in sections for panel in section["panels"]]
    return {p["config"]["chartTitle"]: p for p in drawn if "chartTitle" in p["config"]}


def without_ids(value):
    if isinstance(value, dict):
        return {n: without_ids(v) for n, v in value.items() if n not in ("__id__", "id")}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


def over(record, metric):
    """(x axis, grouped by, logarithmic) of the panels that draw the metric, None for bars."""
    return {
        (config.get("xAxis"), config["groupBy"], config.get("xLogScale", False))
        for panel in panels(record).values()
        if metric in (config := panel["config"]).get("metrics", [])
    }


def test_a_workspace_is_the_same_each_time_but_for_random_ids():
    assert without_ids(spec()) == without_ids(spec())


@pytest.mark.parametrize("metric", [k.HITS, k.HELDOUT_HITS, k.UNIQUE, k.EXCESS, k.AT_LEAST])
def test_each_swept_setting_of_numbers_is_the_axis_of_a_panel(metric):
    record = swept(
        extract__guidance__guidance_scale=[0.25, 0.5, 1, 2, 4], dpm__num_train_images=[500, 1000]
    )
    assert over(record, metric) == {
        (
            "sweep/extract/guidance/guidance_scale",
            "line/extract/guidance/guidance_scale.value",
            True,
        ),
        ("sweep/dpm/num_train_images", "line/dpm/num_train_images.value", False),
    }


def test_a_setting_that_is_no_number_has_a_bar_per_point():
    record = swept(label__num_clusters=[25, 50], extract__surrogate=["classifier", "posterior"])
    assert over(record, k.HITS) == {
        ("sweep/label/num_clusters", "line/label/num_clusters.value", False),
        (None, "point.value", False),
    }


@pytest.mark.parametrize("record", [None, swept(seed=[0, 1, 2])], ids=["project", "seeds"])
def test_without_a_swept_setting_attacks_are_compared_by_bars(record):
    assert over(record, k.HITS) == {(None, "point.value", False)}


def test_hits_are_drawn_with_held_out_hits_before_all_else():
    first, *_ = panels(swept(seed=[0, 1])).values()
    assert first["config"]["metrics"] == [k.HITS, k.HELDOUT_HITS]


def test_every_panel_has_a_title_of_its_own_and_every_section_begins_with_a_note():
    record = swept(dpm__lr=[1, 2], extract__surrogate=["a", "b"])
    sections = spec(record)["panelBankConfig"]["sections"]
    titles = [p["config"]["chartTitle"] for s in sections for p in s["panels"][1:]]
    assert len(titles) == len(set(titles)) > 20
    for section in sections:
        note, *drawn = section["panels"]
        assert note["viewType"] == "Markdown Panel"
        assert len(note["config"]["value"].split()) > 10
        assert all(p["config"].get("metrics") or p["config"]["yAxis"] for p in drawn)


def test_pictures_are_there_only_where_they_are_asked_for():
    kinds = [{p["viewType"] for p in panels(images=images).values()} for images in (False, True)]
    assert "Media Browser" not in kinds[0]
    assert "Media Browser" in kinds[1]


def test_the_lower_bound_is_named_by_its_confidence():
    (panel,) = (p for p in panels().values() if p["config"].get("metrics") == [k.AT_LEAST])
    assert panel["config"]["chartTitle"] == "lower bound of images that can be hit, 95 % confidence"


@pytest.mark.parametrize("record", [None, swept(seed=[0, 1])], ids=["project", "sweep"])
def test_the_runs_are_those_of_the_sweep_that_have_panels(record):
    filters = json.dumps(spec(record)["runSets"][0]["filters"])
    assert ('"mine"' in filters) == (record is not None)
    assert '"jobType"' in filters
    assert all(f'"{stage}"' in filters for stage in ("evaluate", "dpm", "classifier"))
    assert '"generate"' not in filters
    assert overview.name_of("mine") == "sidepipe mine"
    assert overview.name_of(None) == "sidepipe"


def test_all_that_a_sweep_is_read_for_is_there():
    drawn = {m for p in panels().values() for m in p["config"].get("metrics", [])}
    bands = {k.band_key(b, s) for b in ("low", "mid", "high") for s in ("ams", "ums")}
    assert bands <= drawn
    assert {k.HITS, k.EXCESS, k.RAREFACTION_UNIQUE, dpm.LOSS_HELDOUT} <= drawn
    assert {classifier.CROSS_ENTROPY, k.EVALUATIONS, k.SYNTHETIC_EVALUATIONS} <= drawn
