"""Training of a shadow model on the samples of another."""

import json

import numpy as np
import pytest
from tests.tiny import DIGITS, RUNTIME, SCHEDULE, SETTINGS, UNET

from sidepipe.base.files import write_json
from sidepipe.base.settings import build
from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.pretrained_text import PretrainedTextDPM
from sidepipe.stages.dpm.stage import load as load_dpm
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.stages.generate.stage import Generate
from sidepipe.stages.shadow import stage as module
from sidepipe.stages.shadow.stage import Shadow, load_split

OF_TRAINING = (
    *("max_steps", "batch_size", "lr", "weight_decay", "lr_warmup_steps", "ema_decay"),
    *("ema_start_step", "gradient_clip_val", "random_flip", "precision", "log_every_steps"),
    *("checkpoint_every_steps", "preview_every_steps", "seed"),
)
OWN = {name: SETTINGS[name] for name in OF_TRAINING} | {"num_images": 30}
GENERATE = Generate(
    num_images=60,
    sampler="ddim",
    num_inference_steps=2,
    eta=0.0,
    timestep_spacing=None,
    prompts=None,
    condition_guidance_scale=1.0,
    precision="32-true",
    shard_size=60,
    seed=0,
)
DPM = TrainDPM(**SETTINGS)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    from diffusers import DDPMPipeline

    for name in ("dpm", "generate"):
        (tmp_path / name).mkdir()
    pipeline = DDPMPipeline(unet=build(UNET), scheduler=build(SCHEDULE))
    pipeline.save_pretrained(tmp_path / "dpm" / "model")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    monkeypatch.setattr(module, "load_synthetic", lambda folder: images)
    return {name: tmp_path / name for name in ("dpm", "generate")}


def run(inputs, folder, **changes):
    folder.mkdir(exist_ok=True)
    return Shadow(**(OWN | changes)).run(Job(folder, inputs, RUNTIME))


def test_a_shadow_has_the_network_and_the_schedule_of_its_model(inputs, tmp_path):
    summary = run(inputs, tmp_path / "shadow")
    assert (summary["num_train_images"], summary["num_heldout_images"]) == (30, 30)
    own, theirs = load_dpm(tmp_path / "shadow"), load_dpm(inputs["dpm"])
    differs = {"_name_or_path", "_diffusers_version", "_use_default_values"}
    for part in ("unet", "scheduler"):
        a, b = (dict(parts[part].config) for parts in (own, theirs))
        assert {k: v for k, v in a.items() if k not in differs} == {
            k: v for k, v in b.items() if k not in differs
        }
    weights = [parts["unet"].state_dict() for parts in (own, theirs)]
    assert all(not (weights[0][k] == weights[1][k]).all() for k in ("conv_in.weight",))


def test_its_first_weights_are_not_those_of_a_model_with_the_same_seed(inputs, tmp_path):
    import lightning as L

    run(inputs, tmp_path / "shadow", max_steps=1, ema_start_step=0, lr=1e-12, lr_warmup_steps=0)
    L.seed_everything(OWN["seed"], verbose=False)
    same_seed = build(UNET).state_dict()["conv_in.weight"]
    found = load_dpm(tmp_path / "shadow")["unet"].state_dict()["conv_in.weight"]
    assert (found - same_seed).abs().max() > 1e-3


def test_the_split_of_a_finished_shadow_is_that_of_its_training(tmp_path, monkeypatch):
    images = np.arange(60).reshape(60, 1, 1, 1).astype(np.uint8)
    monkeypatch.setattr(module, "load_synthetic", lambda folder: images)
    folder = tmp_path / "shadow" / "abc"
    folder.mkdir(parents=True)
    about = {"summary": {"num_train_images": 7}, "inputs": {"generate": "def"}, "files": {}}
    write_json(folder / "manifest.json", about)
    train, unseen = load_split(folder)
    assert train.flatten().tolist() == list(range(7))
    assert unseen.flatten().tolist() == list(range(7, 60))
    assert json.loads((folder / "manifest.json").read_text())["inputs"] == {"generate": "def"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 1}, "shadow.num_images must be >= 2, got 1"),
        ({"ema_start_step": 20}, r"shadow.ema_start_step must be in \[0, shadow.max_steps = 20\)"),
        ({"ema_decay": 1.0}, r"shadow.ema_decay must be in \[0, 1\), got 1"),
        ({"preview_every_steps": 0}, "shadow.preview_every_steps must be >= 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Shadow(**(OWN | changes))


def test_enough_samples_must_be_left_to_set_the_threshold():
    upstream = {"data": DIGITS, "dpm": DPM, "generate": GENERATE}
    Shadow(**OWN | {"num_images": 40}).check_model(upstream)
    rule = "shadow.num_images must be <= 40, generate.num_images less 20 held-out ones, got 41"
    with pytest.raises(ValueError, match=rule):
        Shadow(**OWN | {"num_images": 41}).check_model(upstream)


def test_a_text_model_is_refused():
    dpm = PretrainedTextDPM.__new__(PretrainedTextDPM)
    with pytest.raises(ValueError, match=r"dpm must be an unconditional model of images"):
        Shadow(**OWN).check_model({"dpm": dpm, "generate": GENERATE})
