"""Latent, class-conditional and variance-predicting models give the samples of diffusers."""

import json
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, LDMPipeline, VQModel
from tests.models.tiny_pipelines import dit, latent, of_images, schedule

import sidepipe
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.sampler import ddim
from sidepipe.models.checkpoint import check_checkpoint, denoiser_of, load_checkpoint, save_parts

N = 6


def loaded(folder, **changes):
    return denoiser_of(load_checkpoint(str(folder), None, None, **changes))


def noise(shape):
    return image_noise(0, "generate", range(N), shape)()


def x_0_of(denoiser, y=None):
    """As samplers do, without clipping."""
    y = torch.zeros(N, dtype=torch.int64) if y is None else y
    timesteps, last = denoiser.timesteps(10), denoiser.step_rule.last_alpha_bar
    eps_fn = denoiser.eps_fn(y)
    x_T = noise(denoiser.shape)
    return ddim(eps_fn, x_T, timesteps, denoiser.alphas_cumprod, last_alpha_bar=last)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def levels(images):
    return torch.from_numpy((images * 255).round()).int()


@pytest.fixture
def drawn(monkeypatch):
    """Has pipelines begin at the noise of sidepipe, which they do not take as an argument."""

    def use(kind):
        module = sys.modules[kind.__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise(shape[1:]))

    return use


@pytest.mark.parametrize("kind", [VQModel, AutoencoderKL])
@pytest.mark.parametrize("scheduler", [{}, {"set_alpha_to_one": False, "steps_offset": 1}])
def test_a_latent_model_gives_the_images_of_its_own_pipeline(tmp_path, drawn, kind, scheduler):
    folder = latent(tmp_path, kind, schedule(**scheduler))
    check_checkpoint(folder, None, 8, 1)
    denoiser = loaded(folder)
    assert (denoiser.shape, denoiser.image_shape) == ((3, 4, 4), (1, 8, 8))
    found = denoiser.decode(x_0_of(denoiser))
    drawn(LDMPipeline)
    pipeline = quiet(LDMPipeline.from_pretrained(folder))
    expected = levels(pipeline(batch_size=N, num_inference_steps=10, output_type="np").images)
    assert (found.int() - expected).abs().max() <= 1
    assert found.unique().numel() > 20


@pytest.mark.parametrize("kind", [VQModel, AutoencoderKL])
def test_images_are_encoded_as_the_autoencoder_does(tmp_path, kind):
    denoiser = loaded(latent(tmp_path, kind))
    images = torch.randint(0, 256, (N, 8, 8, 1), dtype=torch.uint8)
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    found = denoiser.vae.encode(x)
    expected = found.latents if kind is VQModel else found.latent_dist.mean
    scaled = expected * denoiser.vae.config["scaling_factor"]
    torch.testing.assert_close(denoiser.encode(images), scaled, rtol=0, atol=1e-6)


def test_refinement_of_a_latent_model_moves_latents(tmp_path):
    """The API's refined images are those of `seek_mode` on what the autoencoder encodes."""
    model = sidepipe.load(latent(tmp_path), device="cpu")
    assert model.image_shape == (8, 8, 1)
    images = model.sample(N, num_inference_steps=5, precision="32-true")
    found = model.refine(images, t=20, steps=2, precision="32-true")
    denoiser = loaded(tmp_path)
    eps_fn = denoiser.eps_fn(torch.zeros(N, dtype=torch.int64))
    x_0 = denoiser.encode(torch.from_numpy(images))
    expected = denoiser.decode(seek_mode(eps_fn, x_0, 20, 2, denoiser.alphas_cumprod)).numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert not np.array_equal(found, images)


