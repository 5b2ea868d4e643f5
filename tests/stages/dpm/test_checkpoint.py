"""Checkpoints that do not fit are refused when the run is planned, or at the latest when read."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from tests.stages.dpm.test_pretrained import (
    assert_same_weights,
    checked_and_run,
    network,
    pretrained,
    refused,
    saved,
)
from tests.tiny import RUNTIME, checked

from sidepipe.diffusion.noise import image_noise
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.stage import load
from sidepipe.stages.generate.stage import load_denoiser

FILE = "unet/diffusion_pytorch_model.safetensors"


def changed(path, **values):
    """The JSON file with these values, None for none."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def weights_of(path):
    """Copies, since tensors of a file that is written over are lost."""
    return {name: value.clone() for name, value in load_file(path).items()}


def with_weights(checkpoint, change):
    save_file(change(weights_of(checkpoint / FILE)), checkpoint / FILE)
    return checkpoint


# weights


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "unet.", "module._orig_mod."])
def test_a_checkpoint_with_prefixed_names_is_the_model_itself(tmp_path, data, digits, prefix):
    checkpoint = with_weights(
        saved(tmp_path / "theirs"), lambda w: {prefix + k: v for k, v in w.items()}
    )
    checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    assert_same_weights(load(tmp_path / "ours")["unet"], network())


@pytest.mark.parametrize("part", ["conv_out", "mid_block"])
def test_a_missing_part_is_refused_when_the_run_is_planned(tmp_path, digits, part):
    checkpoint = with_weights(
        saved(tmp_path / "theirs"),
        lambda w: {k: v for k, v in w.items() if not k.startswith(part)},
    )
    refused(checkpoint, digits, match=rf"{FILE} must fit .* missing \({part}")


def test_the_config_of_another_network_is_refused_when_the_run_is_planned(tmp_path, digits):
    checkpoint = saved(tmp_path / "theirs")
    saved(tmp_path / "other", network(block_out_channels=[8, 8]))
    (tmp_path / "other/unet/config.json").rename(checkpoint / "unet/config.json")
    refused(checkpoint, digits, match=r"must fit the network of its config.json, .* another shape")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_when_they_are_read(tmp_path, data, digits, value):
    def spoiled(weights):
        weights["conv_in.bias"][1] = value
        return weights

    checkpoint = with_weights(saved(tmp_path / "theirs"), spoiled)
    with pytest.raises(ValueError, match=r"^conv_in.bias of .* must be finite"):
        checked_and_run(checkpoint, tmp_path / "ours", data, digits)


def test_pickled_weights_that_do_not_fit_are_refused_when_they_are_read(tmp_path, data, digits):
    checkpoint = saved(tmp_path / "theirs", safe_serialization=False)
    path = checkpoint / "unet/diffusion_pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in weights.items() if k != "conv_out.bias"}, path)
    with pytest.raises(ValueError, match=r"got 1 missing \(conv_out.bias\)"):
        checked_and_run(checkpoint, tmp_path / "ours", data, digits)


def test_an_artifact_of_ours_is_read_as_strictly(tmp_path, data, digits):
    checked_and_run(saved(tmp_path / "theirs"), tmp_path / "ours", data, digits)
    path = tmp_path / "ours/model" / FILE
    weights = weights_of(path)
    save_file({**weights, "conv_in.bias": weights["conv_in.bias"] * torch.nan}, path)
    with pytest.raises(ValueError, match=r"conv_in.bias of .* must be finite, got NaN"):
        load(tmp_path / "ours")
    save_file({k: v for k, v in weights.items() if k != "conv_in.bias"}, path)
    with pytest.raises(ValueError, match="1 missing"):
        load(tmp_path / "ours")


def test_half_precision_and_shards_are_taken(tmp_path, data, digits):
    half = network().half()
    half.save_pretrained(tmp_path / "half")
    checkpoint = saved(tmp_path / "theirs", max_shard_size="3KB", variant="fp16", unet=half)
    files = [path.name for path in (checkpoint / "unet").iterdir()]
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in files
    assert len(files) > 3
    checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    assert_same_weights(load(tmp_path / "ours")["unet"], half.float())


