"""SDXL: embeddings, latents and images equal those of diffusers' own pipeline."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from tests.models.text.tiny import POOLED, WIDTH, tiny_sdxl

from sidepipe.models.text.checks import check_pipeline
from sidepipe.models.text.guidance import noise_difference, norms
from sidepipe.models.text.pipeline import load_model, save_model
from sidepipe.models.text.sdxl import without_pooled
from sidepipe.models.text.significance import encoded, token_significance
from sidepipe.models.text.trajectory import prompt_noise, prompt_timesteps, sample_x_0
from sidepipe.stages.mitigate.attention import attention_scaled
from sidepipe.stages.mitigate.methods import lowered

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


@pytest.mark.parametrize("part", ["vae", "text_encoder_2", "tokenizer_2", "scheduler"])
def test_a_missing_part_is_an_error_with_its_folder(folder, tmp_path, part):
    broken = shutil.copytree(folder, tmp_path / "sdxl")
    shutil.rmtree(broken / part)
    with pytest.raises(FileNotFoundError, match=rf"^[^\[].*{part}") as refused:
        check_pipeline(broken)
    assert refused.value.errno is None  # not the system's own message


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


def test_significance_of_a_token_is_the_gradient_through_both_encoders(model):
    x_T, e_0 = prompt_noise(model, 0, [0], 1), model.encode([""])
    t = prompt_timesteps(model, 5)[0]
    e, embeddings = encoded(model, ["abc"])
    torch.testing.assert_close(e.detach(), model.encode(["abc"]))
    assert [some.shape[2] for some in embeddings] == [WIDTH, 12]
    length = norms(model.eps(x_T, t, e) - model.eps(x_T, t, e_0))
    gradients = torch.autograd.grad(length.sum(), embeddings)
    assert all(gradient[:, :4].norm(dim=2).min() > 0 for gradient in gradients)
    by_token, by_encoded = token_significance(model, x_T, ["abc"], 2.0, 5, 1)
    assert by_token.shape == by_encoded.shape == (1, 77)
    squares = sum(gradient.square().sum(2) for gradient in gradients)
    torch.testing.assert_close(by_token, squares.sqrt(), rtol=1e-4, atol=1e-7)


def test_mitigation_changes_the_pooled_embedding_too_and_the_first_token_stays(model):
    x_T, e, e_0 = prompt_noise(model, 0, [0, 1], 1), model.encode(PROMPTS), model.encode([""])
    found, _ = lowered(model, x_T, 80, e, e_0, target=0.0, lr=0.05, max_iterations=10)
    positions, pooled = without_pooled(found != e, 77, POOLED)
    assert not positions[:, 0].any()
    assert positions[:, 1:].any(2).all()
    assert pooled.all()
    before, after = (norms(noise_difference(model, x_T, 80, some, e_0)[1]) for some in (e, found))
    assert (after < 0.8 * before).all()


def test_attention_is_scaled_for_tokens_alone(model):
    x_T, e = prompt_noise(model, 0, [0], 1), model.encode(["abc"])
    beyond, pooled = e.clone(), e.clone()
    beyond[:, 5:77] += 1
    pooled[:, 77:] += 1
    with attention_scaled(model, [4], 1.25), torch.no_grad():
        expected = model.eps(x_T, 50, e)
        torch.testing.assert_close(model.eps(x_T, 50, beyond), expected)
        assert not torch.allclose(model.eps(x_T, 50, pooled), expected)


def test_a_saved_model_keeps_its_settings_and_diffusers_reads_it(tmp_path):
    model = load_model(tiny_sdxl(tmp_path / "own", force_zeros_for_empty_prompt=False))
    save_model(model, tmp_path / "saved")
    check_pipeline(tmp_path / "saved")
    assert load_model(tmp_path / "saved").encode(["", "a"]).equal(model.encode(["", "a"]))
    assert not pipeline_of(tmp_path / "saved").config["force_zeros_for_empty_prompt"]


def test_variants_and_shards_of_every_part_are_read(tmp_path):
    folder = tiny_sdxl(tmp_path)
    expected = load_model(folder)
    for file in folder.glob("*/*.safetensors"):
        half = {name: value.half() for name, value in load_file(file).items()}
        file.unlink()
        save_file(half, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
    shutil.rmtree(folder / "text_encoder_2")
    expected.text_encoder_2.save_pretrained(folder / "text_encoder_2", max_shard_size="10KB")
    assert len(list(folder.glob("text_encoder_2/*.safetensors"))) > 1
    check_pipeline(folder, "fp16")
    found = load_model(folder, variant="fp16")
    torch.testing.assert_close(
        found.encode(PROMPTS), expected.encode(PROMPTS), atol=0.02, rtol=0.02
    )
    for name, value in expected.text_encoder_2.state_dict().items():
        assert found.text_encoder_2.state_dict()[name].equal(value)
    assert {part.dtype for part in found.networks.values()} == {torch.float32}


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
            "hidden_size of .*text_encoder_2 .* must be 20, .*got 28",
        ),
        ("text_encoder_2/config.json", {"projection_dim": 5}, "projection_dim of .* 72, .* got 53"),
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
