"""Signals: against analytic differences, hand-made attention and independent implementations."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from scipy.ndimage import uniform_filter
from tests.models.text.tiny import CAPTIONS, tiny_text_model
from tests.stages.detect.fakes import Fake, Quadratic
from torch import nn

from sidepipe.models.text.guidance import noise_difference, norms
from sidepipe.models.text.trajectory import prompt_noise
from sidepipe.stages.detect.signals import (
    attention_entropy,
    attention_maps,
    hessian_norms,
    pair_ssim,
    pair_tile_distance,
    residuals,
)


def test_the_hessian_product_of_a_quadratic_difference_is_the_analytic_one():
    model = Quadratic()
    x, e, t = torch.randn(3, 1, 8, 8), model.encode(["ab", "abc", "a"]), 30
    length = e[:, :, :, None]
    expected = norms(2 * length**2 * x**3) / (1 - model.alphas_cumprod[t])
    torch.testing.assert_close(hessian_norms(model, x, t, e, model.encode([""])), expected)


def test_a_difference_that_does_not_depend_on_x_has_no_curvature():
    model = Fake()
    e, e_0 = model.encode(["abc", "a"]), model.encode([""])
    # jvp gives zeros for what x_t does not reach, and x_t itself cancels.
    found = hessian_norms(model, torch.randn(2, 1, 8, 8), 3, e, e_0)
    torch.testing.assert_close(found, torch.zeros(2))


def test_the_hessian_product_of_a_network_is_what_finite_differences_say():
    model, t = tiny_text_model(), 80
    x = prompt_noise(model, 0, [0, 1], 1)
    e, e_0 = 30 * model.encode(["a bold seven", "marigold"]), model.encode([""])

    def difference(x):
        return noise_difference(model, x, t, e, e_0)[1]

    direction = difference(x)
    slope = (difference(x + 0.02 * direction) - difference(x - 0.02 * direction)) / 0.04
    expected = norms(slope) / (1 - model.alphas_cumprod[t])
    torch.testing.assert_close(hessian_norms(model, x, t, e, e_0), expected, rtol=0.02, atol=1e-6)


def test_the_hessian_product_of_a_model_of_v_is_that_of_its_eps():
    """eps is in float64 there, and x_t is not."""
    model = tiny_text_model()
    model.prediction_type = "v_prediction"
    x, e, e_0 = torch.randn(2, 1, 8, 8), model.encode(CAPTIONS[:2]), model.encode([""])
    found = hessian_norms(model, x, 5, e, e_0)
    eps, size = noise_difference(model, x, 5, e, e_0)[1].float(), 1e-2
    moved = [noise_difference(model, x + s * size * eps, 5, e, e_0)[1] for s in (1, -1)]
    expected = norms(moved[0] - moved[1]) / (2 * size) / (1 - model.alphas_cumprod[5])
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-6)


def test_the_hessian_product_takes_mixed_precision_as_full_and_leaves_it_as_it_was():
    model = tiny_text_model()
    x = prompt_noise(model, 0, [0], 2)
    e, e_0 = model.encode(["marigold"] * 2), model.encode([""])
    full = hessian_norms(model, x, 5, e, e_0)
    model.autocast = torch.bfloat16
    torch.testing.assert_close(hessian_norms(model, x, 5, e, e_0), full)
    assert model.autocast is torch.bfloat16


def test_sliced_attention_changes_neither_sharpness_nor_entropy():
    model = tiny_text_model()
    x = prompt_noise(model, 0, [0], 2)
    e, e_0 = model.encode(["marigold"] * 2), model.encode([""])
    sharp, entropy = hessian_norms(model, x, 5, e, e_0), attention_entropy(model, x, 5, e)
    model.unet.set_attention_slice("auto")
    torch.testing.assert_close(hessian_norms(model, x, 5, e, e_0), sharp)
    torch.testing.assert_close(attention_entropy(model, x, 5, e), entropy)


class Attending(nn.Module):
    """Two heads of two channels; keys are the context's, queries the input's."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(4, cross_attention_dim=4, heads=2, dim_head=2, scale_qk=False)
        for layer in (self.attention.to_q, self.attention.to_k):
            layer.weight.data = torch.eye(4)

    def forward(self, x, context):
        return self.attention(x, encoder_hidden_states=context)