def test_a_variant_is_chosen_by_its_name(tmp_path, data, digits):
    checkpoint = saved(tmp_path / "theirs")
    other = network(norm_eps=1e-5)
    torch.nn.init.ones_(other.conv_out.weight)
    other.save_pretrained(checkpoint / "unet", variant="non_ema")
    for variant, expected in ((None, network()), ("non_ema", other)):
        folder = tmp_path / str(variant)
        folder.mkdir()
        pretrained(checkpoint, variant=variant).run(Job(folder, {"data": data}, RUNTIME))
        assert_same_weights(load(folder)["unet"], expected)


# configs


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
@pytest.mark.parametrize("content", ["", "<html>", "[]", "null", "{", '"x"', "\ufeff{}"])
def test_junk_in_a_config_is_refused_with_its_file(tmp_path, digits, name, content):
    checkpoint = saved(tmp_path / "theirs")
    (checkpoint / name).write_text(content)
    refused(checkpoint, digits, match=rf"^/.*{name} must be a JSON object")


@pytest.mark.parametrize("entry", [[], None, [None, None], "unet", ...])
def test_an_index_without_a_unet_is_refused(tmp_path, digits, entry):
    checkpoint = saved(tmp_path / "theirs")
    changed(checkpoint / "model_index.json", unet=entry)
    refused(checkpoint, digits, match=r"must be scheduler, unet, got \['scheduler'\]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sample_size": ...},
            r'sample_size of .*json must be 8, .* got None; write "sample_size": 8',
        ),
        ({"sample_size": None}, r'got None; write "sample_size": 8 there if'),
        ({"sample_size": [8, 4]}, r"got \[8, 4\]; models of images that are not square are not"),
        ({"sample_size": [16, 16]}, r"got \[16, 16\]; set data.size=16$"),
        ({"in_channels": ..., "out_channels": ...}, "got 3; set data.channels=3$"),
        ({"in_channels": 4}, "got 4; images have 1 or 3, latents need a vae$"),
        ({"out_channels": ...}, "out_channels of .* must be 1, as the data are, or 2 .* got 3"),
        ({"down_block_types": ["DownBlock9D"] * 2}, "config.json cannot be built .*DownBlock9D"),
        (
            {"down_block_types": ["DownBlock2D"]},
            "config.json cannot be built as UNet2DModel: Value",
        ),
        ({"norm_num_groups": 3}, "config.json cannot be built as UNet2DModel: "),
        ({"block_out_channels": "x"}, "config.json cannot be built as UNet2DModel: "),
        ({"act_fn": "unheard of"}, "config.json cannot be built as UNet2DModel: "),
    ],
)
def test_a_config_that_gives_no_network_of_the_data_is_refused(tmp_path, digits, changes, message):
    checkpoint = saved(tmp_path / "theirs")
    changed(checkpoint / "unet/config.json", **changes)
    refused(checkpoint, digits, match=message)


def test_the_remedies_for_a_size_work(tmp_path, data, digits):
    checkpoint = saved(tmp_path / "theirs", network(sample_size=[8, 8]))
    checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    assert load(tmp_path / "ours")["unet"].config["sample_size"] == 8
    changed(checkpoint / "unet/config.json", sample_size=...)
    changed(checkpoint / "unet/config.json", sample_size=8)
    checked(pretrained(checkpoint), {"data": digits})


