"""What runs say of finished artifacts, from planted files."""

import csv
import hashlib
import json

import numpy as np
import pytest

from sidepipe.base import files
from sidepipe.base.images import save_grid
from sidepipe.engine.artifacts import write_manifest
from sidepipe.engine.graph import stage_class
from sidepipe.engine.measures import measured, run_config
from sidepipe.engine.places import Place
from sidepipe.stages.evaluate.charts import band_key


def made(outputs, stage, key, settings, inputs=None):
    """The folder of an artifact with its settings and its lineage; inputs: folders by name."""
    folder, read = outputs / stage / key, inputs or {}
    folder.mkdir(parents=True)
    own = {"stage": stage, "version": 1, "key": key, "settings": settings}
    own["inputs"] = {name: each.name for name, each in read.items()}
    lineage = {}
    for each in read.values():
        lineage |= json.loads((each / "lineage.json").read_text())
    lineage[key] = {"stage": stage, "inputs": own["inputs"]}
    files.write_json(folder / "settings.json", own)
    files.write_json(folder / "lineage.json", lineage)
    return folder


def content(stage, folder, summary=None, images=False, place=None):
    """What a run sends of the finished artifact in the folder."""
    facts = {"summary": summary or {}, "inputs": {}, "device": "1 x cpu", "seconds": 2.5}
    write_manifest(folder, facts)
    return measured(stage_class(stage), folder, place, images)


def of_stage(values):
    return {name: value for name, value in values.items() if not name.startswith("artifact/")}


def test_a_config_names_inputs_by_stage_and_key_and_holds_settings_by_stage(tmp_path):
    dpm = made(tmp_path, "dpm", "d", {"num_train_images": 5})
    extract = made(tmp_path, "extract", "e", {}, {"dpm": dpm})
    evaluate = made(tmp_path, "evaluate", "v", {"a": 1}, {"dpm": dpm, "extract": extract})
    expected = {
        "stage": "evaluate",
        "version": 1,
        "key": "v",
        "inputs": {"dpm": "dpm-d", "extract": "extract-e"},
        "attack": "side",
        "point": "side",
        "dpm": {"num_train_images": 5},
        "extract": {},
        "evaluate": {"a": 1},
    }
    assert run_config(evaluate, ["side"], None) == expected
    place = Place("mine", {"dpm.lr": [0.5], "seed_of.x": [1, 2]})
    assert run_config(evaluate, ["side"], place) == {
        **expected,
        "attack": "mine",
        "point": "mine, dpm.lr=0.5",
        "line/dpm/lr": "mine",
        "line/seed_of/x": "mine, dpm.lr=0.5",
    }


def test_settings_that_differ_between_a_reports_attacks_are_left_out(tmp_path):
    dpm = made(tmp_path, "dpm", "d", {"lr": 1})
    rows = {name: made(tmp_path, "extract", name, {}, {"dpm": dpm}) for name in "ab"}
    evaluated = {
        n: made(tmp_path, "evaluate", f"e{n}", {}, {"extract": r}) for n, r in rows.items()
    }
    config = run_config(made(tmp_path, "report", "r", {}, evaluated), [], None)
    assert config["inputs"] == {name: f"evaluate-e{name}" for name in "ab"}
    assert config["dpm"] == {"lr": 1}
    assert not {"extract", "attack", "point"} & set(config)


def test_a_summary_keeps_single_values_and_leaves_lists_out(tmp_path):
    summary = {"images": 3, "skipped": ["a face.jpg"], "clean": {"accuracy": 0.5}, "none": None}
    sent = content("data", tmp_path, summary, images=True)
    assert of_stage(sent.summary) == {"data/images": 3, "data/clean/accuracy": 0.5}
    assert not sent.pictures, "these would be the training images"


def test_a_run_has_what_made_the_artifact_and_for_how_long(tmp_path):
    sent = content("data", tmp_path).summary
    assert (sent["artifact/device"], sent["artifact/seconds"]) == ("1 x cpu", 2.5)
    assert {"artifact/commit", "artifact/version", "artifact/torch", "artifact/finished"} < set(
        sent
    )


def test_an_empty_artifact_sends_its_reason(tmp_path):
    sent = content("evaluate", tmp_path, {"empty": "nothing repeats"})
    assert of_stage(sent.summary) == {"evaluate/empty": "nothing repeats"}
    assert not sent.curves


def test_a_result_is_a_point_at_each_of_its_values_on_each_axis_of_numbers(tmp_path, monkeypatch):
    evaluate = stage_class("evaluate")
    monkeypatch.setattr(evaluate, "point", classmethod(lambda cls, folder: {"hits": 3}))
    monkeypatch.setattr(evaluate, "curves", classmethod(lambda cls, folder: {}))
    place = Place("side", {"a.b": [1, 2.5], "c": [7], "dpm": ["unet16"], "flag": [True]})
    assert content("evaluate", tmp_path, place=place).curves == {
        "sweep/a/b": [{"sweep/a/b": 1, "hits": 3}, {"sweep/a/b": 2.5, "hits": 3}],
        "sweep/c": [{"sweep/c": 7, "hits": 3}],
    }


def test_a_classifier_is_drawn_over_the_middle_of_its_noise_levels(tmp_path):
    with (tmp_path / "quality.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["t_from", "t_to", "cross_entropy", "accuracy", "label_entropy"])
        rows.writerows([[0, 50, 0.5, 0.9, 2.0], [50, 100, 1.5, 0.2, 2.0]])
    [(axis, curve)] = content("classifier", tmp_path).curves.items()
    assert [row[axis] for row in curve] == [25, 75]
    assert [row["classifier/quality/cross_entropy"] for row in curve] == [0.5, 1.5]


def test_a_blind_evaluation_has_no_curves(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"truth": "none"}))
    assert not content("evaluate", tmp_path, {"candidates": 4}).curves


def test_files_are_the_settings_the_lineage_and_what_was_learned(tmp_path):
    for name in ("settings.json", "lineage.json", "last.ckpt", "metrics.csv", "model/unet/a.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("abc")
    named = {"settings.json", "lineage.json"}
    sent = content("dpm", tmp_path).files
    assert set(sent) == {*named, "model/unet/a.bin"}
    assert sent["model/unet/a.bin"] == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert set(content("generate", tmp_path).files) == named


@pytest.mark.parametrize("stage", ["dpm", "generate", "label", "extract", "evaluate"])
def test_pictures_are_looked_up_only_where_they_are_asked_for(tmp_path, stage):
    images = np.zeros((4, 3, 8, 8, 1), np.uint8)
    (tmp_path / "previews").mkdir()
    for name in ("previews/step_0000010.png", "preview.png", "clusters.png"):
        save_grid(tmp_path / name, images[:, 0])
    np.save(tmp_path / "gallery.npy", images)
    (tmp_path / "gallery.csv").write_text("index,train_id,heldout_id\n" + "0,a,b\n" * 4)
    (tmp_path / "results.json").write_text('{"truth": "none"}')
    assert not content(stage, tmp_path).pictures
    [pictures] = content(stage, tmp_path, images=True).pictures.values()
    assert len(pictures) == (4 if stage == "evaluate" else 1)


def test_the_key_of_a_band_is_that_of_the_summary():
    assert band_key("high", "ums") == "evaluate/ums_high"
