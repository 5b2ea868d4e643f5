from types import SimpleNamespace

import pytest
import torch
from tests.tiny import UNET
from torch import nn
from torch.nn import functional as F

from sidepipe.base.settings import build
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.guidance import Posterior
from sidepipe.diffusion.nearest import NearestPosterior
from sidepipe.stages.attack import cost
from sidepipe.stages.attack.cost import gradient_cost, gradient_seconds, with_evaluations
from sidepipe.stages.attack.surrogates import ClassifierSurrogate

ALPHAS_CUMPROD = torch.linspace(0.9, 0.1, 100)
Y = torch.tensor([2, 0, 1])


class Clock:
    """Time that passes only where work is done."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Working(nn.Module):
    """Takes the given seconds, one call after another; keeps what it was asked."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.asked = clock, iter(seconds), []

    def forward(self, x_t, t, y=None):
        self.clock.now += next(self.seconds)
        product = x_t.flatten(1) @ x_t.flatten(1).T
        self.asked.append((tuple(x_t.shape), t.tolist(), y, product.dtype))
        return SimpleNamespace(sample=x_t)

    grad_log_prob = forward


def denoiser(network):
    return Denoiser(network, ALPHAS_CUMPROD, "epsilon", (3, 4, 4))


class Linear(nn.Module):
    """One product of 48 x 48 for an image: 2 * 48 * 48 operations."""

    def __init__(self, num_layers=1):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(48, 48) for _ in range(num_layers)))

    def forward(self, x_t, t, y=None):
        return SimpleNamespace(sample=self.layers(x_t.flatten(1)).reshape(x_t.shape))


FORWARD = 2 * 48 * 48


class Classifier(nn.Module):
    """A 3 x 3 convolution from 3 to 5 channels of 4 x 4 pixels, and 7 logits."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5 * 16, 7)

    def forward(self, x_t, t):
        return self.head(F.silu(self.conv(x_t)).flatten(1))


def test_a_classifier_s_gradient_costs_its_operations_forward_and_back_to_the_image():
    convolution, head = 2 * 5 * 3 * 9 * 16, 2 * 80 * 7
    # No gradient of a weight is taken: backward costs what forward does.
    expected = 2 * (convolution + head) / FORWARD
    surrogate = ClassifierSurrogate(Classifier())
    assert gradient_cost(denoiser(Linear()), surrogate, Y, 50) == pytest.approx(expected, rel=1e-12)


def test_the_posterior_s_gradient_costs_its_products_with_the_images_of_a_label_and_of_all():
    images = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, -1, -1])
    # Of each image asked for, products of 49 numbers (weights) and 48 (the mean).
    products = (10 + 2) + (10 + 4) + (10 + 2)
    expected = products * 2 * (49 + 48) / 3 / FORWARD
    posterior = Posterior(images, labels, ALPHAS_CUMPROD)
    assert gradient_cost(denoiser(Linear()), posterior, Y, 50) == pytest.approx(expected, rel=1e-12)
    cut = NearestPosterior(images, labels, ALPHAS_CUMPROD, 2)
    # 2 of all and 2 of the label: found among all of these, then weighed one by one.
    kept = 3 * (2 + 2)
    expected = (products * 2 * 49 + kept * 2 * 2 * 48) / 3 / FORWARD
    assert gradient_cost(denoiser(Linear()), cut, Y, 50) == pytest.approx(expected, rel=1e-12)


def test_an_adapted_model_s_cost_is_that_of_its_eps_whatever_the_batch():
    assert gradient_cost(denoiser(Linear()), denoiser(Linear(num_layers=3)), Y, 50) == 3


def test_attention_is_counted_by_its_products():
    class Attention(nn.Module):
        def forward(self, x_t, t, y=None):
            rows = x_t.flatten(2)[:, None]
            out = F.scaled_dot_product_attention(rows, rows, rows)
            return SimpleNamespace(sample=out.reshape(x_t.shape))

    # Two products of 3 x 16 x 3.
    expected = 2 * 2 * 3 * 16 * 3 / FORWARD
    found = gradient_cost(denoiser(Linear()), denoiser(Attention()), Y, 50)
    assert found == pytest.approx(expected, rel=1e-12)


def test_equal_settings_give_the_same_cost_whatever_the_batch_and_t():
    unet = {**UNET, "in_channels": 3, "out_channels": 3, "add_attention": True}
    unet |= {"block_out_channels": [8, 8], "attention_head_dim": 4}
    network, surrogate = build(unet), ClassifierSurrogate(Classifier())
    model = Denoiser(network, ALPHAS_CUMPROD, "epsilon", (3, 8, 8))
    surrogate.network.head = nn.Linear(5 * 64, 7)
    costs = {gradient_cost(model, surrogate, y, t) for y in (Y, Y[:1]) for t in (0, 50, 99)}
    assert len(costs) == 1
    assert 0 < costs.pop() < 1


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_the_time_is_the_ratio_of_medians_after_a_warm_up(monkeypatch, precision, dtype):
    clock = Clock()
    monkeypatch.setattr(cost, "time", clock)
    unet = Working(clock, [100, 4, 2, 30, 9, 1])
    surrogate = Working(clock, [500, 1, 3, 2, 9, 2])
    assert gradient_seconds(denoiser(unet), surrogate, Y, 70, precision) == 2 / 4
    for network, labels in ((unet, None), (surrogate, Y)):
        assert len(network.asked) == 6
        for shape, t, its_y, its_dtype in network.asked:
            assert (shape, t, its_dtype) == ((3, 3, 4, 4), [70] * 3, dtype)
            assert its_y is None if labels is None else its_y.equal(labels)


def test_of_an_adapted_model_it_is_its_eps_that_is_timed(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cost, "time", clock)
    unet, adapted = Working(clock, [1] * 6), Working(clock, [1.5] * 6)
    assert gradient_seconds(denoiser(unet), denoiser(adapted), Y, 70, "32-true") == 1.5


def test_evaluations_are_forwards_and_gradients_at_their_cost():
    spent = {"num_images": 3, "unet_forwards": 100, "surrogate_gradients": 40}
    expected = {**spent, "gradient_cost": 0.3, "network_evaluations": 112}
    assert with_evaluations(spent, 0.3) == expected
