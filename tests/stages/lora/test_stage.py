import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.text.tiny import PIPELINES, tiny_text_model
from tests.models.tiny_pipelines import latent

from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import clip_x_0
from sidepipe.engine.shards import write_shard
from sidepipe.engine.stage import Job, Runtime
from sidepipe.models.text.denoiser import PromptedDenoiser
from sidepipe.models.text.pipeline import save_model
from sidepipe.stages.generate.stage import load_denoiser
from sidepipe.stages.lora import adapters, stage
from sidepipe.stages.lora.adapters import triggers_of
from sidepipe.stages.lora.module import LabeledDenoisingModule
from sidepipe.stages.lora.stage import Lora, load, load_training_evaluations

RUNTIME = Runtime(accelerator="cpu")


def lora(**changes) -> Lora:
    settings = {
        "rank": 4,
        "target_modules": ["conv1", "conv2", "time_emb_proj"],
        "max_steps": 80,
        "batch_size": 32,
        "lr": 0.02,
        "weight_decay": 0.0,
        "lr_warmup_steps": 5,
        "gradient_clip_val": 1.0,
        "precision": "32-true",
        "validation_fraction": 0.2,
        "log_every_steps": 10,
        "checkpoint_every_steps": 40,
        "validate_every_steps": 40,
        "condition": "vector",
        "seed": 0,
    }
    return Lora(**{**settings, **changes})


def run(folder, inputs, **changes):
    folder.mkdir(exist_ok=True)
    return lora(**changes).run(Job(folder, inputs, RUNTIME))


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(folder, planted)


def samples(denoiser, y, count=40):
    """The brightness of images of label y."""
    timesteps, alphas_cumprod = denoiser.timesteps(20, "leading"), denoiser.alphas_cumprod
    noise_fn = image_noise(0, "extract", range(count), denoiser.shape)
    eps_fn = clip_x_0(denoiser.eps_fn(torch.full((count,), y)), alphas_cumprod)
    images = denoiser.decode(ddim(eps_fn, noise_fn(), timesteps, alphas_cumprod))
    return images.float().mean((1, 2, 3))


def test_samples_follow_their_label_where_the_model_makes_both_kinds(planted, trained):
    adapted = load(trained[0], planted["dpm"])
    plain = samples(load_denoiser(planted["dpm"], "32-true"), 0)
    bright, dark = (samples(adapted, y) for y in (0, 1))  # from the same noise
    assert (bright > dark).float().mean() > 0.9
    shares = [(some > 125).float().mean() for some in (dark, plain, bright)]
    assert 0.2 < shares[1] < 0.8
    assert shares[0] + 0.15 < shares[1] < shares[2] - 0.15


def test_labels_lower_the_loss_and_wrong_ones_raise_it(trained):
    summary = trained[1]
    assert summary["val/loss"] < summary["loss_without_labels"]
    assert summary["val/loss_other_label"] > 1.2 * summary["val/loss"]


def test_its_cost_is_three_forwards_an_image_and_step(trained):
    assert trained[1]["training_evaluations"] == 3 * 80 * 32
    assert load_training_evaluations(trained[0]) == 3 * 80 * 32


def test_checkpoints_hold_what_is_trained_alone(trained):
    state = torch.load(trained[0] / "last.ckpt", weights_only=True)["state_dict"]
    adapter = load_file(trained[0] / "adapter.safetensors")
    assert len(state) == len(adapter) < 50
    assert all("lora_" in name or "class_embedding" in name for name in state)


def test_images_of_no_label_are_left_out(planted, tmp_path, monkeypatch):
    seen, step = [], LabeledDenoisingModule.training_step

    def spied(self, batch, batch_idx):
        seen.extend(batch[1].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LabeledDenoisingModule, "training_step", spied)
    run(tmp_path, planted, max_steps=10, validate_every_steps=10)
    assert set(seen) == {0, 1}


def test_a_killed_training_goes_on_to_the_same_weights(planted, trained, tmp_path, monkeypatch):
    step = LabeledDenoisingModule.training_step

    def killed(self, batch, batch_idx):
        if self.global_step == 47:
            raise KeyError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LabeledDenoisingModule, "training_step", killed)
        with pytest.raises(KeyError, match="killed"):
            run(tmp_path, planted)
    summary = run(tmp_path, planted)
    assert summary == trained[1]
    whole, resumed = (load_file(f / "adapter.safetensors") for f in (trained[0], tmp_path))
    for name, weight in whole.items():
        assert weight.equal(resumed[name]), name


