"""A model of codes: saved as a latent pipeline, which samplers and surrogates take."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tests.stages.autoencoder.conftest import data, trained
from tests.stages.autoencoder.tiny import SCHEDULE, train_autoencoder, train_latent_dpm
from tests.tiny import DIGITS, RUNTIME, checked

from sidepipe.diffusion.sampler import ddim
from sidepipe.engine.stage import Job
from sidepipe.engine.training import weights
from sidepipe.models.checkpoint import check_checkpoint, denoiser_of
from sidepipe.stages.autoencoder.stage import load_codes
from sidepipe.stages.dpm.latent import drift
from sidepipe.stages.dpm.module import DenoisingModule
from sidepipe.stages.dpm.stage import load, load_subset

__all__ = ["data", "trained"]  # fixtures
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def inputs(data, trained):
    return {"data": data, "autoencoder": trained[0]}


def run(folder, inputs, **changes):
    folder.mkdir(exist_ok=True)
    return train_latent_dpm(**changes).run(Job(folder, inputs, RUNTIME))


def test_it_is_trained_on_the_cached_codes_of_the_subset_alone(
    inputs, tmp_path, monkeypatch
) -> None:
    seen, noised = set(), DenoisingModule.noised

    def spy(self, images, generator, share):
        if self.training:
            seen.update(row.numpy().tobytes() for row in images)
        return noised(self, images, generator, share)

    monkeypatch.setattr(DenoisingModule, "noised", spy)
    run(tmp_path, inputs)
    codes, train = load_codes(inputs["autoencoder"]), load_subset(tmp_path)[0]
    assert seen == {codes[row].tobytes() for row in train}


def test_it_is_saved_as_a_pipeline_that_diffusers_reads_and_samples_alike(inputs, tmp_path) -> None:
    run(tmp_path, inputs)
    check_checkpoint(tmp_path / "model", None, 8, 1)
    denoiser = denoiser_of(load(tmp_path))
    assert denoiser.shape == (3, 4, 4)
    assert denoiser.image_shape == (1, 8, 8)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert type(pipeline).__name__ == "LDMPipeline"
    x_t = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = denoiser.timesteps(20)
    with torch.no_grad():
        x_0 = ddim(denoiser.eps_fn(torch.zeros(4).long()), x_t, timesteps, denoiser.alphas_cumprod)
        theirs = pipeline.vqvae.decode(x_0 / pipeline.vqvae.config.scaling_factor).sample
    ours = denoiser.decode(x_0).permute(0, 3, 1, 2) / 127.5 - 1
    assert (ours - theirs.clamp(-1, 1)).abs().max() <= 0.5 / 127.5 + 1e-5


def test_a_resumed_run_equals_an_uninterrupted_one(inputs, tmp_path, monkeypatch) -> None:
    expected = run(tmp_path / "whole", inputs)
    step = DenoisingModule.training_step

    def dies(self, *args):
        if self.global_step == 14:
            raise KeyError("the machine broke down")
        return step(self, *args)

    monkeypatch.setattr(DenoisingModule, "training_step", dies)
    with pytest.raises(KeyError):
        run(tmp_path / "killed", inputs)
    monkeypatch.setattr(DenoisingModule, "training_step", step)
    assert run(tmp_path / "killed", inputs) == expected
    one, two = (tmp_path / name for name in ("whole", "killed"))
    assert (one / WEIGHTS).read_bytes() == (two / WEIGHTS).read_bytes()
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name], rtol=0, atol=0)


def test_previews_are_decoded_images(inputs, tmp_path) -> None:
    run(tmp_path, inputs)
    assert len(list((tmp_path / "previews").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_flip": True}, "dpm.random_flip must be false for codes, got True; codes of"),
        (
            {"noise_schedule": {**SCHEDULE, "clip_sample": True}},
            "diffusion.clip_sample must be false for codes, got True; diffusion=latents",
        ),
        ({"num_autoencoder_images": 5}, "dpm.num_autoencoder_images must be 900, .* got 5"),
        (
            {
                "unet": {
                    **train_latent_dpm().unet,
                    "block_out_channels": [4] * 4,
                    "down_block_types": ["DownBlock2D"] * 4,
                    "up_block_types": ["UpBlock2D"] * 4,
                }
            },
            "the side of a code must be divisible by 8",
        ),
    ],
)
def test_faults_are_errors_before_anything_runs(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        checked(train_latent_dpm(**changes), {"data": DIGITS, "autoencoder": train_autoencoder()})


def test_the_sizes_of_its_network_follow_from_the_codes() -> None:
    checked(train_latent_dpm(), {"data": DIGITS, "autoencoder": train_autoencoder()})


def test_half_of_the_timesteps_of_codes_predict_better_than_nothing(inputs, tmp_path) -> None:
    once = {"preview_every_steps": 200, "checkpoint_every_steps": 200}
    summary = run(tmp_path, inputs, max_steps=200, num_train_images=50, **once)
    assert summary["val/loss_train"] < 0.8
    assert summary["epochs"] == 200 * 8 / 50
    assert np.isfinite(summary["val/loss_heldout"])


@pytest.mark.parametrize(
    ("ratio", "warned"), [(1.0, False), (1.4, False), (1.6, True), (0.6, True)]
)
def test_samples_that_are_no_codes_of_images_are_a_warning(
    inputs, tmp_path, monkeypatch, caplog, ratio, warned
) -> None:
    codes = load_codes(inputs["autoencoder"])
    train = train_latent_dpm().split(inputs["data"], RUNTIME)[0]
    sampled = torch.from_numpy(codes[train]) * ratio
    monkeypatch.setattr(DenoisingModule, "sampled", lambda self: sampled)
    summary = run(tmp_path, inputs)
    found = summary["sampled_code_deviation"] / summary["code_deviation"]
    assert found == pytest.approx(ratio, rel=1e-2)
    assert ("samples are no images" in caplog.text) == warned
    assert (drift(summary) is not None) == warned
    assert drift({}) is None
