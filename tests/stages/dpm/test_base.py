"""The base of a checkpoint: kept in the artifact, and compared with the checkpoint before a run."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from tests.models.text.tiny import tiny_stable_diffusion
from tests.models.tiny_pipelines import dit, latent, of_images, schedule
from tests.stages.dpm.test_pretrained import assert_same_weights, network, pretrained, saved
from tests.tiny import DIGITS, RUNTIME, checked

from sidepipe.engine.stage import Job
from sidepipe.models.text.pipeline import load_model
from sidepipe.stages.dpm.pretrained_text import PretrainedTextDPM
from sidepipe.stages.dpm.stage import load
from sidepipe.stages.generate.stage import load_denoiser


def run(stage, folder, data):
    checked(stage, {"data": DIGITS}, RUNTIME)
    folder.mkdir()
    return stage.run(Job(folder, {"data": data}, RUNTIME))


def changed_network(**changes):
    unet = network(**changes)
    with torch.no_grad():
        unet.conv_in.weight.mul_(0.5)
    return unet


def test_the_artifact_has_the_checkpoint_and_its_base(tmp_path, data):
    own, base = saved(tmp_path / "own"), saved(tmp_path / "base", changed_network())
    stage = pretrained(own, base=str(base))
    assert stage.has_base
    summary = run(stage, tmp_path / "dpm", data)
    assert_same_weights(load(tmp_path / "dpm")["unet"], network())
    assert_same_weights(load(tmp_path / "dpm", "base")["unet"], changed_network())
    found = load_denoiser(tmp_path / "dpm", "32-true", part="base")
    assert_same_weights(found.unet, changed_network())
    assert stage.source_changed(summary, RUNTIME) is None
    saved(base)
    assert "changed since" in stage.source_changed(summary, RUNTIME)
    shutil.rmtree(base)
    assert stage.source_changed(summary, RUNTIME) is None


def test_a_checkpoint_alone_has_no_base(tmp_path, data):
    stage = pretrained(saved(tmp_path / "own"))
    run(stage, tmp_path / "dpm", data)
    assert not stage.has_base
    assert not (tmp_path / "dpm" / "base").exists()


@pytest.mark.parametrize("make", [latent, dit], ids=["latent", "DiT"])
def test_latent_models_keep_their_base(tmp_path, data, make):
    stage = pretrained(make(tmp_path / "own"), base=str(make(tmp_path / "base")))
    run(stage, tmp_path / "dpm", data)
    found = load_denoiser(tmp_path / "dpm", "32-true", by_class=True, part="base")
    assert found.shape == (3, 4, 4)


def test_with_an_adapter_the_base_is_the_checkpoint_without_it(tmp_path, data):
    own = saved(tmp_path / "own")
    torch.manual_seed(0)
    name = "down_blocks.0.resnets.0.conv1"
    down, up = torch.randn(2, 4, 3, 3), torch.randn(4, 2, 1, 1)
    weights = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    save_file(weights, tmp_path / "lora.safetensors")
    stage = pretrained(own, adapter=str(tmp_path / "lora.safetensors"))
    assert stage.has_base
    run(stage, tmp_path / "dpm", data)
    assert_same_weights(load(tmp_path / "dpm", "base")["unet"], network())
    fused = load(tmp_path / "dpm")["unet"].get_submodule(name).weight
    assert not torch.equal(fused, network().get_submodule(name).weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: of_images(at, schedule(num_train_timesteps=20)), r"50 timesteps, as .* got 20"),
        (
            lambda at: of_images(at, schedule(beta_end=0.05)),
            r"the noise schedule of the fine-tuned",
        ),
        (lambda at: of_images(at, num_class_embeds=4), r"num_class_embeds None, as .* got 4; name"),
        (lambda at: of_images(at, sample_size=16), r"dpm.base must be .* sample_size 8, .* got 16"),
        (lambda at: SimpleNamespace(), r"dpm.base names .*, which is not a folder"),
    ],
)
def test_another_model_than_the_base_is_refused_before_anything_runs(tmp_path, make, message):
    own = of_images(tmp_path / "own")
    make(tmp_path / "base")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checked(pretrained(own, base=str(tmp_path / "base")), {"data": DIGITS}, RUNTIME)


def of_text(path, **changes):
    settings = {"revision": None, "variant": None, "num_train_images": None, "subset_seed": 0}
    return PretrainedTextDPM(path=str(path), train_partitions=["train"], **settings, **changes)


def test_stable_diffusion_keeps_its_base(tmp_path, data):
    own = tiny_stable_diffusion(tmp_path / "own")
    base = tiny_stable_diffusion(tmp_path / "base", seed=1)
    run(of_text(own, base=str(base)), tmp_path / "dpm", data)
    for part, source in (("model", own), ("base", base)):
        found, expected = load_model(tmp_path / "dpm" / part), load_model(source)
        assert_same_weights(found.network, expected.network)
        assert_same_weights(found.networks["text_encoder"], expected.networks["text_encoder"])
    DDIMScheduler(num_train_timesteps=100).save_pretrained(base / "scheduler")
    with pytest.raises(ValueError, match=r"the noise schedule of the fine-tuned"):
        checked(of_text(own, base=str(base)), {"data": DIGITS}, RUNTIME)


def test_stable_diffusion_without_its_adapter_is_the_base(tmp_path, data):
    own = tiny_stable_diffusion(tmp_path / "own")
    layer = "down_blocks.0.resnets.0.time_emb_proj"
    weight = load_model(own).network.get_submodule(layer).weight
    sides = {"A": torch.ones(1, weight.shape[1]), "B": torch.ones(weight.shape[0], 1)}
    named = {f"unet.{layer}.lora_{side}.weight": matrix for side, matrix in sides.items()}
    save_file(named, tmp_path / "lora.safetensors")
    run(of_text(own, adapter=str(tmp_path / "lora.safetensors")), tmp_path / "dpm", data)
    assert_same_weights(load_model(tmp_path / "dpm" / "base").network, load_model(own).network)
    fused = load_model(tmp_path / "dpm" / "model").network.get_submodule(layer).weight
    torch.testing.assert_close(fused, weight + 1)
