from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.extract import cost
from sidepipe.extract.cost import gradient_cost, with_evaluations


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
    return Denoiser(network, torch.linspace(0.9, 0.1, 100), "epsilon", (3, 4, 4))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_the_cost_is_the_ratio_of_medians_after_a_warm_up(monkeypatch, precision, dtype):
    clock = Clock()
    monkeypatch.setattr(cost, "time", clock)
    unet = Working(clock, [100, 4, 2, 30, 9, 1])
    surrogate = Working(clock, [500, 1, 3, 2, 9, 2])
    y = torch.tensor([2, 0, 1])
    assert gradient_cost(denoiser(unet), surrogate, y, 70, precision, "cpu") == 2 / 4
    for network, labels in ((unet, None), (surrogate, y)):
        assert len(network.asked) == 6
        for shape, t, its_y, its_dtype in network.asked:
            assert (shape, t, its_dtype) == ((3, 3, 4, 4), [70] * 3, dtype)
            assert its_y is None if labels is None else its_y.equal(labels)


def test_of_an_adapted_model_it_is_its_eps_that_costs(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cost, "time", clock)
    unet, adapted = Working(clock, [1] * 6), Working(clock, [1.5] * 6)
    y = torch.tensor([2, 0, 1])
    assert gradient_cost(denoiser(unet), denoiser(adapted), y, 70, "32-true", "cpu") == 1.5


def test_evaluations_are_forwards_and_gradients_at_their_cost():
    spent = {"num_images": 3, "unet_forwards": 100, "surrogate_gradients": 40}
    expected = {**spent, "gradient_cost": 0.3, "network_evaluations": 112}
    assert with_evaluations(spent, 0.3) == expected
