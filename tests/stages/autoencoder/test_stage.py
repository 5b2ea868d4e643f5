"""An autoencoder of images that no model is trained on or compared with, and its cached codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from tests.models.tiny_pipelines import autoencoder
from tests.stages.autoencoder.tiny import NETWORK, NUM_IMAGES, train_autoencoder, train_latent_dpm
from tests.tiny import DIGITS, RUNTIME, checked

from sidepipe.base.images import to_model
from sidepipe.engine.stage import Job
from sidepipe.models import autoencoders
from sidepipe.stages.autoencoder.module import AutoencoderModule
from sidepipe.stages.autoencoder.pretrained import PretrainedAutoencoder
from sidepipe.stages.autoencoder.stage import Autoencoder, load, load_codes
from sidepipe.stages.autoencoder.trained import load_rows
from sidepipe.stages.data.stage import load as load_images

FILES = ("codes.npy", "rows.npy", "model/config.json", "model/diffusion_pytorch_model.safetensors")
FIVE_LEVELS = {
    "block_out_channels": [8] * 5,
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
}


def pretrained(path) -> PretrainedAutoencoder:
    return PretrainedAutoencoder(path=str(path), train_partitions=None, subset_seed=0)


def saved(folder: Path, kind=AutoencoderKL, scaling_factor=1.0, **changes) -> Path:
    network = autoencoder(kind)
    network.register_to_config(scaling_factor=scaling_factor, **changes)
    network.save_pretrained(folder)
    return folder


def test_it_reconstructs_images_that_it_is_not_trained_on(trained, data) -> None:
    folder, summary = trained
    images = load_images(data)
    others = np.setdiff1d(np.arange(len(images)), load_rows(folder))
    some = np.array(images[others[:200]])
    vae = load(folder)
    again = autoencoders.decoded(vae, autoencoders.encoded(vae, torch.from_numpy(some))).numpy()
    error = np.sqrt(np.square((again.astype(float) - some) / 255).mean((1, 2, 3))).mean()
    constant = (some.astype(float) / 255).std(0).mean()
    assert error < 0.6 * constant
    assert summary["val/rms"] == pytest.approx(error, rel=0.25)


def test_codes_are_those_of_the_saved_autoencoder_of_unit_deviation(trained, data) -> None:
    folder, summary = trained
    vae, codes = load(folder), load_codes(folder)
    images = torch.from_numpy(np.array(load_images(data)))
    with torch.no_grad():
        expected = vae.encode(to_model(images[:50])).latent_dist.mean
    assert vae.config["scaling_factor"] == summary["scaling_factor"] != 1
    expected = (expected * summary["scaling_factor"]).numpy()
    np.testing.assert_allclose(codes[:50], expected, atol=1e-5)
    assert codes.shape == (len(images), 3, 4, 4)
    assert codes.dtype == np.float32
    assert codes[load_rows(folder)].std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("num_train_images", [1, 100, 800])
def test_its_images_are_neither_trained_on_nor_held_out(trained, data, num_train_images) -> None:
    apart = load_rows(trained[0])
    train, heldout = train_latent_dpm(num_train_images=num_train_images).split(data, RUNTIME)
    assert sorted([*apart, *train, *heldout]) == list(range(1797))
    assert len(apart) == NUM_IMAGES
    assert len(train) == num_train_images


def test_images_of_validation_are_never_trained_on(data, tmp_path, monkeypatch) -> None:
    seen, judged = set(), set()
    losses, validate = AutoencoderModule.losses, AutoencoderModule.validation_step

    def spied_losses(self, images, generator, share=(0, 1)):
        seen.update(i.numpy().tobytes() for i in images)
        return losses(self, images, generator, share)

    def spied_validation(self, batch, batch_idx):
        judged.update(i.numpy().tobytes() for i in batch[0])
        return validate(self, batch, batch_idx)

    monkeypatch.setattr(AutoencoderModule, "losses", spied_losses)
    monkeypatch.setattr(AutoencoderModule, "validation_step", spied_validation)
    stage = train_autoencoder(max_steps=60, validate_every_steps=60)
    summary = stage.run(Job(tmp_path, {"data": data}, RUNTIME))
    images = load_images(data)
    assert summary["num_train_images"] == 810
    assert seen | judged == {images[row].tobytes() for row in load_rows(tmp_path)}
    assert not seen & judged


def test_a_killed_run_resumes_to_the_same_bytes_and_encodes_no_part_twice(
    data, tmp_path, monkeypatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    monkeypatch.setattr("sidepipe.stages.autoencoder.stage.PART", 500)
    whole.mkdir()
    expected = train_autoencoder().run(Job(whole, {"data": data}, RUNTIME))
    killed.mkdir()
    step, encoded, parts = AutoencoderModule.training_step, autoencoders.encoded, []

    def dies(self, *args):
        if self.global_step == 8:
            raise KeyError("the machine broke down")
        return step(self, *args)

    def dies_at_the_third(vae, images):
        if len(parts) == 2:
            parts.append(0)
            raise KeyError("the machine broke down")
        parts.append(len(images))
        return encoded(vae, images)

    monkeypatch.setattr(AutoencoderModule, "training_step", dies)
    with pytest.raises(KeyError):
        train_autoencoder().run(Job(killed, {"data": data}, RUNTIME))
    monkeypatch.setattr(AutoencoderModule, "training_step", step)
    monkeypatch.setattr(autoencoders, "encoded", dies_at_the_third)
    with pytest.raises(KeyError):
        train_autoencoder().run(Job(killed, {"data": data}, RUNTIME))
    assert train_autoencoder().run(Job(killed, {"data": data}, RUNTIME)) == expected
    assert parts == [500, 500, 0, 500, 297]
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_loss_is_the_squared_error_plus_the_weighted_divergence() -> None:
    vae = autoencoder()
    module = AutoencoderModule(
        vae, kl_weight=0.5, lr=0.1, weight_decay=0, lr_warmup_steps=1, seed=0
    )
    images = torch.randint(0, 256, (5, 8, 8, 1)).to(torch.uint8)
    error, kl = module.losses(images, torch.Generator().manual_seed(3))
    posterior = vae.encode(to_model(images)).latent_dist
    expected = posterior.kl() / posterior.mean[0].numel()
    torch.testing.assert_close(kl, expected.mean())
    sample = posterior.sample(torch.Generator().manual_seed(3))
    squared = (vae.decode(sample).sample - to_model(images)).square().mean()
    torch.testing.assert_close(error, squared)


@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel])
def test_a_checkpoint_is_taken_as_it_is(kind, data, tmp_path) -> None:
    vae = autoencoder(kind)
    images = torch.from_numpy(np.array(load_images(data)))
    with torch.no_grad():
        found = vae.encode(to_model(images[:300]))
    raw = found.latents if kind is VQModel else found.latent_dist.mean
    path = saved(tmp_path / "vae", kind, scaling_factor=1 / float(raw.std()))
    stage = pretrained(path)
    checked(stage, {"data": DIGITS})
    (tmp_path / "out").mkdir()
    summary = stage.run(Job(tmp_path / "out", {"data": data}, RUNTIME))
    np.testing.assert_allclose(
        load_codes(tmp_path / "out")[:300], raw * summary["scaling_factor"], atol=1e-5
    )
    assert stage.num_apart == 0
    assert stage.source_changed(summary, RUNTIME) is None
    (path / "config.json").write_text((path / "config.json").read_text() + "\n")
    assert "changed since" in str(stage.source_changed(summary, RUNTIME))


def test_a_checkpoint_of_another_scale_is_refused_with_the_right_one(data, tmp_path) -> None:
    path = saved(tmp_path / "vae", scaling_factor=25.0)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"must be in \[0.5, 2.0\].*set scaling_factor") as error:
        pretrained(path).run(Job(tmp_path / "out", {"data": data}, RUNTIME))
    scale = float(str(error.value).split()[-1])
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "scaling_factor": scale}))
    pretrained(path).run(Job(tmp_path / "out", {"data": data}, RUNTIME))
    assert load_codes(tmp_path / "out").std() == pytest.approx(1, abs=0.01)


def test_faults_of_a_checkpoint_are_errors_before_anything_runs(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"autoencoder.path must name a folder"):
        checked(pretrained(tmp_path / "none"), {"data": DIGITS})
    path = saved(tmp_path / "shifted", shift_factor=0.1)
    with pytest.raises(ValueError, match=r"shift_factor of .* must be null, got 0.1"):
        checked(pretrained(path), {"data": DIGITS})
    path = saved(tmp_path / "unet")
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="must be one of VQModel, AutoencoderKL"):
        checked(pretrained(path), {"data": DIGITS})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 63}, r"autoencoder.num_images must be >= 64, got 63"),
        ({"kl_weight": -1.0}, r"autoencoder.kl_weight must be >= 0"),
        ({"validate_every_steps": 13}, r"validate_every_steps must be in \[1, max_steps\]"),
        ({"network": {**NETWORK, "in_channels": 3}}, "in_channels of the autoencoder must be 1"),
        ({"network": {**NETWORK, "_target_": "diffusers.VQModel"}}, "must be an AutoencoderKL"),
        ({"network": {**NETWORK, **FIVE_LEVELS}}, "data.size must be divisible by 16"),
    ],
)
def test_faults_of_settings_are_errors_before_anything_runs(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        checked(train_autoencoder(**changes), {"data": DIGITS})


def test_too_few_images_are_an_error_before_it_is_trained(data) -> None:
    with pytest.raises(ValueError, match=r"autoencoder.num_images must be below 1797, .* got 1797"):
        train_autoencoder(num_images=1797).check_data(data, {}, RUNTIME)
    train_autoencoder(num_images=1796).check_data(data, {}, RUNTIME)
    message = r"num_train_images must be in \[1, 897\].*lower it or autoencoder.num_images"
    with pytest.raises(ValueError, match=message):
        train_latent_dpm(num_train_images=898).check_data(data, {}, RUNTIME)


def test_its_time_does_not_grow_with_the_images_that_are_kept_for_it() -> None:
    settings = {"max_steps": 10, "batch_size": 4}
    assert Autoencoder.work({**settings, "num_images": 5000}) == Autoencoder.work(settings) == 40
