"""One interface to text-conditional models, of images and of latents."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests.models.text.tiny import CAPTIONS, MAX_TOKENS, tiny_stable_diffusion, tiny_text_model

from sidepipe.models.text.checks import check_pipeline
from sidepipe.models.text.guidance import noise_difference, norms, prompt_guided
from sidepipe.models.text.memory import images_at_once
from sidepipe.models.text.pipeline import TextToImagePipeline, load_model, save_model
from sidepipe.models.text.trajectory import prompt_noise, prompt_timesteps, sample
from sidepipe.models.text.words import word_tokenizer


@pytest.fixture(scope="module")
def model():
    return tiny_text_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


def test_embeddings_depend_on_the_words_and_nothing_else_of_the_batch(model):
    alone, together = model.encode([CAPTIONS[0]]), model.encode(CAPTIONS)
    assert alone.shape == (1, MAX_TOKENS, 8)
    torch.testing.assert_close(together[:1], alone)
    assert not torch.allclose(together[0], together[1])


def test_what_does_not_fit_is_named_from_where_it_is_cut(model):
    fits = model.tokens("a bold seven")
    assert fits.words == ["<start>", "a", "bold", "seven", "<end>"]
    assert fits.cut == ""
    # Eight words fit between start and end.
    cut = model.tokens("a bold seven a faint two a bold seven by noon")
    assert cut.cut == "seven by noon"
    assert len(cut.words) == MAX_TOKENS


def test_a_word_no_caption_had_is_unknown(model):
    assert model.tokens("a bold zebra").words[3] == "<unk>"


def test_a_caption_longer_than_the_encoder_takes_is_an_error_before_training():
    with pytest.raises(ValueError, match=r"dpm\.max_tokens must be >= 7"):
        word_tokenizer(["one two three four five"], 6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_eps_is_what_the_network_predicts_turned_into_noise(folder, model, kind):
    e = model.encode(CAPTIONS[:2])
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 70])
    raw = model.unet(x_t, t, encoder_hidden_states=e).sample
    alpha_bar = model.alphas_cumprod[t][:, None, None, None]
    expected = {
        "epsilon": raw,
        "v_prediction": alpha_bar.sqrt() * raw + (1 - alpha_bar).sqrt() * x_t,
        "sample": (x_t - alpha_bar.sqrt() * raw) / (1 - alpha_bar).sqrt(),
    }
    before, model.prediction_type = model.prediction_type, kind
    try:
        torch.testing.assert_close(model.eps(x_t, t, e).float(), expected[kind])
    finally:
        model.prediction_type = before


def test_the_difference_is_that_of_two_predictions_and_guidance_adds_it(model):
    e, e_0 = model.encode(CAPTIONS[:2]), model.encode([""])
    x_t = torch.randn(2, 1, 8, 8)
    eps_0, difference = noise_difference(model, x_t, 50, e, e_0)
    torch.testing.assert_close(eps_0, model.eps(x_t, 50, e_0.expand_as(e)))
    torch.testing.assert_close(eps_0 + difference, model.eps(x_t, 50, e))
    torch.testing.assert_close(norms(difference)[1], difference[1].pow(2).sum().sqrt())
    for scale, expected in [(0, eps_0), (1, eps_0 + difference), (4, eps_0 + 4 * difference)]:
        torch.testing.assert_close(prompt_guided(model, e, e_0, scale)(x_t, 50), expected)


def test_who_looks_sees_every_step_of_the_trajectory(model):
    e, e_0 = model.encode(CAPTIONS[:1]), model.encode([""])
    seen = []
    sample(model, prompt_noise(model, 0, [0], 1), e, e_0, 2.0, 5, look=lambda t, *_: seen.append(t))
    assert seen == prompt_timesteps(model, 5) == [80, 60, 40, 20, 0]


def test_a_prompts_images_depend_on_its_number_and_the_seed_alone(model):
    both = prompt_noise(model, 3, [4, 9], 2)
    torch.testing.assert_close(both[2:], prompt_noise(model, 3, [9], 2))
    torch.testing.assert_close(both[2:3], prompt_noise(model, 3, [9], 1))
    assert not torch.allclose(both[:2], prompt_noise(model, 4, [4], 2))


def test_gradients_reach_the_embedding(model):
    e = model.encode(CAPTIONS[:1]).requires_grad_(True)
    norms(
        noise_difference(model, torch.randn(1, 1, 8, 8), 90, e, model.encode([""]))[1]
    ).sum().backward()
    assert e.grad.abs().sum() > 0


def test_a_saved_model_comes_back_and_diffusers_reads_it(model, tmp_path):
    save_model(model, tmp_path)
    check_pipeline(tmp_path)
    back = load_model(tmp_path)
    e = model.encode(CAPTIONS)
    assert torch.equal(back.encode(CAPTIONS), e)
    x_t = torch.randn(3, 1, 8, 8)
    assert torch.equal(back.eps(x_t, 5, e), model.eps(x_t, 5, e))
    pipeline = TextToImagePipeline.from_pretrained(tmp_path)
    assert pipeline.unet.config["cross_attention_dim"] == 8


def test_stable_diffusions_latents_are_decoded_as_its_pipeline_does(folder):
    model = load_model(folder)
    assert model.latent_shape == (4, 4, 4)
    assert prompt_timesteps(model, 5) == [81, 61, 41, 21, 1]  # its scheduler's offset of 1
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    prompts = ["abc", "hello world"]
    expected, nothing = pipeline.encode_prompt(prompts, "cpu", 1, True)
    torch.testing.assert_close(model.encode(prompts), expected)
    torch.testing.assert_close(model.encode(["", ""]), nothing)
    latents = prompt_noise(model, 0, [0, 1], 1)
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    images = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(model.decode(latents), images)
    assert model.to_latents(images).shape == latents.shape


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)]
)
def test_weights_in_fewer_bits_keep_the_interface_in_32(folder, precision, dtype):
    model = load_model(folder, precision)
    assert model.unet.dtype == dtype
    e = model.encode(["abc"])
    eps = model.eps(torch.randn(1, 4, 4, 4), 50, e)
    assert e.dtype == eps.dtype == torch.float32
    full = load_model(folder)
    torch.testing.assert_close(e, full.encode(["abc"]), atol=0.05, rtol=0.05)


def test_mixed_precision_casts_operations_and_not_weights(folder):
    model, full = load_model(folder, "bf16-mixed"), load_model(folder)
    x_t, e = torch.randn(1, 4, 4, 4), full.encode(["abc"])
    assert model.unet.dtype == torch.float32
    one, other = model.eps(x_t, 50, e), full.eps(x_t, 50, e)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_the_batch_on_a_cpu_is_bounded_by_what_the_images_hold(folder, model):
    assert images_at_once(model, None) == 256
    assert images_at_once(model, 3) == 3
    assert images_at_once(model, None, share=0.25) == 64


def test_a_prediction_that_is_not_finite_names_its_step(model):
    x_T, e, e_0 = prompt_noise(model, 0, [0, 1], 1), model.encode(CAPTIONS[:2]), model.encode([""])
    bias = model.unet.conv_out.bias
    before = bias.data.clone()
    try:
        bias.data[0] = torch.inf
        with pytest.raises(RuntimeError, match=r"the prediction is not finite at t = \d+, in 2 of"):
            sample(model, x_T, e, e_0, 2.0, 5)
    finally:
        bias.data.copy_(before)
    assert sample(model, x_T, e, e_0, 2.0, 5).shape == (2, 8, 8, 1)


def test_an_autoencoder_that_overflows_is_an_error_and_no_black_image(folder):
    latent = load_model(folder)
    latent.vae.decoder.conv_out.bias.data[0] = torch.nan
    message = r"the autoencoder's images in torch.float32 are not finite; .*precision=bf16-mixed"
    with pytest.raises(RuntimeError, match=message):
        latent.decode(torch.zeros(1, *latent.latent_shape))
