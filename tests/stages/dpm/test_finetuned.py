"""Fine-tuning: from the weights of the base, all of them or LoRA alone, and the base is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from tests.models.tiny_pipelines import dit, of_images, schedule
from tests.stages.dpm.test_pretrained import assert_same_weights, network, saved
from tests.tiny import DIGITS, RUNTIME, SETTINGS, checked

from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.finetuned import FinetunedDPM
from sidepipe.stages.dpm.stage import load, load_subset
from sidepipe.stages.generate.stage import load_denoiser

# Of 120 steps.
ONE_VALIDATION = {"preview_every_steps": 120, "checkpoint_every_steps": 120}


def finetuned(path, **changes):
    settings = {n: v for n, v in SETTINGS.items() if n not in ("unet", "noise_schedule")}
    settings |= {"path": str(path), "revision": None, "variant": None}
    settings |= {
        "num_base_images": 0,
        "rank": None,
        "target_modules": ["conv1", "time_emb_proj"],
        **changes,
    }
    return FinetunedDPM(**settings)


def run(stage, folder, data):
    checked(stage, {"data": DIGITS}, RUNTIME)
    folder.mkdir()
    return stage.run(Job(folder, {"data": data}, RUNTIME))


@pytest.mark.parametrize(("rank", "share"), [(None, 1.0), (2, 0.3)])
def test_it_begins_at_the_base_and_lowers_the_loss_of_its_images(tmp_path, data, rank, share):
    base = saved(tmp_path / "base")
    # Steps of nearly no length: the result is the base, whatever its initial random numbers.
    still = finetuned(base, rank=rank, lr=1e-12, weight_decay=0.0)
    run(still, tmp_path / "still", data)
    for name, value in load(tmp_path / "still")["unet"].state_dict().items():
        torch.testing.assert_close(value, network().state_dict()[name], atol=1e-6, rtol=0)
    stage = finetuned(base, rank=rank, max_steps=120, ema_decay=0.5, **ONE_VALIDATION)
    summary = run(stage, tmp_path / "dpm", data)
    assert stage.has_base
    assert_same_weights(load(tmp_path / "dpm", "base")["unet"], network())
    images = np.load(data / "images.npy")[load_subset(tmp_path / "dpm")[0]]
    losses = [loss(load_denoiser(tmp_path / "dpm", "32-true", part=p), images) for p in PARTS]
    assert losses[0] < 0.9 * losses[1]
    assert summary["num_parameters"] == network().num_parameters()
    assert summary["num_trained_parameters"] <= share * summary["num_parameters"]
    assert not [name for name in load(tmp_path / "dpm")["unet"].state_dict() if "lora" in name]


PARTS = ("model", "base")


def loss(denoiser, images, t=10):
    from sidepipe.diffusion.schedule import add_noise

    x_0 = denoiser.encode(torch.from_numpy(images))
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    x_t = add_noise(x_0, eps, torch.full((len(x_0),), t), denoiser.alphas_cumprod)
    return (denoiser.eps_fn(None)(x_t, t) - eps).square().mean().item()


@pytest.mark.parametrize(
    ("scheduler", "rank"),
    [(EDMEulerScheduler(), 2), (FlowMatchEulerDiscreteScheduler(), None)],
    ids=["edm", "flow"],
)
def test_a_model_of_continuous_time_is_trained_at_the_levels_where_it_is_sampled(
    tmp_path, data, scheduler, rank
):
    base = of_images(tmp_path / "base", scheduler)
    stage = finetuned(base, rank=rank, max_steps=120, ema_decay=0.5, **ONE_VALIDATION)
    run(stage, tmp_path / "dpm", data)
    images = np.load(data / "images.npy")[load_subset(tmp_path / "dpm")[0]]
    for t in (100, 300):
        own, other = (load_denoiser(tmp_path / "dpm", "32-true", part=part) for part in PARTS)
        assert loss(own, images, t) < 0.9 * loss(other, images, t)
    assert type(load(tmp_path / "dpm")["scheduler"]) is type(scheduler)


def test_layers_without_lora_stay_those_of_the_base(tmp_path, data):
    run(finetuned(saved(tmp_path / "base"), rank=2), tmp_path / "dpm", data)
    before, after = network().state_dict(), load(tmp_path / "dpm")["unet"].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.split(".")[-2] in ("conv1", "time_emb_proj") for name in changed)


def test_images_of_the_base_are_neither_trained_on_nor_held_out(tmp_path, data):
    base = saved(tmp_path / "base")
    run(finetuned(base, num_base_images=100, num_train_images=12), tmp_path / "dpm", data)
    train, heldout = load_subset(tmp_path / "dpm")
    run(finetuned(base, num_train_images=100), tmp_path / "of_base", data)
    of_base = load_subset(tmp_path / "of_base")[0]
    assert (len(train), len(heldout)) == (12, 1797 - 100 - 12)
    assert not set(of_base) & {*train, *heldout}
    for count in (None, 1790):
        stage = finetuned(base, num_base_images=100, num_train_images=count)
        with pytest.raises(
            ValueError, match=r"num_train_images must be a number in \[1, 1697\] next"
        ):
            stage.split(data, RUNTIME)


def test_a_changed_base_is_noticed(tmp_path, data):
    base = saved(tmp_path / "base")
    stage = finetuned(base)
    summary = run(stage, tmp_path / "dpm", data)
    assert stage.source_changed(summary, RUNTIME) is None
    saved(base, network(layers_per_block=2))
    assert "changed since" in stage.source_changed(summary, RUNTIME)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (dit, r"dpm.path must be a model of images, to be fine-tuned here, got 'a DiT model'; cho"),
        (lambda at: of_images(at, num_class_embeds=3), r"got 'one of 3 classes'"),
        (
            lambda at: of_images(at, schedule(), out_channels=2),
            r"got 'one that predicts its variance'",
        ),
    ],
)
def test_models_that_are_not_trained_here_are_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        checked(finetuned(make(tmp_path / "base")), {"data": DIGITS}, RUNTIME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "there"}, r"dpm.base must be null, got 'there'; dpm.path names the base"),
        ({"num_base_images": -1}, r"dpm.num_base_images must be >= 0, got -1"),
        ({"rank": 0}, r"dpm.rank must be >= 1 or null, got 0"),
        ({"max_steps": 3}, r"dpm.ema_start_step must be < dpm.max_steps = 3"),
        ({"batch_size": 7}, r"dpm.batch_size must be divisible by the number of devices, 2"),
        ({"rank": 2, "target_modules": ["conv9"]}, r"dpm.target_modules names \['conv9'\]"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, data, changes, message):
    base, runtime = saved(tmp_path / "base"), RUNTIME
    if "batch_size" in changes:
        runtime = replace(RUNTIME, devices=2)
    (tmp_path / "dpm").mkdir()

    def all_steps():
        stage = finetuned(base, **changes)
        checked(stage, {"data": DIGITS}, runtime)
        stage.run(Job(tmp_path / "dpm", {"data": data}, runtime))

    with pytest.raises(ValueError, match=message):
        all_steps()
