import json
import os
from dataclasses import asdict
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from tests.stages.extract.test_stage import (
    ALPHAS_CUMPROD,
    CUT,
    DPM,
    RUNTIME,
    TIMESTEPS,
    extract,
    inputs,
    near_duplicates,
    run,
    unet,
)
from tests.tiny import checked

from sidepipe.base.settings import check_field_types
from sidepipe.engine.stage import Job
from sidepipe.stages.attack.attack import SPENT
from sidepipe.stages.extract.stage import load
from sidepipe.stages.generate.refine import FixedPoint
from sidepipe.stages.tune.score import SCORES
from sidepipe.stages.tune.stage import Tune, load_choice, load_trials

__all__ = ["inputs", "unet"]  # fixtures

GRID = {"guidance_scale": [0.0, 1.0], "targets": ["uniform", "top_cohesion"]}
PIXELS = {"_target_": "sidepipe.features.encoders.Pixels"}
REFINED = {"surrogate": "none", "refine": FixedPoint(steps=2)}


def attack(**changes):
    """A tuned attack's settings as a config has them."""
    settings = {"tuned": True, "target_fraction": 0.3, **changes}
    return {"_target_": "sidepipe.stages.extract.stage.Extract", **asdict(extract(**settings))}


def tune(of=None, **changes) -> Tune:
    judge = {"near_duplicates": near_duplicates(0.05), "score": "rate"}
    settings = {"grid": GRID, "num_images": 12, **judge, **changes}
    settings["attack"] = attack(**(of or {}))
    return Tune(**check_field_types("tune", Tune, settings))


def key_settings(of=None, **changes):
    stage = tune(of, **changes)
    return stage.key_settings(asdict(stage))


def tried_of(trials):
    return [(row["guidance_scale"], row["targets"]) for row, _ in trials]


def test_all_combinations_are_tried_the_last_setting_changing_fastest():
    assert tune(grid={"t_min": [0, 200], "targets": ["uniform", "weighted"]}).points == [
        {"t_min": 0, "targets": "uniform"},
        {"t_min": 0, "targets": "weighted"},
        {"t_min": 200, "targets": "uniform"},
        {"t_min": 200, "targets": "weighted"},
    ]


def test_the_setting_whose_trial_repeats_itself_most_is_chosen(tmp_path, unet, inputs, monkeypatch):
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 0.25)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    folder = tmp_path / "tune"
    summary = tune().run(Job(folder, inputs, RUNTIME))
    trials = load_trials(folder)
    assert tried_of(trials) == [
        *((0, "uniform"), (0, "top_cohesion")),
        *((1, "uniform"), (1, "top_cohesion")),
    ]
    scores = [row["score"] for row, _ in trials]
    for (_, images), score in zip(trials, scores, strict=True):
        x = images.reshape(12, -1) / 255
        rms = np.sqrt(np.square(x[:, None] - x).mean(2)) + np.eye(12)
        assert score == pytest.approx(np.mean(rms.min(1) <= 0.05))
    assert len(set(scores)) > 1
    chosen = dict(zip(GRID, tried_of(trials)[int(np.argmax(scores))], strict=True))
    assert summary == load_choice(folder)
    assert (summary["chosen"], summary["num_trials"]) == (chosen, 4)
    assert summary["unet_forwards"] == unet.images_seen == 4 * 12 * len(TIMESTEPS)
    assert pd.read_csv(folder / "trials.csv")["score"].tolist() == pytest.approx(scores)


def test_a_trial_is_the_small_attack_and_costs_as_much(tmp_path, unet, inputs, monkeypatch):
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 0.25)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    summary = tune().run(Job(tmp_path / "tune", inputs, RUNTIME))
    trials = load_trials(tmp_path / "tune")
    for i, (row, images) in enumerate(trials):
        settings = {"guidance_scale": row["guidance_scale"], "targets": row["targets"]}
        settings |= {"num_images": 12, "shard_size": 3, "target_fraction": 0.3}
        alone = run(tmp_path / str(i), inputs, **settings)
        np.testing.assert_array_equal(images, load(tmp_path / str(i)))
        assert {name: row[name] for name in SPENT} == {name: alone[name] for name in SPENT}
    for name in SPENT:
        assert summary[name] == sum(row[name] for row, _ in trials)