def test_a_finished_training_of_which_only_the_checkpoint_is_left_gives_the_same(
    planted, trained, tmp_path
):
    shutil.copytree(trained[0], tmp_path / "again")
    (tmp_path / "again" / "adapter.safetensors").unlink()
    assert run(tmp_path / "again", planted) == trained[1]
    one, two = ((f / "adapter.safetensors").read_bytes() for f in (trained[0], tmp_path / "again"))
    assert one == two


# Text-conditional models


class Painter(torch.nn.Module):
    """The best denoiser of images of one brightness, which a linear layer reads off the prompt."""

    dtype, config = torch.float32, {"sample_size": 8, "in_channels": 1}

    def __init__(self, width, alphas_cumprod):
        super().__init__()
        self.brightness = torch.nn.Linear(width, 1)
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def forward(self, x_t, t, encoder_hidden_states):
        alpha_bar = self.alphas_cumprod[t][:, None, None, None]
        x_0 = self.brightness(encoder_hidden_states.flatten(1)).tanh()[:, :, None, None]
        eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        return SimpleNamespace(sample=eps)


def painter():
    """A text model of gray images, each of one brightness."""
    model = tiny_text_model()
    model.unet = Painter(model.encode([""]).numel(), model.alphas_cumprod)
    return model


def text_inputs(folder, planted, kind):
    """The planted images and labels, of a text model of images or of latents."""
    if kind in PIPELINES:
        PIPELINES[kind](folder / "dpm" / "model")
        images = np.load(planted["generate"] / "shards" / "000000.npy").repeat(3, axis=3)
        write_shard(folder / "generate", 0, images)
        return {**planted, "dpm": folder / "dpm", "generate": folder / "generate"}
    save_model(tiny_text_model(), folder / "dpm" / "model")
    return {**planted, "dpm": folder / "dpm"}


@pytest.mark.parametrize(
    ("kind", "rows"), [("images", (10, 8)), ("sd", (77, 8)), ("sdxl", (79, 20))]
)
def test_of_a_text_model_labels_become_pseudo_tokens(planted, tmp_path, kind, rows):
    inputs = text_inputs(tmp_path, planted, kind)
    settings = {"target_modules": ["to_q", "to_k", "to_v", "to_out.0"], "max_steps": 12}
    summary = run(tmp_path / "lora", inputs, validate_every_steps=12, **settings)
    described = json.loads((tmp_path / "lora" / "adapter.json").read_text())
    assert described["num_labels"] == summary["num_labels"] == 2
    denoiser, base = load(tmp_path / "lora", inputs["dpm"]), load_denoiser(inputs["dpm"], "32-true")
    tokens = denoiser.network.pseudo_tokens
    assert tokens.shape == (2, *rows)
    assert tokens.abs().amax((1, 2)).min() > 0
    x_t = torch.randn(2, *base.shape, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1])
    assert not denoiser.eps_fn(y)(x_t, 20).equal(base.eps_fn(y)(x_t, 20))
    assert denoiser.has_range == (kind == "images")


def test_samples_follow_the_trigger_of_their_label(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "load_text_model", lambda dpm: painter())
    monkeypatch.setattr(stage, "load_denoiser", lambda dpm, precision: PromptedDenoiser(painter()))
    settings = {"target_modules": ["brightness"], "condition": "trigger"}
    summary = run(tmp_path / "lora", planted, **settings)
    triggers = json.loads((tmp_path / "lora" / "adapter.json").read_text())["triggers"]
    model = painter()
    assert len(set(triggers)) == 2
    assert all(set(trigger.split()) <= set(model.tokenizer.get_vocab()) for trigger in triggers)
    weights = load_file(tmp_path / "lora" / "adapter.safetensors")
    assert all("lora_" in name for name in weights)
    assert summary["val/loss"] < 0.5 * summary["loss_without_labels"]
    assert summary["val/loss_other_label"] > 2 * summary["val/loss"]
    adapted = load(tmp_path / "lora", planted["dpm"])
    for y, level in ((0, 225), (1, 30)):
        assert (samples(adapted, y) - level).abs().max() < 25
    # The trigger is the prompt: the adapted network with its embedding predicts the same.
    x_t, t = torch.randn(1, *adapted.shape), torch.tensor([20])
    expected = adapted.network.predict(x_t, t, model.encode(triggers[1:]))
    torch.testing.assert_close(adapted.network(x_t, t, torch.tensor([1])), expected)