def test_a_size_that_its_blocks_cannot_halve_is_refused(tmp_path, digits):
    blocks = {"block_out_channels": [4] * 5, "down_block_types": ["DownBlock2D"] * 5}
    unet = network(**blocks, up_block_types=["UpBlock2D"] * 5)
    refused(
        saved(tmp_path / "theirs", unet), digits, match="sample_size .* divisible by 16, .* got 8"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"beta_schedule": "unknown"},
            "scheduler_config.json cannot be built: NotImplementedError",
        ),
        ({"beta_end": 2}, "alphas_cumprod of .*scheduler_config.json must fall .* got"),
        ({"thresholding": True}, "thresholding of .* must be false, got True"),
        ({"_class_name": "LCMScheduler"}, "got 'LCMScheduler'; models distilled for a few steps"),
    ],
)
def test_a_scheduler_that_is_not_honored_is_refused(tmp_path, digits, changes, message):
    checkpoint = saved(tmp_path / "theirs")
    changed(checkpoint / "scheduler/scheduler_config.json", **changes)
    refused(checkpoint, digits, match=message)


@pytest.mark.parametrize("beta_end", [2, 1.0001, float("nan"), -0.5])
def test_a_noise_schedule_that_gives_no_probabilities_is_refused_before_training(
    train_dpm, digits, beta_end
):
    stage = train_dpm(noise_schedule={"beta_end": beta_end})
    with pytest.raises(ValueError, match=r"^alphas_cumprod of diffusion must fall .*betas must"):
        checked(stage, {"data": digits})


def test_a_noise_schedule_that_is_unknown_or_not_honored_is_refused_before_training(
    train_dpm, digits
):
    with pytest.raises(ValueError, match=r"^diffusion cannot be built: unheard of is not impl"):
        checked(train_dpm(noise_schedule={"beta_schedule": "unheard of"}), {"data": digits})
    with pytest.raises(ValueError, match=r"^thresholding of diffusion must be false"):
        checked(train_dpm(noise_schedule={"thresholding": True}), {"data": digits})


# what is honored, by the same images as diffusers makes


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_sample": False},
        {"clip_sample_range": 0.3},
        {"clip_sample_range": 3.0},
        {"steps_offset": 1},
        {"set_alpha_to_one": False},
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "trailing", "set_alpha_to_one": False},
        {"beta_schedule": "scaled_linear", "beta_start": 0.001},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample", "clip_sample": False},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"trained_betas": list(np.linspace(0.01, 0.2, 50))},
    ],
    ids=str,
)
def test_a_checkpoint_gives_the_images_of_its_own_pipeline(tmp_path, data, digits, settings):
    """DDIMPipeline with the model output derived again from the clipped image, as sidepipe does."""
    scheduler = DDIMScheduler(**{"num_train_timesteps": 50, **settings})
    checkpoint = saved(tmp_path / "theirs", scheduler=scheduler, kind=DDIMPipeline)
    checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    denoiser = load_denoiser(tmp_path / "ours", "32-true")
    steps = 10
    timesteps = denoiser.timesteps(steps)
    sampler = ImageSampler(denoiser, seed=0, stream="generate", timesteps=timesteps, eta=0)
    batch = {"indices": torch.arange(4), "targets": torch.zeros(4, dtype=torch.int64)}
    found = sampler.predict_step(batch)

    theirs = DDIMPipeline.from_pretrained(checkpoint, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    x_T = image_noise(0, "generate", range(4), (1, 8, 8), "cpu")()
    expected = images_of(theirs, x_T, steps)
    assert timesteps == theirs.scheduler.timesteps.tolist()
    assert (found.int() - expected).abs().max() <= 1
    default = images_of(DDIMPipeline(network(), DDIMScheduler(50)), x_T, steps)
    assert not settings or (expected - default).abs().max() > 1  # the setting changes images


@torch.no_grad()
def images_of(pipeline, x_t, steps):
    unet: UNet2DModel = pipeline.unet.eval()
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x_t = scheduler.step(unet(x_t, t).sample, t, x_t, use_clipped_model_output=True).prev_sample
    return ((x_t / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).int()


def test_a_schedulers_range_reaches_previews_and_samples_of_models_trained_here(
    train_dpm, tmp_path
):
    stage = train_dpm(noise_schedule={"clip_sample_range": 2.0})
    scheduler = DDPMScheduler(20, clip_sample_range=2.0)
    assert stage._module(network(), scheduler, tmp_path).clip_range == 2.0