def test_what_is_none_or_a_list_is_chosen_as_it_was_written(tmp_path, unet, inputs, monkeypatch):
    scores = Mock(side_effect=[0.1, 0.2, 0.6, 0.3])
    monkeypatch.setitem(SCORES, "rate", scores)
    points = [[0, 0], [400, 1]]
    grid = {"guidance_schedule": ["constant", points], "max_guidance_norm": [None, 1]}
    summary = tune(grid=grid).run(Job(tmp_path / "tune", inputs, RUNTIME))
    assert summary["chosen"] == {"guidance_schedule": points, "max_guidance_norm": None}
    assert [row["max_guidance_norm"] for row, _ in load_trials(tmp_path / "tune")] == [
        *(None, 1.0, None, 1.0)
    ]


def test_a_killed_tuning_goes_on_and_makes_no_finished_trial_again(
    tmp_path, unet, inputs, monkeypatch
):
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 0.25)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    whole = tune().run(Job(tmp_path / "whole", inputs, RUNTIME))
    interrupted = Mock(side_effect=[0.1, KeyboardInterrupt])
    with monkeypatch.context() as patch:
        patch.setitem(SCORES, "rate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune().run(Job(tmp_path / "killed", inputs, RUNTIME))
    first = json.loads((tmp_path / "killed/trials/000/trial.json").read_text())
    assert first["score"] == 0.1
    before = unet.images_seen
    tune().run(Job(tmp_path / "killed", inputs, RUNTIME))
    # The second trial's images were there; its score was not.
    assert unet.images_seen - before == 2 * 12 * len(TIMESTEPS)
    trials = load_trials(tmp_path / "killed")
    assert trials[0][0] == first
    again = tune().run(Job(tmp_path / "killed", inputs, RUNTIME))
    assert {name: again[name] for name in SPENT} == {name: whole[name] for name in SPENT}
    for (_, ours), (_, theirs) in zip(trials, load_trials(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_trial_whose_images_are_not_whole_is_made_again(tmp_path, unet, inputs, monkeypatch):
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 0.25)
    whole = tune().run(Job(tmp_path / "tune", inputs, RUNTIME))
    expected = load_trials(tmp_path / "tune")
    os.truncate(tmp_path / "tune/trials/001/shards/000001.npy", 130)
    assert tune().run(Job(tmp_path / "tune", inputs, RUNTIME)) == whole
    for (_, ours), (_, theirs) in zip(load_trials(tmp_path / "tune"), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_reads_what_its_attack_reads_and_nothing_for_one_that_is_not_tuned():
    assert tune().inputs() == ("dpm", "generate", "label")
    assert tune({"surrogate": "classifier"}).inputs() == ("dpm", "generate", "label", "classifier")
    assert tune({"surrogate": "lora"}).inputs() == ("dpm", "generate", "label", "lora")
    assert tune({"tuned": False}).inputs() == ()
    assert tune({"surrogate": "none"}).inputs() == ()


@pytest.mark.parametrize(
    "of",
    [
        {"num_images": 1000},
        {"shard_size": 7},
        {"rounds": 3, "stop_rounds": False},
        {"near_duplicates": near_duplicates(0.5)},
        {"guidance_scale": 7.0},  # the grid's to say
        {"targets": "weighted"},
        {"surrogate": {"name": "posterior"}},
    ],
)
def test_attacks_that_differ_in_what_no_trial_uses_share_one_tuning(of):
    assert key_settings(of) == key_settings()


@pytest.mark.parametrize(
    ("of", "changes"),
    [
        ({"t_min": 100}, {}),
        ({"target_fraction": 0.5}, {}),  # some trials aim at the most cohesive labels
        ({"num_inference_steps": 10}, {}),
        ({"seed": 1}, {}),
        ({"surrogate": CUT}, {}),
        ({"surrogate": "classifier"}, {}),
        ({}, {"num_images": 13}),
        ({}, {"near_duplicates": near_duplicates(0.1)}),
        ({}, {"score": "groups"}),
        ({"refine": FixedPoint(t=100, steps=2)}, {}),
        ({}, {"near_duplicates": {**near_duplicates(0.05), "features": PIXELS}}),
        ({}, {"grid": {**GRID, "guidance_scale": [0.0, 2.0]}}),
    ],
)
def test_whatever_a_trial_depends_on_is_part_of_the_key(of, changes):
    assert key_settings(of, **changes) != key_settings()


def test_the_target_fraction_counts_where_some_trial_uses_it():
    grid = {"targets": ["uniform", "weighted"]}
    assert key_settings({"target_fraction": 0.5}, grid=grid) == key_settings(grid=grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {}}, "tune.grid must be settings with values to try"),
        ({"grid": {"lambda": [1]}}, "tune.grid does not accept 'lambda'"),
        ({"grid": {"num_images": [5]}}, "tune.grid does not accept 'num_images'"),
        ({"grid": {"t_min": 5}}, "tune.grid.t_min must be a list of values to try, got 5"),
        ({"grid": {"t_min": []}}, "tune.grid.t_min must be a list of values"),
        ({"grid": {"t_min": [0, "late"]}}, "tune.grid.t_min must be a whole number, got 'late'"),
        (
            {"grid": {"guidance_scale": [1, -1]}},
            "guidance.guidance_scale must be >= 0, got -1",
        ),
        ({"grid": {"targets": ["tight"]}}, "tune.grid.targets does not accept 'tight'"),
        ({"grid": {"t_min": [0, 951]}}, r"one of the 20 timesteps from 0 to 950 .* got \[951"),
        ({"grid": {"guidance_schedule": [[0, 1]]}}, r"guidance_schedule must be .* got \[0, 1\]"),
        (
            {"grid": {"refine": {"t": [-1]}}, "of": REFINED},
            "extract.refine.t must be >= 0, got -1",
        ),
        (
            {"grid": {"refine": {"t": ["late"]}}, "of": REFINED},
            "tune.grid.refine.t must be a whole number, got 'late'",
        ),
        (
            {"grid": {"refine": {"noise": [1]}}, "of": REFINED},
            "tune.grid does not accept 'refine.noise'",
        ),
        (
            {"grid": {"refine": [30]}, "of": REFINED},
            r"tune.grid.refine must be values to try by setting, .* got \[30\]",
        ),
        ({"of": REFINED}, "tune.grid must be with settings of refine where"),
        ({"num_images": 1}, "tune.num_images must be >= 2, got 1"),
        ({"score": "apart"}, "tune.score must be rate or groups where tune.grid has no refine.t"),
    ],
)
def test_a_grid_that_cannot_be_tried_is_refused_at_the_start(changes, message):
    with pytest.raises(ValueError, match=message):
        checked(tune(**changes), {"dpm": DPM}, RUNTIME)