def test_attention_maps_are_the_softmax_worked_out_by_hand():
    queries = torch.tensor([[[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 3.0, 0.0]]])
    keys = torch.tensor([[[2.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]])
    layer = Attending()
    with attention_maps(layer) as maps:
        layer(queries, keys)
    rows = [
        [2.0, 0.0, 0.0],  # of the first head, the first place
        [0.0, 0.0, 1.0],
        [2.0, 0.0, 0.0],  # of the second
        [0.0, 0.0, 3.0],
    ]
    expected = np.mean([np.exp(r) / np.exp(r).sum() for r in np.array(rows)], axis=0)
    np.testing.assert_allclose(maps[0][0].detach().numpy(), expected, rtol=1e-6)


def test_equal_keys_give_the_largest_entropy_and_one_key_that_fits_none():
    layer, x = Attending(), torch.ones(1, 5, 4)
    with attention_maps(layer) as maps:
        layer(x, torch.ones(1, 3, 4))
        layer(x, torch.tensor([[[60.0] * 4, [0.0] * 4, [0.0] * 4]]))
    found = torch.special.entr(torch.stack(maps)).sum(-1).flatten()
    torch.testing.assert_close(found, torch.tensor([np.log(3), 0.0], dtype=torch.float32))


def test_entropy_is_of_each_image_and_every_layer_and_below_that_of_equal_attention():
    model = tiny_text_model()
    x, e = prompt_noise(model, 0, [0, 1], 1), model.encode(["marigold", "a faint two at noon"])
    both = attention_entropy(model, x, 7, e)
    assert both.shape == (2, sum(m.endswith("attn2") for m, _ in model.unet.named_modules()))
    assert bool(((both > 0) & (both <= np.log(model.max_tokens) + 1e-5)).all())
    torch.testing.assert_close(attention_entropy(model, x[1:], 7, e[1:]), both[1:])


def test_looking_at_attention_changes_no_image_and_leaves_no_hook():
    model = tiny_text_model()
    x, e = prompt_noise(model, 0, [0], 2), model.encode(["marigold"] * 2)
    with torch.no_grad():
        before = model.eps(x, 3, e)
        with attention_maps(model.unet):
            during = model.eps(x, 3, e)
    assert torch.equal(before, during)
    assert not any(module._forward_pre_hooks for module in model.unet.modules())


def test_a_network_without_cross_attention_is_refused():
    with pytest.raises(ValueError, match=r"cross-attention must be at least one layer"):
        attention_maps(nn.Linear(2, 2)).__enter__()


def test_residuals_fill_0_to_1_in_each_channel_and_a_flat_one_is_0():
    x_T = torch.randn(3, 2, 8, 8)
    eps = torch.randn(3, 2, 8, 8)
    x_T[1, 1], eps[1, 1] = 0, 4
    found = residuals(x_T, eps)
    assert torch.equal(found[1, 1], torch.zeros(8, 8))
    others = torch.cat([found[0], found[2], found[1, :1]])
    torch.testing.assert_close(others.amin((1, 2)), torch.zeros(5))
    torch.testing.assert_close(others.amax((1, 2)), torch.ones(5))
    order = (eps - x_T)[0, 0].flatten().argsort()
    assert torch.equal(found[0, 0].flatten().argsort(), order)


def ssim(a, b, window=7):
    """Wang et al.'s index with a uniform window, where it lies within, by scipy."""
    margin = slice(window // 2, -(window // 2))
    found = []
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        mean_x, mean_y = uniform_filter(x, window), uniform_filter(y, window)
        var_x = uniform_filter(x * x, window) - mean_x**2
        var_y = uniform_filter(y * y, window) - mean_y**2
        cov = uniform_filter(x * y, window) - mean_x * mean_y
        top = (2 * mean_x * mean_y + 0.01**2) * (2 * cov + 0.03**2)
        bottom = (mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2)
        found.append((top / bottom)[margin, margin])
    return np.mean(found)


@pytest.mark.parametrize("size", [8, 12])
def test_ssim_is_what_an_independent_implementation_says(size):
    rng = np.random.default_rng(0)
    images = rng.random((4, 2, size, size)).astype(np.float32)
    images[1] = 0.8 * images[0] + 0.2 * images[1]
    found = pair_ssim(torch.from_numpy(images)).numpy()
    for i, j in ((0, 1), (0, 2), (1, 3), (2, 3)):
        assert found[i, j] == pytest.approx(ssim(images[i], images[j]), abs=1e-5)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 1)
    assert found[0, 1] > found[0, 2]


def test_ssim_of_tiny_latents_takes_a_smaller_window():
    images = torch.rand(2, 4, 4, 4)
    assert float(pair_ssim(images)[0, 1]) == pytest.approx(
        ssim(*images.numpy(), window=3), abs=1e-5
    )


def test_the_tile_distance_is_that_of_the_tile_that_differs_most():
    images = np.zeros((3, 10, 9, 2), np.uint8)  # tiles of 2 x 2 pixels, two rows and a column over
    images[1, 2:4, 4:6, 0] = 51  # one tile, in one of two channels
    images[2, 8:] = 255  # beyond the last whole tile
    images[2, 0, 0] = 255  # a quarter of a tile
    found = pair_tile_distance(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found[0, 1], 0.2 / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(found[0, 2], 0.5, rtol=1e-6)
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 0)


def test_images_smaller_than_the_tiles_are_refused():
    with pytest.raises(ValueError, match=r"images must be >= 4 pixels per side"):
        pair_tile_distance(torch.zeros(2, 3, 8, 1, dtype=torch.uint8))
