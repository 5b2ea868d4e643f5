"""Settings of training against memorization: each changes the model, and wrong ones are named."""

import numpy as np
import pytest
from tests.tiny import RUNTIME, checked

from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.mitigations import fixed_noise
from sidepipe.stages.dpm.stage import load, load_subset

WEIGHTING = {"t_min": 2, "t_max": 9, "weight": 0.1}
PLAIN = {"random_flip": False}


@pytest.mark.parametrize(
    "changes",
    [{"random_shift": 1}, {"loss_weighting": WEIGHTING}, {"ambient_t": 5}],
    ids=lambda changes: next(iter(changes)),
)
def test_each_mitigation_trains_another_model_on_the_same_split(tmp_path, data, train_dpm, changes):
    folders = [tmp_path / "plain", tmp_path / "mitigated"]
    for folder, own in zip(folders, ({}, changes), strict=True):
        folder.mkdir()
        summary = train_dpm(**PLAIN, **own).run(Job(folder, {"data": data}, RUNTIME))
        assert summary["val/loss_heldout"] > 0
    assert (load_subset(folders[0])[0] == load_subset(folders[1])[0]).all()
    own, other = (load(folder)["unet"].state_dict() for folder in folders)
    assert not own["conv_in.weight"].equal(other["conv_in.weight"])


def test_training_images_alone_have_fixed_noise():
    noise = fixed_noise(5, np.array([3, 1]), (1, 2, 2), seed=0)
    assert (noise[[0, 2, 4]] == 0).all()
    assert (noise[[1, 3]] != 0).all()
    assert (fixed_noise(9, np.array([1, 3]), (1, 2, 2), seed=0)[[1, 3]] == noise[[1, 3]]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_shift": -1}, r"dpm\.random_shift must be >= 0, got -1"),
        ({"loss_weighting": {"t_min": 3}}, r"dpm\.loss_weighting must be null, or \{t_min"),
        ({"loss_weighting": {**WEIGHTING, "weight": 1}}, r"a weight in \[0, 1\)"),
        ({"loss_weighting": {**WEIGHTING, "t_min": 10}}, r"0 <= t_min <= t_max"),
        ({"ambient_t": -1}, r"dpm\.ambient_t must be >= 0 or null"),
        ({"random_shift": 8}, r"dpm\.random_shift must be < data\.size = 8, got 8"),
        ({"ambient_t": 20}, r"dpm\.ambient_t must be < 20, the timesteps"),
        ({"loss_weighting": {**WEIGHTING, "t_max": 20}}, r"loss_weighting\.t_max must be < 20"),
        ({"ambient_t": 5, "random_shift": 1}, r"dpm\.ambient_t must be null with"),
        ({"ambient_t": 5, "random_flip": True}, r"dpm\.ambient_t must be null with"),
    ],
)
def test_wrong_settings_are_named(train_dpm, digits, changes, message):
    with pytest.raises(ValueError, match=message):
        checked(train_dpm(**{**PLAIN, **changes}), {"data": digits})
