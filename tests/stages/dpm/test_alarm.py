"""A training that stops when it memorizes: it stops where it must, and only there."""

import json
import logging

import pytest
from tests.tiny import RUNTIME, checked

from sidepipe.engine.stage import Job
from sidepipe.memorization.clock import Look, level_of
from sidepipe.stages.dpm import alarm
from sidepipe.stages.dpm.module import DenoisingModule
from sidepipe.stages.dpm.stage import load

SETTINGS = {
    "_target_": "sidepipe.stages.dpm.alarm.Alarm",
    "num_images": 40,
    "num_inference_steps": 5,
    "refine_steps": 2,
    "refine_t": 3,
    "false_positive_rate": 0.01,
    "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
}
ONE_IMAGE = {
    "num_train_images": 1,
    "max_steps": 240,
    "noise_schedule": {"num_train_timesteps": 50, "beta_end": 0.2},
    "unet": {"block_out_channels": [8, 8]},
    "random_flip": False,
    "log_every_steps": 240,
    "checkpoint_every_steps": 240,
    "preview_every_steps": 60,
}


@pytest.fixture
def stage(train_dpm):
    """A training with the alarm; changes of its settings, and of the training's."""

    def make(changes=None, **settings):
        return train_dpm(
            stop_when_memorizing=True, alarm={**SETTINGS, **(changes or {})}, **settings
        )

    return make


@pytest.fixture
def judged(monkeypatch):
    """Planted looks: memorization is certain from a step on, of which the samples tell nothing."""

    def plant(first):
        asked = []

        def judge(images, **_):
            asked.append(len(images))
            sure = len(asked) >= first
            return Look(len(images), 9 * sure, 0.5, 0.2 * sure, 0.1 * sure, 4 * sure, 0, 0.5, sure)

        monkeypatch.setattr(alarm, "_judge", judge)
        return asked

    return plant


def test_a_training_on_one_image_stops_and_its_manifest_says_why(tmp_path, data, stage, caplog):
    caplog.set_level(logging.INFO, logger="sidepipe")
    summary = stage(**ONE_IMAGE).run(Job(tmp_path, {"data": data}, RUNTIME))
    found = summary["alarm"]
    step = found["stopped_at"]
    assert step in (60, 120, 180)
    assert found["looks"] == step // 60
    assert found["planned_looks"] == 4
    assert found["level"] == level_of(4)
    assert found["evaluations"] == found["looks"] * 40 * (5 + 2)
    assert found["seconds"] > 0
    assert found["last"]["different"] == 1
    assert found["last"]["low"] > 0
    assert summary["epochs"] == step * 8
    message = f"step {step}: {found['last']['hits']} of 40 refined samples are hits"
    assert any(message in text and "training stops" in text for text in caplog.messages)
    assert json.loads((tmp_path / "looks.json").read_text())[-1] == found["last"]
    assert summary["val/refined_hits"] == found["last"]["hits"]


def test_a_training_that_cannot_memorize_goes_to_its_end(tmp_path, data, stage):
    summary = stage(num_train_images=800).run(Job(tmp_path, {"data": data}, RUNTIME))
    assert summary["alarm"]["stopped_at"] is None
    assert summary["alarm"]["looks"] == 2
    assert summary["epochs"] == 20 * 8 / 800


def test_a_stopped_training_is_that_of_so_many_steps(tmp_path, data, stage, train_dpm, judged):
    judged(first=2)
    changes = {"preview_every_steps": 5, "lr_warmup_steps": 1}
    (stopped := tmp_path / "stopped").mkdir()
    found = stage(**changes).run(Job(stopped, {"data": data}, RUNTIME))["alarm"]
    assert found["stopped_at"] == 10
    (short := tmp_path / "short").mkdir()
    train_dpm(max_steps=10, **changes).run(Job(short, {"data": data}, RUNTIME))
    own, other = (load(folder)["unet"].state_dict() for folder in (stopped, short))
    assert all(own[name].equal(other[name]) for name in own)


