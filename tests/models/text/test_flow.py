"""Stable Diffusion 3 and Flux: embeddings, latents and images equal those of their pipelines."""

import json

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
)
from tests.models.text.tiny import POOLED, WIDE, WIDTH, tiny_flux, tiny_sd3

from sidepipe.models.text.checks import check_pipeline, image_shape
from sidepipe.models.text.denoiser import PromptedDenoiser
from sidepipe.models.text.flow import packed, unpacked
from sidepipe.models.text.guidance import noise_difference, norms, prompt_guided
from sidepipe.models.text.pipeline import load_model, save_model
from sidepipe.models.text.sdxl import without_pooled
from sidepipe.models.text.significance import encoded
from sidepipe.models.text.trajectory import prompt_noise, prompt_timesteps, sample_x_0
from sidepipe.stages.lora.adapters import LabeledDenoiser
from sidepipe.stages.mitigate.attention import attention_scaled
from sidepipe.stages.mitigate.methods import lowered

PROMPTS, STEPS, SCALE = ["abc", "hello world"], 10, 4.0


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return tiny_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return tiny_flux(tmp_path_factory.mktemp("flux"))


def pipeline_of(kind, folder):
    pipeline = kind.from_pretrained(folder, **without_t5(kind, folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def without_t5(kind, folder):
    """What diffusers has to be told of a Stable Diffusion 3 without T5."""
    has_t5 = kind is FluxPipeline or (folder / "text_encoder_3").is_dir()
    return {} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}


def times_of(model, num_inference_steps):
    """The times of the model's levels, for a scheduler without a shift."""
    alpha_bar = model.alphas_cumprod[prompt_timesteps(model, num_inference_steps)].double()
    return ((1 - alpha_bar).sqrt() / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt())).tolist()


def without_shift(pipeline):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return pipeline


def compared(pipeline, model, found, prompts, **options):
    """Latents to 1e-4, images to one gray level."""
    expected = pipeline(prompts, **options, output_type="latent").images
    if expected.ndim == 3:  # of Flux, which are packed
        side = int(expected.shape[1] ** 0.5)
        expected = unpacked(expected, side, side)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    images = torch.from_numpy(pipeline(prompts, **options, output_type="np").images) * 255
    assert (model.decode(found).float() - images).abs().max() <= 1


@pytest.mark.parametrize("with_t5", [True, False])
def test_latents_and_images_of_stable_diffusion_3_equal_those_of_its_pipeline(tmp_path, with_t5):
    folder = tiny_sd3(tmp_path, with_t5)
    check_pipeline(folder)
    model, pipeline = load_model(folder), pipeline_of(StableDiffusion3Pipeline, folder)
    options = {"prompt_2": None, "prompt_3": None, "device": "cpu"}
    positions, nothing, pooled, pooled_nothing = pipeline.encode_prompt(PROMPTS, **options)
    e, e_0 = model.encode(PROMPTS), model.encode([""])
    width = model.transformer.config["pooled_projection_dim"]
    found = without_pooled(e, 77 + 256, width)
    torch.testing.assert_close(found, (positions, pooled), rtol=0, atol=1e-4)
    expected = nothing[:1], pooled_nothing[:1]
    found = without_pooled(e_0, 77 + 256, width)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    x_T = prompt_noise(model, 0, [0, 1], 1)
    found = sample_x_0(model, x_T, e, e_0, SCALE, STEPS)
    times = times_of(model, STEPS)
    options = {"latents": x_T, "sigmas": times, "num_inference_steps": STEPS}
    compared(without_shift(pipeline), model, found, PROMPTS, guidance_scale=SCALE, **options)
    assert positions[:, 77:].any() == with_t5


