"""Held-out images that duplicate training images: refused, left out, or kept and said."""

import csv
import json

import numpy as np
import pytest
from diffusers import DDPMPipeline, DDPMScheduler
from tests.composing import composed
from tests.tiny import RUNTIME, SETTINGS, UNET

from sidepipe.base.settings import build
from sidepipe.engine import training
from sidepipe.engine.plan import plan
from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.duplicates import PAIRS
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.stage import load_subset
from sidepipe.stages.dpm.trained import TrainDPM

FOUND = (
    r"4 of 64 held-out images duplicate training images \(2 exactly\): heldout/0.png = train/0.png "
    r"\(equal\), heldout/1.png = train/1.png \(RMS 0.0039\), heldout/2.png = train/2.png \(equal, "
    r"mirrored\), heldout/3.png = train/3.png \(RMS 0.0039, mirrored\)"
)


@pytest.fixture
def data(tmp_path):
    """40 training images, two of them alike, and 64 others, four of them copies."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    images = rng.integers(0, 256, (104, 8, 8, 1)).astype(np.uint8)
    images[7] = images[6]
    images[40], images[41] = images[0], images[1] ^ 1
    images[42], images[43] = images[2, :, ::-1], images[3, :, ::-1] ^ 1
    np.save(folder / "images.npy", images)
    with (folder / "ids.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "id", "partition", "identity"])
        writer.writerows([i, f"train/{i}.png", "train", ""] for i in range(40))
        writer.writerows([40 + i, f"heldout/{i}.png", "test", ""] for i in range(64))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    DDPMPipeline(build(UNET), DDPMScheduler(20)).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def trained(on_duplicates, **changes):
    settings = {"num_train_images": None, "train_partitions": ["train"], **changes}
    return TrainDPM(**{**SETTINGS, "max_steps": 5, **settings}, on_duplicates=on_duplicates)


def pretrained(checkpoint, on_duplicates):
    return PretrainedDPM(
        path=str(checkpoint),
        revision=None,
        variant=None,
        num_train_images=None,
        train_partitions=["train"],
        subset_seed=0,
        on_duplicates=on_duplicates,
    )


@pytest.mark.parametrize("kind", ["trained", "pretrained"])
def test_duplicates_are_an_error_before_anything_is_trained_or_loaded(
    tmp_path, data, kind, monkeypatch
):
    monkeypatch.setattr(training, "fit", None)
    nowhere = tmp_path / "nowhere"
    stage = trained("error") if kind == "trained" else pretrained(nowhere, "error")
    folder = tmp_path / "dpm"
    folder.mkdir()
    remedy = (
        r"; .*remedy: data.on_duplicates=drop .*=keep .* remove one image of each pair in .*csv"
    )
    with pytest.raises(ValueError, match=FOUND + remedy):
        stage.run(Job(folder, {"data": data}, RUNTIME))
    assert not (folder / "heldout.npy").exists()
    rows = list(csv.DictReader((folder / PAIRS).read_text().splitlines()))
    flagged = sorted(row["id"] for row in rows if row["set"] == "held-out")
    assert flagged == [f"heldout/{i}.png" for i in range(4)]
    assert sorted(row["id"] for row in rows if row["set"] == "training") == [
        "train/6.png",
        "train/7.png",
    ]


def run(stage, data, folder):
    folder.mkdir()
    return stage.run(Job(folder, {"data": data}, RUNTIME))


def test_dropped_ones_leave_the_held_out_images_and_nothing_else(tmp_path, data, checkpoint):
    summary = run(pretrained(checkpoint, "drop"), data, tmp_path / "dpm")
    train, heldout = load_subset(tmp_path / "dpm")
    assert sorted(train) == list(range(40))
    assert sorted(heldout) == list(range(44, 104))
    assert summary["num_heldout_images"] == 60
    found = summary["duplicates"]
    assert (found["across"], found["across_exact"], found["dropped"]) == (4, 2, 4)
    assert (found["within"], found["within_exact"]) == (2, 2)
    assert found["repeated"] == 0
    assert found["limit"] < 0.15
    json.dumps(summary)


def test_a_trained_model_does_not_validate_on_dropped_images(tmp_path, data):
    summary = run(trained("drop"), data, tmp_path / "dpm")
    assert summary["num_heldout_images"] == len(load_subset(tmp_path / "dpm")[1]) == 60


def test_kept_ones_stay_and_are_counted(tmp_path, data, checkpoint, caplog):
    with caplog.at_level("WARNING"):
        summary = run(pretrained(checkpoint, "keep"), data, tmp_path / "dpm")
    assert len(load_subset(tmp_path / "dpm")[1]) == 64
    assert summary["duplicates"]["across"] == 4
    assert summary["duplicates"]["dropped"] == 0
    assert "4 of 64 held-out images duplicate training images (2 exactly)" in caplog.text
    assert "2 of 40 training images duplicate other training images (2 exactly)" in caplog.text


def test_an_artifact_with_duplicates_is_used_only_where_they_are_kept(tmp_path, data, checkpoint):
    folder = tmp_path / "dpm"
    kept = run(pretrained(checkpoint, "keep"), data, folder)
    pretrained(checkpoint, "keep").check_artifact(folder, kept)
    with pytest.raises(ValueError, match=FOUND):
        pretrained(checkpoint, "error").check_artifact(folder, kept)
    dropped = run(pretrained(checkpoint, "drop"), data, tmp_path / "dropped")
    for on_duplicates in ("error", "drop", "keep"):
        pretrained(checkpoint, on_duplicates).check_artifact(tmp_path / "dropped", dropped)


def test_where_nearly_all_held_out_images_are_copies_dropping_them_is_refused(
    tmp_path, data, checkpoint
):
    images = np.load(data / "images.npy")
    images[40:80] = images[:40]
    np.save(data / "images.npy", images)
    rows = (data / "ids.csv").read_text().splitlines(keepends=True)
    (data / "ids.csv").write_text("".join(rows[:99]))  # 58 held out, 40 of them copies
    np.save(data / "images.npy", images[:98])
    message = r"held-out images that data.on_duplicates=drop leaves of 58 must be >= 20, got 18"
    with pytest.raises(ValueError, match=message):
        run(pretrained(checkpoint, "drop"), data, tmp_path / "dpm")


def test_five_pairs_are_named_and_the_others_counted(tmp_path, data, checkpoint):
    images = np.load(data / "images.npy")
    images[40:52] = images[:12]
    np.save(data / "images.npy", images)
    with pytest.raises(ValueError, match=r"12 of 64 .*(heldout/\d+.png = .*){5} and 7 more; hit"):
        run(pretrained(checkpoint, "error"), data, tmp_path / "dpm")


def keys(*overrides):
    the_plan = plan(composed("experiment=demo", *overrides))
    return {the_plan.title(node): key for key, node in the_plan.nodes.items()}


def test_keeping_and_refusing_share_every_artifact_and_only_dropping_makes_another_model():
    assert keys("data.on_duplicates=keep") == keys() == keys("data.on_duplicates=error")
    before, dropped = keys(), keys("data.on_duplicates=drop")
    assert dropped["data"] == before["data"]
    assert dropped["dpm"] != before["dpm"]


def test_it_is_set_for_data_alone():
    nodes = plan(composed("experiment=demo", "data.on_duplicates=keep")).nodes.values()
    assert {n.settings["on_duplicates"] for n in nodes if n.stage.name == "dpm"} == {"keep"}
    with pytest.raises(ValueError, match=r"dpm.on_duplicates must be as data.on_duplicates"):
        plan(composed("experiment=demo", "+dpm.on_duplicates=keep"))
    with pytest.raises(ValueError, match=r"data.on_duplicates does not accept 'skip'"):
        plan(composed("experiment=demo", "data.on_duplicates=skip"))