def test_the_audit_of_a_latent_model_refines_latents_and_compares_decoded_images(tmp_path):
    model = sidepipe.load(latent(tmp_path), device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    train, heldout = images[:30], images[30:]
    found = sidepipe.audit(
        model,
        train=train,
        heldout=heldout,
        t=20,
        steps=2,
        levels=(),
        sampled=100,
        precision="32-true",
    )
    refined = model.refine(train, t=20, steps=2, precision="32-true")
    gap = ((refined / 255.0 - train / 255.0) ** 2).mean((1, 2, 3)) ** 0.5
    own = found.scores[found.scores["kind"] == "train"].sort_values("index")
    np.testing.assert_allclose(own["gamma"], gap, atol=1e-4)


def test_the_audit_takes_a_dit_by_its_own_null_class(tmp_path):
    model = sidepipe.load(dit(tmp_path), device="cpu")
    assert model.null_class is not None
    with pytest.raises(ValueError, match=r"t must be in \[0, 50\), .* got 60"):
        sidepipe.audit(model, train="nowhere", heldout="nowhere")


def test_a_dit_gives_the_images_of_its_own_pipeline_for_each_class(tmp_path, drawn):
    """Its transformer predicts a variance as well, of which the pipeline makes no use either."""
    denoiser = loaded(dit(tmp_path))
    assert denoiser.num_classes == 5
    classes = [0, 4, 2, 1, 3, 0]
    found = denoiser.decode(x_0_of(denoiser, torch.tensor(classes)))
    drawn(DiTPipeline)
    pipeline = quiet(DiTPipeline.from_pretrained(tmp_path))
    made = pipeline(classes, guidance_scale=1.0, num_inference_steps=10, output_type="np").images
    assert (found.int() - levels(made)).abs().max() <= 1
    other = denoiser.decode(x_0_of(denoiser, torch.zeros(N, dtype=torch.int64)))
    assert not found.equal(other)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_by_classes_gives_the_images_of_dits_own_pipeline(tmp_path, drawn, scale):
    """Diffusers guides all channels of the mean; DiT's first code guided three of four."""
    denoiser = loaded(dit(tmp_path, num_classes=1000))  # whose null class the pipeline knows
    assert denoiser.null_class == 1000
    denoiser.guide_by_class(scale)
    assert denoiser.evaluations == (2 if scale == 3 else 1)
    classes = [0, 4, 2, 1, 3, 0]
    found = denoiser.decode(x_0_of(denoiser, torch.tensor(classes)))
    drawn(DiTPipeline)
    pipeline = quiet(DiTPipeline.from_pretrained(tmp_path))
    asked, s = (classes, scale) if scale else ([1000] * N, 1.0)
    made = pipeline(asked, guidance_scale=s, num_inference_steps=10, output_type="np").images
    assert (found.int() - levels(made)).abs().max() <= 1
    alone = loaded(tmp_path)
    if scale != 1:
        other = alone.decode(x_0_of(alone, torch.tensor(classes)))
        assert (found.int() - other.int()).abs().max() > 5


def test_classes_and_a_predicted_variance_give_the_steps_of_diffusers(tmp_path):
    """OpenAI's layout: class labels, and twice the channels of the images."""
    scheduler = schedule(prediction_type="epsilon")
    of_images(tmp_path, scheduler, num_class_embeds=4, out_channels=2)
    path = tmp_path / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text()) | {"variance_type": "learned_range"}
    path.write_text(json.dumps({**config, "_class_name": "DDPMScheduler"}))
    denoiser = loaded(tmp_path)
    assert denoiser.num_classes == 4
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    found = x_0_of(denoiser, y)
    theirs: DDIMScheduler = schedule()
    theirs.set_timesteps(10)
    x_t = noise((1, 8, 8))
    with torch.no_grad():
        for t in theirs.timesteps:
            eps = denoiser.unet(x_t, t, class_labels=y).sample.chunk(2, dim=1)[0]
            x_t = theirs.step(eps, t, x_t).prev_sample
    torch.testing.assert_close(found, x_t, rtol=0, atol=1e-4)
    assert not found.allclose(x_0_of(denoiser, y.flip(0)))


def test_the_api_gives_images_classes_in_turn(tmp_path):
    model = sidepipe.load(of_images(tmp_path, num_class_embeds=3), device="cpu")
    assert model.num_classes == 3
    settings = {"num_inference_steps": 3, "precision": "32-true"}
    every, one = model.sample(4, **settings), model.sample(4, classes=[2], **settings)
    same = [np.array_equal(a, b) for a, b in zip(every, one, strict=True)]
    assert same == [False, False, True, False]
    np.testing.assert_array_equal(model.sample(4, classes=[0, 1, 2], **settings), every)
    refined = model.refine(every, t=5, steps=1, classes=[1], precision="32-true")
    assert not np.array_equal(refined, model.refine(every, t=5, steps=1, precision="32-true"))
    for wrong in ([3], [-1], []):
        with pytest.raises(ValueError, match=r"classes must be numbers in \[0, 3\), got"):
            model.sample(1, classes=wrong)
    plain = sidepipe.load(of_images(tmp_path / "plain"), device="cpu")
    with pytest.raises(ValueError, match="classes must be None, as the model has none"):
        plain.sample(1, classes=[0])


@pytest.mark.parametrize("make", [latent, dit])
def test_saved_parts_are_read_again_and_by_diffusers(tmp_path, make):
    from diffusers import DiffusionPipeline

    parts = load_checkpoint(str(make(tmp_path / "theirs")), None, None)
    save_parts(parts, tmp_path / "ours")
    before, after = denoiser_of(parts), loaded(tmp_path / "ours")
    torch.testing.assert_close(x_0_of(before), x_0_of(after), rtol=0, atol=0)
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "ours")).__name__ in (
        *("LDMPipeline", "DiTPipeline"),
    )


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet", {"in_channels": 4, "out_channels": 4}, "in_channels of .* must be 3, the latent_"),
        ("unet", {"out_channels": 5}, "out_channels of .* must be 3, or 6 with a predicted"),
        ("unet", {"sample_size": [4, 8]}, r"got \[4, 8\]; models of images that are not square"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type of .* must be null"),
        ("unet", {"_class_name": "UNet1DModel"}, "must be one of UNet2DModel, DiTTransformer2D"),
        ("vqvae", {"_class_name": "AutoencoderTiny"}, "must be one of VQModel, AutoencoderKL, got"),
        ("vqvae", {"latent_channels": 4}, "in_channels of .* must be 4, the latent_channels of"),
        ("vqvae", {"block_out_channels": [8, 12]}, "vqvae.* must fit the network of its config"),
    ],
)
def test_parts_that_do_not_fit_one_another_are_refused(tmp_path, file, values, message):
    folder = latent(tmp_path)
    path = folder / file / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError, match=message) as error:
        check_checkpoint(folder, None, None, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [(4, 1, "data.size=8"), (8, 3, "data.channels=1"), (None, 3, "data.channels=1")],
)
def test_data_of_another_shape_than_its_images_are_refused(tmp_path, size, channels, message):
    with pytest.raises(ValueError, match=f"as the images of .*; set {message}"):
        check_checkpoint(latent(tmp_path), None, size, channels)
