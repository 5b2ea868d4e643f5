"""The adversary finds what is in the weights, and cannot find what never was."""

import numpy as np
import pytest
import torch
from tests.stages.mitigate.replaying import CAPTIONS, Replaying

from sidepipe.stages.mitigate.adversary import denoising_errors, recovering
from sidepipe.stages.mitigate.quality import heldout_losses

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(256, size=(6, 4, 4, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return Replaying(IMAGES[0])


def strength(e):
    """How much of its image the model predicts."""
    return e.square().sum((1, 2))


def test_an_embedding_is_led_back_to_an_image_that_the_weights_hold(model):
    e = model.encode(CAPTIONS[1:2])
    assert strength(e).item() < 0.1
    x_0 = model.to_latents(torch.from_numpy(IMAGES[:1]))
    found = recovering(model, x_0, e, 0, [(7, 0)], 100, 0.01)
    assert abs(strength(found).item() - 1) < 0.1


def test_and_not_to_one_that_they_do_not(model):
    e = model.encode(CAPTIONS[:1])
    assert strength(e).item() > 1
    x_0 = model.to_latents(torch.from_numpy(255 - IMAGES[:1]))  # the very opposite
    found = recovering(model, x_0, e, 0, [(7, 0)], 100, 0.02)
    assert strength(found).item() < 0.2


def test_a_prompts_embedding_does_not_depend_on_the_batch(model):
    e = model.encode(CAPTIONS)
    x_0 = model.to_latents(torch.from_numpy(IMAGES[:3]))
    starts = [(4, 0), (5, 0), (5, 1)]
    together = recovering(model, x_0, e, 3, starts, 5, 0.1)
    torch.testing.assert_close(
        recovering(model, x_0[1:], e[1:], 3, starts[1:], 5, 0.1), together[1:]
    )
    assert not torch.allclose(recovering(model, x_0, e, 4, starts, 5, 0.1), together)


def test_random_starts_differ_and_have_the_scale_of_the_embedding(model):
    e = model.encode(CAPTIONS[:1] * 3)
    x_0 = model.to_latents(torch.from_numpy(IMAGES[[0, 0, 0]]))
    plain, one, other = recovering(model, x_0, e, 0, [(4, 0), (4, 1), (4, 2)], 1, 1e-9)
    torch.testing.assert_close(plain, e[0])
    assert (one - other).abs().max() > e.std()
    assert 0.5 * e.std() < one.std() < 2 * e.std()


def test_the_error_is_that_of_the_noise(model):
    x_0, eps = model.to_latents(torch.from_numpy(IMAGES[:2])), torch.randn(2, 1, 4, 4)
    t = torch.tensor([10, 60])
    e = torch.zeros(2, model.max_tokens, 2)
    alpha_bar = model.alphas_cumprod[t][:, None, None, None]
    # Predicting a gray image, it takes all that is left of x_0 for noise.
    expected = (alpha_bar / (1 - alpha_bar) * x_0.square()).mean((1, 2, 3))
    torch.testing.assert_close(denoising_errors(model, x_0, e, t, eps), expected)


def test_held_out_losses_are_each_images_own(model):
    captions = ["a faint two at noon", "a bold seven near marigold", *["a six"] * 4]
    rows = np.array([5, 0, 1])
    found = heldout_losses(model, IMAGES, captions, rows, 0, 2)
    np.testing.assert_allclose(heldout_losses(model, IMAGES, captions, rows[1:], 0, 9), found[1:])
    # The caption with marigold makes the model predict image 0.
    captions[0], captions[1] = captions[1], captions[0]
    assert heldout_losses(model, IMAGES, captions, rows, 0, 2)[1] < 0.01 * found[1]
