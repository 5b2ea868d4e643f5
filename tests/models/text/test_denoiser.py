import pytest
import torch
from tests.models.text.tiny import CAPTIONS, tiny_stable_diffusion, tiny_text_model

from sidepipe.models.text.denoiser import PromptedDenoiser
from sidepipe.models.text.pipeline import load_model

Y = torch.tensor([2, 0, 1, 0])


@pytest.fixture(scope="module")
def model():
    return tiny_text_model()


def x_t(model, count=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *model.latent_shape, generator=generator)


def test_without_prompts_it_is_the_empty_one_whatever_y(model):
    denoiser = PromptedDenoiser(model)
    expected = model.eps(x_t(model), 40, model.encode([""] * 4))
    torch.testing.assert_close(denoiser.eps_fn(Y)(x_t(model), 40), expected)
    assert denoiser.evaluations == 1


def test_each_image_has_its_own_prompt_and_at_scale_1_it_alone(model):
    denoiser = PromptedDenoiser(model, CAPTIONS)
    expected = model.eps(x_t(model), 40, model.encode([CAPTIONS[y] for y in Y]))
    torch.testing.assert_close(denoiser.eps_fn(Y)(x_t(model), 40), expected)
    assert denoiser.evaluations == 1
    other = denoiser.eps_fn(Y.flip(0))(x_t(model), 40)
    assert (other - expected).abs().amax((1, 2, 3)).min() > 1e-6


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_another_scale_is_classifier_free_guidance_and_costs_two(model, scale):
    denoiser, e_0 = PromptedDenoiser(model, CAPTIONS, scale), model.encode([""] * 4)
    eps_0, eps = (
        model.eps(x_t(model), 40, e) for e in (e_0, model.encode([CAPTIONS[y] for y in Y]))
    )
    found = denoiser.eps_fn(Y)(x_t(model), 40)
    torch.testing.assert_close(found, eps_0 + scale * (eps - eps_0), rtol=1e-4, atol=1e-5)
    assert denoiser.evaluations == 2


def test_of_latents_it_decodes_with_the_autoencoder_and_says_the_images_shape(tmp_path):
    model = load_model(tiny_stable_diffusion(tmp_path))
    denoiser, x_0 = PromptedDenoiser(model), x_t(model, 11)
    images = denoiser.decode(x_0)
    assert images.shape == (11, 8, 8, 3)
    assert denoiser.image_shape == (3, 8, 8)
    assert denoiser.shape == (4, 4, 4)
    assert not denoiser.has_range
    assert denoiser.as_saved(x_0) is x_0
    assert (images.int() - model.decode(x_0).int()).abs().max() <= 1
    assert denoiser.timesteps(10, "leading") == list(range(91, 0, -10))


def test_images_are_their_own_latents(model):
    denoiser = PromptedDenoiser(model)
    assert denoiser.image_shape == denoiser.shape == (1, 8, 8)
    assert denoiser.has_range
    assert denoiser.decode(torch.full((1, 1, 8, 8), 9.0)).unique().tolist() == [255]


def test_prompts_that_are_longer_than_the_encoder_are_counted_once(model, caplog):
    long = " ".join(["seven"] * 60)
    denoiser = PromptedDenoiser(model, [*CAPTIONS, long])
    denoiser.eps_fn(Y)(x_t(model), 40)
    [record] = [r for r in caplog.records if r.levelname == "WARNING"]
    start = f"1 of {len(CAPTIONS) + 1} prompts are longer than the {model.max_tokens} tokens"
    assert record.getMessage().startswith(start)
