"""What runs say of finished artifacts, from planted files."""

import csv
import json

import numpy as np
import pytest

from sidepipe.base.images import save_grid
from sidepipe.cli.dashboards.keys import band_key
from sidepipe.cli.dashboards.measures import measured, run_config

DPM = {"stage": "dpm", "inputs": {}}


def test_a_config_names_inputs_by_stage_and_key_and_holds_settings_by_stage():
    content = {
        "stage": "evaluate",
        "version": 3,
        "key": "eee",
        "settings": {"a": 1},
        "inputs": {"dpm": "ddd"},
    }
    lineage = {"ddd": DPM, "eee": {"stage": "evaluate", "inputs": {"dpm": "ddd"}}}
    settings = [("dpm", {"num_train_images": 5}), ("extract", {}), ("evaluate", {"a": 1})]
    assert run_config(content, ["side"], lineage, settings) == {
        "stage": "evaluate",
        "version": 3,
        "key": "eee",
        "inputs": {"dpm": "dpm-ddd"},
        "attack": "side",
        "dpm": {"num_train_images": 5},
        "extract": {},
        "evaluate": {"a": 1},
    }


def test_settings_that_differ_between_a_reports_attacks_are_left_out():
    content = {"stage": "report", "version": 1, "key": "rrr", "inputs": {"a": "e1", "b": "e2"}}
    evaluate = {"stage": "evaluate", "inputs": {"dpm": "ddd"}}
    lineage = {"ddd": DPM, "e1": evaluate, "e2": evaluate, "rrr": {"stage": "report"}}
    settings = [("dpm", {"a": 1}), ("extract", {"b": 1}), ("extract", {"b": 2}), ("report", {})]
    config = run_config(content, [], lineage, settings)
    assert config["inputs"] == {"a": "evaluate-e1", "b": "evaluate-e2"}
    assert config["dpm"] == {"a": 1}
    assert not {"extract", "attack"} & set(config)


def test_a_summary_keeps_single_values_and_leaves_lists_out(tmp_path):
    summary = {"images": 3, "skipped": ["a face.jpg"], "clean": {"accuracy": 0.5}, "none": None}
    sent = measured("data", tmp_path, summary, images=True)
    assert sent.summary == {"data/images": 3, "data/clean/accuracy": 0.5}
    assert not sent.pictures, "these would be the training images"


def test_a_classifier_is_drawn_over_the_middle_of_its_noise_levels(tmp_path):
    with (tmp_path / "quality.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["t_from", "t_to", "cross_entropy", "accuracy", "label_entropy"])
        rows.writerows([[0, 50, 0.5, 0.9, 2.0], [50, 100, 1.5, 0.2, 2.0]])
    [(axis, curve)] = measured("classifier", tmp_path, {}, images=False).curves.items()
    assert [row[axis] for row in curve] == [25, 75]
    assert [row["classifier/quality/cross_entropy"] for row in curve] == [0.5, 1.5]


def test_a_blind_evaluation_has_no_curves(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"truth": "none"}))
    assert not measured("evaluate", tmp_path, {"candidates": 4}, images=False).curves


def test_files_are_the_settings_the_lineage_and_what_was_learned(tmp_path):
    for name in ("settings.json", "lineage.json", "last.ckpt", "metrics.csv", "model/unet/a.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    named = {"settings.json", "lineage.json"}
    assert set(measured("dpm", tmp_path, {}, images=False).files) == {*named, "model/unet/a.bin"}
    assert set(measured("generate", tmp_path, {}, images=False).files) == named


@pytest.mark.parametrize("stage", ["dpm", "generate", "label", "extract", "evaluate"])
def test_pictures_are_looked_up_only_where_they_are_asked_for(tmp_path, stage):
    images = np.zeros((4, 3, 8, 8, 1), np.uint8)
    (tmp_path / "previews").mkdir()
    for name in ("previews/step_0000010.png", "preview.png", "clusters.png"):
        save_grid(tmp_path / name, images[:, 0])
    np.save(tmp_path / "gallery.npy", images)
    (tmp_path / "gallery.csv").write_text("index,train_id,heldout_id\n" + "0,a,b\n" * 4)
    (tmp_path / "results.json").write_text('{"truth": "none"}')
    assert not measured(stage, tmp_path, {}, images=False).pictures
    [pictures] = measured(stage, tmp_path, {}, images=True).pictures.values()
    assert len(pictures) == (4 if stage == "evaluate" else 1)


def test_the_key_of_a_band_is_that_of_the_summary():
    assert band_key("high", "ums") == "evaluate/ums_high"
