"""What each row of the comparison is called in words."""

import dataclasses
from pathlib import Path

import pytest

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.rows import described, is_side
from sidepipe.stages.report.words import refinement

REFINED = {"name": "fixed_point", "t": 60, "steps": 8}
SIDE = {
    "surrogate": {"name": "classifier", "guide_through": "x_t"},
    "guidance": {
        "guidance_schedule": "constant",
        "targets": "uniform",
        "target_fraction": 0.1,
        "t_min": 0,
        "t_max": None,
    },
    "tuned": False,
    "rounds": 1,
    "refine": {"name": "none"},
}


def attack(extract=None, label=None, classifier=None):
    extract = dict(extract or {})
    guidance = {name: extract.pop(name, value) for name, value in SIDE["guidance"].items()}
    manifests = {
        "extract": {"settings": {**SIDE, "guidance": guidance, **extract}, "summary": {}},
        "label": {"settings": {"assign": "all", **(label or {})}},
        "classifier": {"settings": {"noised": True, "labels": "hard", **(classifier or {})}},
    }
    return Attack("row", Path(), {}, manifests)


def test_the_published_attack_is_named():
    assert is_side(attack())
    assert described(attack()) == (
        "SIDE as published: a classifier of clusters of the model's own images guides sampling"
    )


CHANGED = [
    ({"surrogate": {"name": "none"}}, {}, {}),
    ({"surrogate": {"name": "posterior"}}, {}, {}),
    ({"surrogate": {"name": "lora"}}, {}, {}),
    ({"surrogate": {"name": "classifier", "guide_through": "pred_x_0"}}, {}, {}),
    ({"guidance_schedule": "classifier_quality"}, {}, {}),
    ({"targets": "top_cohesion"}, {}, {}),
    ({"targets": "weighted"}, {}, {}),
    ({"t_min": 200}, {}, {}),
    ({"t_max": 900}, {}, {}),
    ({"tuned": True}, {}, {}),
    ({"rounds": 3}, {}, {}),
    ({"refine": REFINED}, {}, {}),
    ({}, {"assign": "members"}, {}),
    ({}, {"assign": "repeats"}, {}),
    ({}, {"assign": "random"}, {}),
    ({}, {"assign": "original"}, {}),
    ({}, {}, {"noised": False}),
    ({}, {}, {"labels": "posterior"}),
]


@pytest.mark.parametrize(("extract", "label", "classifier"), CHANGED)
def test_whatever_differs_from_the_published_attack_is_said(extract, label, classifier):
    changed = attack(extract, label, classifier)
    assert not is_side(changed)
    assert "SIDE" not in described(changed)
    assert described(changed) != described(attack()).removeprefix("SIDE as published: ")


def test_no_two_rows_that_differ_are_described_alike():
    told = [described(attack(*changed)) for changed in CHANGED]
    assert len(set(told)) == len(told)


def test_triggers_are_named():
    plain = attack({"surrogate": {"name": "lora"}})
    lora = {"settings": {"condition": "trigger"}}
    triggered = dataclasses.replace(plain, manifests={**plain.manifests, "lora": lora})
    expected = f"{described(plain)}, each of which has a trigger string as its prompt"
    assert described(triggered) == expected


def test_refinement_is_explained_by_its_steps_and_noise_level():
    assert described(attack({"surrogate": {"name": "none"}, "refine": REFINED})) == (
        "plain sampling; then refinement: each finished image is denoised 8 times from t = 60"
    )


@pytest.mark.parametrize(
    ("refine", "words", "told"),
    [
        (
            {"name": "cyclic", "t": 100, "steps": 9, "noise": 1.0, "denoising_steps": 50},
            "9 times from t = 100 in 50 steps, each time with 100\N{NO-BREAK SPACE}% of its noise "
            "added",
            "9 x 50 at t = 100, noise 1",
        ),
        (
            {"name": "annealed", "levels": [90, 60]},
            "once from each of t = 90, 60",
            "2 at t = 90, 60",
        ),
        (
            {"name": "union", "levels": [60, 30], "steps": 8, "kept": 5},
            "8 times from each of t = 60, 30, and the last 5 results of each are candidates",
            "8 at t = 60, 30, 5 kept of each",
        ),
        (
            {"name": "relaxed", "t": 60, "steps": 5, "kept": 3, "relaxation": 1.5},
            "5 times from t = 60, each time 1.5 times as far, and the last 3 results are "
            "candidates",
            "5 at t = 60, 1.5 times as far, 3 kept of each",
        ),
    ],
)
def test_each_strategy_of_refinement_is_told_in_words(refine, words, told):
    of = attack({"surrogate": {"name": "none"}, "refine": refine})
    assert described(of).endswith(f"each finished image is denoised {words}")
    assert refinement(of) == told


def test_rows_of_different_cost_are_told_apart():
    plain = {"surrogate": {"name": "none"}, "refine": REFINED}
    told = [described(attack({**plain, "num_inference_steps": n})) for n in (10, 50)]
    assert told[0].startswith("plain sampling in 10 steps; then refinement")
    assert told[1].startswith("plain sampling in 50 steps; then refinement")
