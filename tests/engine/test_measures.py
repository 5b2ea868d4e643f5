"""What runs say of finished artifacts, from planted files."""

import csv
import json

import numpy as np
import pytest

from sidepipe.base.images import save_grid
from sidepipe.engine.graph import Node, stage_class
from sidepipe.engine.measures import measured, run_config
from sidepipe.engine.stage import Stage
from sidepipe.stages.evaluate.charts import band_key


def node(name, settings, inputs=None):
    return Node(facts(name), settings, inputs or {})


def facts(name):
    """A stage to ask for its facts alone: it has no settings."""
    return object.__new__(stage_class(name))


DPM = node("dpm", {"num_train_images": 5, "on_duplicates": "drop"})


@pytest.fixture(autouse=True)
def _all_settings_in_keys(monkeypatch):
    monkeypatch.setattr(Stage, "key_settings", lambda stage, settings: settings)
    for name in ("extract", "dpm"):
        monkeypatch.setattr(stage_class(name), "key_settings", Stage.key_settings)


def test_a_config_names_inputs_by_stage_and_key_and_holds_settings_by_stage():
    extract = node("extract", {}, {"dpm": DPM})
    evaluate = node("evaluate", {"a": 1}, {"dpm": DPM, "extract": extract})
    assert run_config(evaluate, ["side"]) == {
        "stage": "evaluate",
        "version": evaluate.stage.version,
        "key": evaluate.key,
        "inputs": {"dpm": f"dpm-{DPM.key}", "extract": f"extract-{extract.key}"},
        "attack": "side",
        "dpm": DPM.settings,
        "extract": {},
        "evaluate": {"a": 1},
    }


def test_settings_that_differ_between_a_reports_attacks_are_left_out():
    rows = {name: node("extract", {"row": name}, {"dpm": DPM}) for name in "ab"}
    evaluated = {name: node("evaluate", {}, {"extract": row}) for name, row in rows.items()}
    config = run_config(node("report", {}, evaluated), [])
    assert config["inputs"] == {name: f"evaluate-{evaluated[name].key}" for name in "ab"}
    assert config["dpm"] == DPM.settings
    assert not {"extract", "attack"} & set(config)


def test_a_summary_keeps_single_values_and_leaves_lists_out(tmp_path):
    summary = {"images": 3, "skipped": ["a face.jpg"], "clean": {"accuracy": 0.5}, "none": None}
    sent = measured(facts("data"), tmp_path, summary, images=True)
    assert sent.summary == {"data/images": 3, "data/clean/accuracy": 0.5}
    assert not sent.pictures, "these would be the training images"


def test_a_classifier_is_drawn_over_the_middle_of_its_noise_levels(tmp_path):
    with (tmp_path / "quality.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["t_from", "t_to", "cross_entropy", "accuracy", "label_entropy"])
        rows.writerows([[0, 50, 0.5, 0.9, 2.0], [50, 100, 1.5, 0.2, 2.0]])
    [(axis, curve)] = measured(facts("classifier"), tmp_path, {}, images=False).curves.items()
    assert [row[axis] for row in curve] == [25, 75]
    assert [row["classifier/quality/cross_entropy"] for row in curve] == [0.5, 1.5]


def test_a_blind_evaluation_has_no_curves(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"truth": "none"}))
    assert not measured(facts("evaluate"), tmp_path, {"candidates": 4}, images=False).curves


def test_files_are_the_settings_the_lineage_and_what_was_learned(tmp_path):
    for name in ("settings.json", "lineage.json", "last.ckpt", "metrics.csv", "model/unet/a.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    named = {"settings.json", "lineage.json"}
    assert set(measured(facts("dpm"), tmp_path, {}, images=False).files) == {
        *named,
        "model/unet/a.bin",
    }
    assert set(measured(facts("generate"), tmp_path, {}, images=False).files) == named


@pytest.mark.parametrize("stage", ["dpm", "generate", "label", "extract", "evaluate"])
def test_pictures_are_looked_up_only_where_they_are_asked_for(tmp_path, stage):
    images = np.zeros((4, 3, 8, 8, 1), np.uint8)
    (tmp_path / "previews").mkdir()
    for name in ("previews/step_0000010.png", "preview.png", "clusters.png"):
        save_grid(tmp_path / name, images[:, 0])
    np.save(tmp_path / "gallery.npy", images)
    (tmp_path / "gallery.csv").write_text("index,train_id,heldout_id\n" + "0,a,b\n" * 4)
    (tmp_path / "results.json").write_text('{"truth": "none"}')
    assert not measured(facts(stage), tmp_path, {}, images=False).pictures
    [pictures] = measured(facts(stage), tmp_path, {}, images=True).pictures.values()
    assert len(pictures) == (4 if stage == "evaluate" else 1)


def test_the_key_of_a_band_is_that_of_the_summary():
    assert band_key("high", "ums") == "evaluate/ums_high"