def test_triggers_need_a_model_with_captions():
    with pytest.raises(ValueError, match=r"lora.condition must be vector for a model without capt"):
        lora(condition="trigger").check_read(lora())


def test_each_label_has_a_trigger_of_its_own(monkeypatch):
    model = tiny_text_model()
    assert triggers_of(model, 30, 0) != triggers_of(model, 30, 1)
    monkeypatch.setattr(adapters, "ordinary_words", lambda tokenizer, unwanted: ["two", "six"])
    assert len(set(triggers_of(model, 16, 0))) == 16
    with pytest.raises(ValueError, match=r"different triggers must be 17, one per label, got 16"):
        triggers_of(model, 17, 0)


def test_vectors_keep_the_key_of_older_artifacts():
    of_vectors, of_triggers = (
        lora(condition=kind).key_settings({"rank": 4, "condition": kind})
        for kind in ("vector", "trigger")
    )
    assert of_vectors == {"rank": 4}
    assert of_triggers == {"rank": 4, "condition": "trigger"}


def test_latents_are_those_of_the_autoencoder(planted, tmp_path):
    inputs = text_inputs(tmp_path, planted, "sd")
    rows = lora()._rows(inputs, "cpu")
    model = load_denoiser(inputs["dpm"], "32-true").model
    images = torch.from_numpy(np.load(inputs["generate"] / "shards" / "000000.npy"))
    np.testing.assert_allclose(rows, model.to_latents(images), rtol=1e-4, atol=1e-5)


def test_a_latent_model_without_text_is_adapted_in_its_latents(planted, tmp_path):
    latent(tmp_path / "dpm" / "model")
    inputs = {**planted, "dpm": tmp_path / "dpm"}
    base = load_denoiser(inputs["dpm"], "32-true")
    images = torch.from_numpy(np.load(inputs["generate"] / "shards" / "000000.npy"))
    np.testing.assert_allclose(lora()._rows(inputs, "cpu"), base.encode(images), atol=1e-5)
    run(tmp_path / "lora", inputs, max_steps=12, validate_every_steps=12)
    adapted = load(tmp_path / "lora", inputs["dpm"])
    assert not adapted.has_range
    x_t = torch.randn(2, *base.shape, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1])
    of_labels = adapted.eps_fn(y)(x_t, 20)
    assert not of_labels.allclose(base.eps_fn(y)(x_t, 20))
    assert not of_labels.allclose(adapted.eps_fn(y.flip(0))(x_t, 20))


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"lora.rank must be >= 1, got 0"),
        ({"target_modules": []}, r"lora.target_modules must be names of layers, got \[\]"),
        ({"validation_fraction": 0.0}, r"lora.validation_fraction must be in \(0, 0.5\], got 0.0"),
        ({"validate_every_steps": 81}, r"lora.validate_every_steps must be in \[1, max_steps\]"),
        ({"lr": 0.0}, r"lora.lr must be > 0, got 0.0"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        lora(**changes)


def test_without_peft_the_extra_that_brings_it_is_named(monkeypatch):
    monkeypatch.setattr("sidepipe.stages.lora.stage.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs peft; remedy: pip install 'sidepipe\[text\]"):
        lora().check_read(lora())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_or_not_whole_is_refused(planted, trained, tmp_path, value):
    folder = shutil.copytree(trained[0], tmp_path / "lora")
    path = folder / "adapter.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = next(name for name in weights if "lora_B" in name)
    broken = weights[name].clone()
    broken.view(-1)[0] = value
    save_file({**weights, name: broken}, path)
    with pytest.raises(ValueError, match=r"lora_B\S+ of .*adapter.safetensors must be finite"):
        load(folder, planted["dpm"])
    del weights[name]
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"must fit the network .* got 1 missing \(\S+lora_B"):
        load(folder, planted["dpm"])
