"""Token significance against finite differences, by token and by encoded embedding."""

import pytest
import torch
from tests.models.text.tiny import CAPTIONS, tiny_stable_diffusion, tiny_text_model

from sidepipe.models.text.guidance import noise_difference, norms
from sidepipe.models.text.pipeline import load_model
from sidepipe.models.text.significance import difference_and_gradient, encoded, token_significance
from sidepipe.models.text.trajectory import prompt_noise, sample


@pytest.fixture(scope="module")
def model():
    return tiny_text_model()


def test_a_gradient_is_that_of_finite_differences(model):
    x_t, e, e_0 = prompt_noise(model, 3, [4, 9], 1), model.encode(CAPTIONS[:2]), model.encode([""])
    eps_0, difference, gradient = difference_and_gradient(model, x_t, 40, e, e_0)
    expected = noise_difference(model, x_t, 40, e, e_0)
    torch.testing.assert_close((eps_0, difference), expected)
    direction = torch.randn(e.shape, generator=torch.Generator().manual_seed(0))
    lengths = [
        norms(noise_difference(model, x_t, 40, e + step * direction, e_0)[1])
        for step in (-0.01, 0.01)
    ]
    slope = (lengths[1] - lengths[0]) / 0.02
    torch.testing.assert_close((gradient * direction).sum((1, 2)), slope, rtol=0.01, atol=1e-4)


def test_what_the_encoder_makes_of_token_embeddings_can_be_derived_by_them(model):
    e, (embeddings,) = encoded(model, CAPTIONS[:2])
    torch.testing.assert_close(e.detach(), model.encode(CAPTIONS[:2]))
    assert not model.encode(CAPTIONS).requires_grad  # nothing is left behind
    (gradient,) = torch.autograd.grad(e[:, 3, 0].sum(), embeddings)
    # The encoder is causal: what comes later says nothing of position 3.
    assert (gradient[:, 4:] == 0).all()
    assert (gradient[:, :4].norm(dim=2) > 0).all()


def test_significance_is_the_mean_of_norms_along_the_guided_trajectory(model):
    x_T, e, e_0 = prompt_noise(model, 0, [0, 1], 1), model.encode(CAPTIONS[:2]), model.encode([""])
    by_token, by_encoded = token_significance(model, x_T, CAPTIONS[:2], 2.0, 5, 3)
    states, expected = [], []
    eps = model.eps
    model.eps = lambda x, t, e: (states.append((x[: len(x) // 2], t)), eps(x, t, e))[1]
    try:
        sample(model, x_T, e, e_0, 2.0, 5)
    finally:
        del model.eps
    for x_t, t in states[:3]:
        expected.append(difference_and_gradient(model, x_t, t, e, e_0)[2].norm(dim=2))
    torch.testing.assert_close(by_encoded, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)
    assert by_token.shape == by_encoded.shape == (2, model.max_tokens)
    assert (by_token > 0).all()


def test_by_token_it_is_the_gradient_through_the_encoder(model):
    x_T, e_0 = prompt_noise(model, 0, [0], 1), model.encode([""])
    e, (embeddings,) = encoded(model, CAPTIONS[:1])
    length = norms(model.eps(x_T, 80, e) - model.eps(x_T, 80, e_0))
    (gradient,) = torch.autograd.grad(length.sum(), embeddings)
    by_token, _ = token_significance(model, x_T, CAPTIONS[:1], 2.0, 5, 1)
    torch.testing.assert_close(by_token, gradient.norm(dim=2), rtol=1e-4, atol=1e-7)


def test_a_prompts_significance_does_not_depend_on_the_batch(model):
    x_T = prompt_noise(model, 0, [0, 1, 2], 1)
    together = token_significance(model, x_T, CAPTIONS, 2.0, 4, 4)
    alone = token_significance(model, x_T[1:2], CAPTIONS[1:2], 2.0, 4, 4)
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[1:2], one, rtol=1e-4, atol=1e-6)


def test_half_precision_gives_about_the_same(tmp_path):
    folder = tiny_stable_diffusion(tmp_path)
    found = []
    for precision in ("32-true", "bf16-true"):
        model = load_model(folder, precision)
        x_T = prompt_noise(model, 0, [0], 1)
        found.append(token_significance(model, x_T, ["a two"], 7.5, 3, 2)[0])
    assert found[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*(f.flatten() for f in found), dim=0) > 0.99