@pytest.mark.parametrize(("killed_at", "kept"), [(7, 1), (11, 1), (13, 2)])
def test_a_killed_training_looks_again_and_stops_at_the_same_step(
    tmp_path, data, stage, monkeypatch, killed_at, kept
):
    """With new samples at every look, which are those of the run that is not killed."""
    seen = {}

    def judge(images, **_):
        name = images.tobytes()
        sure = len(seen.setdefault("now", [])) == 2
        seen["now"].append(name)
        return Look(len(images), 0, 0.0, 0.0, 0.0, 0, 0, 1.0, sure)

    monkeypatch.setattr(alarm, "_judge", judge)
    one = stage(preview_every_steps=5, checkpoint_every_steps=6)
    (whole := tmp_path / "whole").mkdir()
    expected = one.run(Job(whole, {"data": data}, RUNTIME))
    assert expected["alarm"]["stopped_at"] == 15
    looked = seen.pop("now")
    assert len(set(looked)) == 3
    step = DenoisingModule.training_step

    def failing(self, *args):
        if self.global_step == killed_at:
            raise KeyError("the machine broke down")
        return step(self, *args)

    monkeypatch.setattr(DenoisingModule, "training_step", failing)
    (broken := tmp_path / "broken").mkdir()
    with pytest.raises(KeyError, match="broke down"):
        one.run(Job(broken, {"data": data}, RUNTIME))
    monkeypatch.setattr(DenoisingModule, "training_step", step)
    seen["now"] = seen["now"][:kept]  # up to the checkpoint of step 6 or 12
    found = one.run(Job(broken, {"data": data}, RUNTIME))
    assert seen["now"] == looked
    for result in (found, expected):
        result["alarm"].pop("seconds")
        result["alarm"]["last"].pop("seconds")
    assert found == expected


def test_a_run_killed_after_its_stop_does_not_train_on(tmp_path, data, stage, judged, monkeypatch):
    asked = judged(first=2)
    one = stage(preview_every_steps=5)
    one.run(Job(tmp_path, {"data": data}, RUNTIME))
    assert len(asked) == 2
    monkeypatch.setattr(DenoisingModule, "training_step", lambda *_: pytest.fail("trained on"))
    assert one.run(Job(tmp_path, {"data": data}, RUNTIME))["alarm"]["stopped_at"] == 10
    assert len(asked) == 2


def test_the_alarm_is_of_the_averaged_weights(tmp_path, data, stage, judged, monkeypatch):
    judged(first=1)
    refined, weights = alarm.Alarm.refined, []

    def remembering(self, module, first):
        weights.append({n: v.clone() for n, v in module.unet.state_dict().items()})
        return refined(self, module, first)

    monkeypatch.setattr(alarm.Alarm, "refined", remembering)
    stage().run(Job(tmp_path, {"data": data}, RUNTIME))
    saved = load(tmp_path)["unet"].state_dict()
    assert all(value.equal(saved[name]) for name, value in weights[-1].items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 0}, r"dpm\.alarm\.num_images must be >= 1, got 0"),
        ({"false_positive_rate": 1}, r"dpm\.alarm\.false_positive_rate must be in \(0, 1\)"),
        ({"refine_t": 20}, r"dpm\.alarm\.refine_t must be < 20"),
        ({"num_inference_steps": 21}, r"dpm\.alarm\.num_inference_steps must be <= 20"),
    ],
)
def test_wrong_settings_of_the_alarm_are_named(stage, digits, changes, message):
    with pytest.raises(ValueError, match=message):
        checked(stage(changes), {"data": digits})


def test_an_alarm_that_is_off_does_not_change_the_key(train_dpm):
    off, other = train_dpm(alarm=SETTINGS), train_dpm(alarm={**SETTINGS, "num_images": 7})
    assert off.key_settings(vars(off)) == other.key_settings(vars(other))
