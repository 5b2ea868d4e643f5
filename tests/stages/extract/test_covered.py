"""Sampling that stops by itself, on models in closed form: what is left to find is known."""

import json

import numpy as np
import pandas as pd
import pytest
from tests.stages.dpm.test_exact import data, model  # noqa: F401, a fixture
from tests.stages.extract.test_stage import extract
from tests.tiny import RUNTIME

from sidepipe.engine.shards import load_shards
from sidepipe.engine.stage import Job
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.stage import load_subset
from sidepipe.stages.extract.covered import estimate
from sidepipe.stages.extract.stage import load_targets
from sidepipe.stages.generate.refine import Union

NEAR = {"features": {"_target_": "sidepipe.features.encoders.PixelsL2"}, "threshold": 0.02}
PLAIN = {"surrogate": "none", "num_inference_steps": 50, "timestep_spacing": "trailing"}
STOPS = {**PLAIN, "near_duplicates": NEAR, "num_images": 400, "rounds": 10, "shard_size": 1000}


@pytest.fixture
def memory(tmp_path, data):  # noqa: F811
    """A model that returns each of 40 training images equally often, and these images."""
    folder = model(tmp_path / "dpm", data, num_train_images=40)
    return folder, load_images(data)[load_subset(folder)[0]]


def run(folder, dpm, **settings):
    folder.mkdir()
    summary = extract(**settings).run(Job(folder, {"dpm": dpm}, RUNTIME))
    (folder / "manifest.json").write_text(json.dumps({"summary": summary}))
    return summary


def test_the_estimated_coverage_is_the_share_of_the_memory_that_was_found(tmp_path, memory):
    dpm, train = memory
    run(tmp_path / "all", dpm, **{**PLAIN, "num_images": 400})
    images, near = load_shards(tmp_path / "all"), NearDuplicates(**NEAR)
    of = (images[:, None].astype(int) - train).reshape(400, 40, -1)
    nearest = np.abs(of).max(2).argmin(1)
    found = [estimate(images[start : start + 60], near, "cpu") for start in range(0, 360, 60)]
    true = [len(np.unique(nearest[start : start + 60])) for start in range(0, 360, 60)]
    assert [row["groups"] for row in found] == true
    # Equal probabilities: what is covered is the share of the images that was found.
    errors = [row["coverage"] - count / 40 for row, count in zip(found, true, strict=True)]
    assert abs(np.mean(errors)) < 0.03
    totals = [row["groups"] + row["unseen"] for row in found]
    assert np.mean(totals) == pytest.approx(40, rel=0.1)


def test_sampling_stops_once_the_memory_is_covered_with_the_images_that_it_would_have_made(
    tmp_path, memory
):
    dpm, train = memory
    summary = run(tmp_path / "stops", dpm, **STOPS, covered=0.9)
    images, count = load_shards(tmp_path / "stops"), summary["num_images"]
    assert len(images) == count < 400
    assert summary["unet_forwards"] == summary["network_evaluations"] == 50 * count
    rows = pd.read_csv(tmp_path / "stops" / "coverage.csv")
    assert (rows["coverage"].to_numpy()[:-1] < 0.9).all()
    assert rows["coverage"].iloc[-1] == summary["coverage"] >= 0.9
    assert rows["starts"].tolist() == list(range(40, count + 1, 40))
    assert load_targets(tmp_path / "stops").tolist() == [-1] * count
    assert 0.8 * len(train) <= summary["groups"] <= len(train)
    run(tmp_path / "all", dpm, **{**PLAIN, "num_images": count})
    np.testing.assert_array_equal(images, load_shards(tmp_path / "all"))


def test_what_never_repeats_is_never_covered(tmp_path, data):  # noqa: F811
    dpm = model(tmp_path / "dpm", data, score="population")
    summary = run(tmp_path / "stops", dpm, **{**STOPS, "num_images": 100, "rounds": 2}, covered=0.5)
    assert summary["num_images"] == summary["groups"] == 100
    assert summary["coverage"] < 0.05


def test_only_the_last_image_of_each_start_counts(tmp_path, memory):
    dpm, _ = memory
    settings = {**STOPS, "num_images": 80, "rounds": 2, "num_inference_steps": 2}
    several = Union(levels=[60], steps=3, kept=3)
    summary = run(tmp_path / "several", dpm, **settings, refine=several, covered=0.999)
    run(
        tmp_path / "one", dpm, **settings, refine=Union(levels=[60], steps=3, kept=1), covered=0.999
    )
    last = pd.read_csv(tmp_path / "one" / "coverage.csv")
    assert summary["candidates"] == 3
    assert (
        last["groups"].tolist() == pd.read_csv(tmp_path / "several/coverage.csv")["groups"].tolist()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"covered": 1.0}, r"extract\.covered must be in \(0, 1\), or null, got 1\.0"),
        ({"covered": 0.9, "surrogate": "posterior"}, "null for other images than plain samples"),
        (
            {"covered": 0.9, "rounds": 1},
            r"extract\.rounds must be in \[2, 20\] with extract\.covered",
        ),
        ({"covered": 0.9, "rounds": 30}, r"extract\.rounds must be in \[2, 20\]"),
    ],
)
def test_a_wrong_stop_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        extract(**{**STOPS, **changes})


def test_the_stop_is_part_of_the_key_only_where_it_is_set():
    without, stops = extract(**{**STOPS, "rounds": 1}), extract(**STOPS, covered=0.9)
    assert {"covered", "rounds", "near_duplicates"} <= set(without.unused())
    assert not {"covered", "rounds", "near_duplicates"} & set(stops.unused())
