"""Kept checkpoints: the averaged weights of their step, and models that other stages take."""

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import RUNTIME

import sidepipe
from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.kept import kept
from sidepipe.stages.dpm.module import DenoisingModule
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.stage import load_subset

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_kept_checkpoint_is_the_model_of_a_training_that_ends_there(tmp_path, data, train_dpm):
    changes = {"lr_warmup_steps": 1, "checkpoint_every_steps": 20, "preview_every_steps": 20}
    (long := tmp_path / "long").mkdir()
    train_dpm(keep_every_steps=[5, 12, 20], **changes).run(Job(long, {"data": data}, RUNTIME))
    assert list(kept(long)) == [5, 12, 20]
    (short := tmp_path / "short").mkdir()
    train_dpm(max_steps=12, **changes).run(Job(short, {"data": data}, RUNTIME))
    assert contents(long / "checkpoints/step_0000012") == contents(short / "model")
    assert contents(long / "checkpoints/step_0000020") == contents(long / "model")


def test_checkpoints_at_equal_distances(tmp_path, data, train_dpm):
    train_dpm(keep_every_steps=6).run(Job(tmp_path, {"data": data}, RUNTIME))
    assert list(kept(tmp_path)) == [6, 12, 18]


def test_multiples_before_averaging_are_not_kept(train_dpm):
    assert train_dpm(keep_every_steps=2).kept_steps == [4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert train_dpm(keep_every_steps=None).kept_steps == []


def test_an_interrupted_run_keeps_the_same_checkpoints(tmp_path, data, train_dpm, monkeypatch):
    stage = train_dpm(keep_every_steps=[5, 8, 15], checkpoint_every_steps=6)
    (whole := tmp_path / "whole").mkdir()
    stage.run(Job(whole, {"data": data}, RUNTIME))
    step = DenoisingModule.training_step

    def failing(self, *args):
        if self.global_step == 9:
            raise KeyError("the machine broke down")
        return step(self, *args)

    monkeypatch.setattr(DenoisingModule, "training_step", failing)
    (broken := tmp_path / "broken").mkdir()
    with pytest.raises(KeyError, match="broke down"):
        stage.run(Job(broken, {"data": data}, RUNTIME))
    monkeypatch.undo()
    torch.save({}, broken / "checkpoints/step_0000008" / WEIGHTS)  # half a file, say
    stage.run(Job(broken, {"data": data}, RUNTIME))
    assert contents(broken / "checkpoints") == contents(whole / "checkpoints")


def test_a_kept_checkpoint_is_attacked_like_any_model(tmp_path, data, train_dpm):
    (trained := tmp_path / "trained").mkdir()
    train_dpm(keep_every_steps=10).run(Job(trained, {"data": data}, RUNTIME))
    path = kept(trained)[10]
    stage = PretrainedDPM(
        path=str(path),
        revision=None,
        variant=None,
        num_train_images=20,
        train_partitions=None,
        subset_seed=0,
    )
    (taken := tmp_path / "taken").mkdir()
    stage.run(Job(taken, {"data": data}, RUNTIME))
    for own, other in zip(load_subset(taken), load_subset(trained), strict=True):
        assert own.tolist() == other.tolist()
    saved, original = load_file(taken / "model" / WEIGHTS), load_file(path / WEIGHTS)
    assert all(value.equal(original[name]) for name, value in saved.items())
    assert sidepipe.load(str(path)).sample(2, num_inference_steps=2).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("steps", [0, -1, 21, [4, 4], [8, 6], [2, 8], []])
def test_steps_before_averaging_or_after_training_are_refused(train_dpm, steps):
    with pytest.raises(
        ValueError, match=r"dpm\.keep_every_steps must be null, a number in \[1, 20\]"
    ):
        train_dpm(keep_every_steps=steps)