@pytest.mark.parametrize("guidance_embeds", [False, True])
def test_latents_and_images_of_flux_equal_those_of_its_pipeline(tmp_path, guidance_embeds):
    folder = tiny_flux(tmp_path, guidance_embeds)
    check_pipeline(folder)
    model, pipeline = load_model(folder), pipeline_of(FluxPipeline, folder)
    positions, pooled, _ = pipeline.encode_prompt(PROMPTS)
    e = model.encode(PROMPTS)
    found = without_pooled(e, 512, WIDTH)
    torch.testing.assert_close(found, (positions, pooled), rtol=0, atol=1e-4)
    x_T = prompt_noise(model, 0, [0, 1], 1)
    # The prompt alone; a distilled network takes the scale as an input.
    denoiser = PromptedDenoiser(model, PROMPTS, 3.5 if guidance_embeds else 1.0)
    assert denoiser.evaluations == 1
    found = sample_x_0(model, x_T, e, e, 1.0, STEPS)
    times = times_of(model, STEPS)
    options = {"latents": packed(x_T), "sigmas": times, "num_inference_steps": STEPS}
    options |= {"height": 16, "width": 16, "guidance_scale": 3.5}
    compared(without_shift(pipeline), model, found, PROMPTS, **options)
    t = prompt_timesteps(model, STEPS)[3]
    at_scale = denoiser.eps_fn(torch.tensor([0, 1]))(x_T, t)
    model.guidance_scale = 1.0
    assert at_scale.equal(denoiser.eps_fn(torch.tensor([0, 1]))(x_T, t)) != guidance_embeds


def test_flux_with_an_empty_prompt_equals_the_pipelines_true_guidance(flux):
    model, pipeline = load_model(flux), without_shift(pipeline_of(FluxPipeline, flux))
    x_T = prompt_noise(model, 0, [0, 1], 1)
    e, e_0 = model.encode(PROMPTS), model.encode([""])
    found = sample_x_0(model, x_T, e, e_0, SCALE, STEPS)
    options = {"latents": packed(x_T), "sigmas": times_of(model, STEPS), "height": 16, "width": 16}
    options |= {"negative_prompt": ["", ""], "true_cfg_scale": SCALE}
    compared(pipeline, model, found, PROMPTS, num_inference_steps=STEPS, **options)


@pytest.mark.parametrize("kind", ["sd3", "flux", "flux without dynamic shift"])
def test_steps_are_the_levels_nearest_to_those_of_the_pipeline(tmp_path, kind):
    if kind == "sd3":
        folder, pipeline = tiny_sd3(tmp_path), StableDiffusion3Pipeline
        options = {}
    else:
        folder, pipeline = tiny_flux(tmp_path, dynamic=kind == "flux"), FluxPipeline
        options = {"height": 16, "width": 16}
    model, pipeline = load_model(folder), pipeline_of(pipeline, folder)
    pipeline("abc", num_inference_steps=8, output_type="latent", **options)
    own = pipeline.scheduler.sigmas[:-1].tolist()
    # Neighboring levels are at most 0.04 of time apart where the network makes images.
    assert times_of(model, 8) == pytest.approx(own, abs=0.02)
    assert model.step_rule.scheduler.config["shift"] == 3.0


def test_images_are_the_latents_of_their_own_encoding(sd3):
    model = load_model(sd3)
    assert image_shape(sd3) == model.image_shape == (3, 8, 8)
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    with torch.no_grad():
        mean = model.vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    expected = (mean - 0.3) * model.vae.config["scaling_factor"]
    torch.testing.assert_close(model.to_latents(images), expected)


@pytest.mark.parametrize("kind", ["sd3", "sd3 without t5", "flux"])
def test_a_saved_model_is_the_same_and_diffusers_reads_it(tmp_path, kind):
    if kind == "flux":
        folder, pipeline = tiny_flux(tmp_path / "own"), FluxPipeline
    else:
        folder, pipeline = tiny_sd3(tmp_path / "own", kind == "sd3"), StableDiffusion3Pipeline
    model = load_model(folder)
    save_model(model, tmp_path / "saved")
    check_pipeline(tmp_path / "saved")
    back = load_model(tmp_path / "saved")
    e, x_t = model.encode(PROMPTS), prompt_noise(model, 0, [0, 1], 1)
    assert back.encode(PROMPTS).equal(e)
    assert back.eps(x_t, 500, e).equal(model.eps(x_t, 500, e))
    assert prompt_timesteps(back, 7) == prompt_timesteps(model, 7)
    assert isinstance(pipeline_of(pipeline, tmp_path / "saved"), pipeline)


def test_gradients_reach_every_row_of_the_embedding(sd3):
    model = load_model(sd3)
    x_t, e = prompt_noise(model, 0, [0], 1), model.encode(["abc"]).requires_grad_()
    (gradient,) = torch.autograd.grad(model.eps(x_t, 700, e).square().sum(), e)
    used = without_pooled(gradient.ne(0), 77 + 256, POOLED)
    assert used[0].any(2).all()
    assert used[1].all()


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # of torch's autocast
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_other_precisions_predict_nearly_the_same(sd3, flux, precision):
    for folder in (sd3, flux):
        model, full = load_model(folder, precision), load_model(folder)
        e, x_t = full.encode(PROMPTS), prompt_noise(full, 0, [0, 1], 1)
        one, other = (some.eps(x_t, 500, e) for some in (model, full))
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.1)
        assert not one.equal(other)
        guided = prompt_guided(model, e, full.encode([""]), 2.0)(x_t, 500)
        assert guided.isfinite().all()


