"""SDXL: embeddings, latents and images equal those of diffusers' own pipeline."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from tests.models.text.tiny import POOLED, WIDTH, tiny_sdxl

from sidepipe.models.text.checks import check_pipeline
from sidepipe.models.text.pipeline import load_model, save_model
from sidepipe.models.text.sdxl import without_pooled
from sidepipe.models.text.trajectory import prompt_noise, sample_x_0

PROMPTS, STEPS, SCALE = ["abc", "hello world"], 10, 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def model(folder):
    check_pipeline(folder)
    return load_model(folder)


def pipeline_of(folder):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_embeddings_are_both_encoders_and_the_pooled_one(folder, model):
    positions, nothing, pooled, pooled_nothing = pipeline_of(folder).encode_prompt(PROMPTS)
    e = model.encode(PROMPTS)
    assert e.shape == (2, 77 + 2, WIDTH + 12)  # the pooled one needs two rows
    found = without_pooled(e, 77, POOLED)
    torch.testing.assert_close(found, (positions, pooled))
    assert e[:, 77:].flatten(1)[:, POOLED:].eq(0).all()
    assert model.encode(["", "abc"])[0].eq(0).all()
    torch.testing.assert_close(model.encode(["", "abc"])[1:], e[:1])
    assert not nothing.any()
    assert not pooled_nothing.any()


@pytest.mark.parametrize("settings", [{}, {"force_zeros_for_empty_prompt": False}])
def test_latents_and_images_equal_those_of_the_pipeline(tmp_path, settings):
    folder = tiny_sdxl(tmp_path, **settings)
    model = load_model(folder)
    x_T = prompt_noise(model, 0, [0, 1], 1)
    e, e_0 = model.encode(PROMPTS), model.encode([""])
    assert e_0.any() == bool(settings)
    found = sample_x_0(model, x_T, e, e_0, SCALE, STEPS)
    options = {"latents": x_T, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    pipeline = pipeline_of(folder)
    expected = pipeline(PROMPTS, **options, output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    images = torch.from_numpy(pipeline(PROMPTS, **options, output_type="np").images) * 255
    assert (model.decode(found).float() - images).abs().max() <= 1
    other = sample_x_0(model, x_T, e, e_0, 1.0, STEPS)
    assert (other - found).abs().max() > 1e-3


def test_the_pooled_embedding_and_the_sizes_of_images_change_the_prediction(model):
    x_t, e = prompt_noise(model, 0, [0], 1), model.encode(["abc"])
    other = e.clone()
    other[:, 77:] = model.encode(["hello"])[:, 77:]
    assert not model.eps(x_t, 50, e).equal(model.eps(x_t, 50, other))


def test_a_saved_model_keeps_its_settings_and_diffusers_reads_it(tmp_path):
    model = load_model(tiny_sdxl(tmp_path / "own", force_zeros_for_empty_prompt=False))
    save_model(model, tmp_path / "saved")
    check_pipeline(tmp_path / "saved")
    assert load_model(tmp_path / "saved").encode(["", "a"]).equal(model.encode(["", "a"]))
    assert not pipeline_of(tmp_path / "saved").config["force_zeros_for_empty_prompt"]


@pytest.mark.parametrize(("upcast", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_an_autoencoder_that_overflows_in_float16_stays_in_float32(tmp_path, upcast, dtype):
    folder = tiny_sdxl(tmp_path)
    path = folder / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": upcast}))
    model = load_model(folder, "16-true")
    assert (model.unet.dtype, model.vae.dtype) == (torch.float16, dtype)
    assert load_model(folder, "bf16-true").vae.dtype == torch.bfloat16
    e = model.encode(PROMPTS)
    assert e.dtype == torch.float32
    torch.testing.assert_close(e, load_model(folder).encode(PROMPTS), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "unet/config.json",
            {"addition_embed_type": None},
            "sizes of images .text_time., got None",
        ),
        (
            "text_encoder/config.json",
            {"hidden_size": 16},
            "hidden_size of .*text_encoder_2 must be 20, .*got 28",
        ),
        ("text_encoder_2/config.json", {"projection_dim": 5}, "projection_dim of .* 24, .* got 5"),
        ("vae/config.json", {"latent_channels": 8}, "latent_channels .* 4, the in_channels of the"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "latents_mean .* must be none"),
        ("unet/config.json", {"time_cond_proj_dim": 8}, "distilled for one guidance scale"),
        ("model_index.json", {"text_encoder": [None, None]}, "the parts of the StableDiffusionXLP"),
        ("model_index.json", {"tokenizer_2": [None, None]}, "the parts of the StableDiffusionXLP"),
        (
            "model_index.json",
            {"text_encoder_2": ["transformers", "CLIPTextModel"]},
            "text_encoder_2 .* must be of class CLIPTextModelWithProjection",
        ),
        ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "another task"),
    ],
)
def test_parts_that_do_not_fit_one_another_are_refused(tmp_path, file, values, message):
    path = tiny_sdxl(tmp_path) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError, match=message) as error:
        check_pipeline(tmp_path)
    assert "\n" not in str(error.value)