def test_of_an_attack_that_is_not_tuned_only_the_names_of_the_grid_are_checked():
    grid = {"guidance_schedule": ["constant", "classifier_quality"]}
    checked(tune({"tuned": False}, grid=grid), {}, RUNTIME)
    with pytest.raises(ValueError, match="'constant' or points where"):
        checked(tune(grid=grid), {"dpm": DPM}, RUNTIME)


# plain samples, whose refinement alone is tuned


def test_of_plain_samples_only_the_refinement_is_tried_and_no_label_is_read(tmp_path, unet, inputs):
    grid = {**GRID, "refine": {"t": [100, 300, 500]}}
    stage = tune(REFINED, grid=grid, score="groups")
    assert stage.inputs() == ("dpm",)
    assert stage.points == [{"refine.t": t} for t in (100, 300, 500)]
    chosen = stage.run(Job(tmp_path / "tune", {"dpm": inputs["dpm"]}, RUNTIME))["chosen"]
    found = [row["score"] for row, _ in load_trials(tmp_path / "tune")]
    assert chosen == {"refine.t": (100, 300, 500)[int(np.argmax(found))]}
    assert unet.images_seen == 3 * 12 * (len(TIMESTEPS) + 2)


def test_apart_chooses_the_most_noise_that_keeps_different_images_apart(tmp_path, unet, inputs):
    levels = [100, 300, 500, 700]
    stage = tune(REFINED, grid={"refine": {"t": levels}}, score="apart")
    chosen = stage.run(Job(tmp_path / "tune", {"dpm": inputs["dpm"]}, RUNTIME))["chosen"]
    apart = []
    for row, images in load_trials(tmp_path / "tune"):
        x = np.unique(images.reshape(len(images), -1), axis=0) / 127.5 - 1
        alpha_bar = float(ALPHAS_CUMPROD[row["refine.t"]])
        squares = np.square(x[:, None] - x).sum(2)
        closeness = np.exp(-squares * alpha_bar / (8 * (1 - alpha_bar))).sum(1) - 1
        if (1 - np.minimum(1, closeness / 2)).mean() >= 0.5:
            apart.append(row["refine.t"])
    assert 0 < len(apart) < len(levels), "or every level is alike"
    assert chosen == {"refine.t": max(apart)}


def test_plain_samples_without_refinement_have_nothing_to_tune():
    stage = tune({"surrogate": "none"}, grid={"t_min": [0]})
    assert stage.inputs() == ()
    checked(stage, {}, RUNTIME)