def test_mitigation_lowers_the_norm_and_the_label_of_lora_changes_all_that_is_received(sd3):
    model = load_model(sd3)
    x_T, e, e_0 = prompt_noise(model, 0, [0], 1), model.encode(["abc"]), model.encode([""])
    t = prompt_timesteps(model, 5)[0]
    found, _ = lowered(model, x_T, t, e, e_0, target=0.0, lr=0.05, max_iterations=10)
    before, after = (norms(noise_difference(model, x_T, t, some, e_0)[1]) for some in (e, found))
    assert (after < 0.8 * before).all()
    with pytest.raises(ValueError, match="with cross-attention, got 'SD3Transformer2DModel'"):
        attention_scaled(model, [3], 1.25).__enter__()
    with pytest.raises(ValueError, match=r"of CLIP alone, .* got \['text_encoder_3'\]"):
        encoded(model, ["abc"])
    denoiser = LabeledDenoiser(PromptedDenoiser(model), 3, 2, ["to_q", "to_v"])
    y = torch.tensor([1])
    expected = PromptedDenoiser(load_model(sd3)).eps_fn(y)(x_T, 500)
    assert denoiser.eps_fn(y)(x_T, 500).equal(expected)
    denoiser.network(x_T, torch.tensor([500]), y).square().sum().backward()
    assert denoiser.network.pseudo_tokens.grad[1].any(1).all()


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("make", "file", "values", "message"),
    [
        (
            tiny_sd3,
            "text_encoder_3/config.json",
            {"d_model": 16},
            f"d_model of text_encoder_3 .* must be {WIDE}, the joint_attention_dim of the tr.* 16",
        ),
        (
            tiny_sd3,
            "text_encoder/config.json",
            {"projection_dim": 8},
            f"projection_dim of text_encoder and text_encoder_2 .* must be {POOLED}, .* got 22",
        ),
        (
            tiny_sd3,
            "text_encoder/config.json",
            {"hidden_size": 30},
            f"hidden_size of text_encoder and text_encoder_2 .* must be {WIDE}, .* got 42",
        ),
        (tiny_sd3, "text_encoder_3/config.json", {"model_type": "umt5"}, "must be t5, got 'umt5'"),
        (tiny_sd3, "vae/config.json", {"latent_channels": 16}, "must be 4, the in_channels of the"),
        (tiny_flux, "vae/config.json", {"latent_channels": 16}, "must be 4, the in_channels of"),
        (
            tiny_flux,
            "transformer/config.json",
            {"_class_name": "SD3Transformer2DModel"},
            "must be of class FluxTransformer2DModel",
        ),
        (tiny_flux, "transformer/config.json", {"out_channels": 8}, r"equal, got \[16, 8\]"),
        (
            tiny_flux,
            "scheduler/scheduler_config.json",
            {"_class_name": "DDIMScheduler"},
            "must be one of FlowMatchEulerDiscreteScheduler, .* got 'DDIMScheduler'",
        ),
        (tiny_flux, "scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas"),
        (
            tiny_flux,
            "model_index.json",
            {"text_encoder_2": [None, None]},
            "the parts of the FluxPipeline in .* must be scheduler, text_encoder, text_encoder_2",
        ),
        (
            tiny_flux,
            "model_index.json",
            {"_class_name": "FluxFillPipeline"},
            "Stable Diffusion 3 or Flux for another task",
        ),
    ],
)
def test_parts_that_do_not_fit_one_another_are_refused(tmp_path, make, file, values, message):
    changed(make(tmp_path) / file, **values)
    with pytest.raises(ValueError, match=message) as error:
        check_pipeline(tmp_path)
    assert "\n" not in str(error.value)


def test_a_t5_tokenizer_without_its_files_is_refused(tmp_path):
    (tiny_sd3(tmp_path) / "tokenizer_3/tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer_3 must hold spiece.model, or tokenize"):
        check_pipeline(tmp_path)
