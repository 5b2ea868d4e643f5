"""The loss of single images, against its definition on a model whose error is known."""

import numpy as np
import pytest
import torch
from torch import nn

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.noise import image_noise
from sidepipe.models.losses import image_losses


class Constant(nn.Module):
    """Predicts 0.5 for each pixel, whatever x_t and t are; records t."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x_t, t, **_):
        self.seen.append(int(t.flatten()[0]))
        return type("Output", (), {"sample": torch.full_like(x_t, 0.5)})


def test_the_loss_is_the_mean_squared_error_of_each_image_at_equal_distances():
    network = Constant()
    denoiser = Denoiser(network, torch.linspace(0.99, 0.01, 100), "epsilon", (1, 2, 2))
    images = np.zeros((300, 2, 2, 1), np.uint8)
    losses = image_losses(denoiser, images, draws=2, seed=3)
    assert network.seen == 2 * [25, 75]  # 256 images at once
    for i in (0, 7, 299):
        draw = image_noise(3, "clock", [i], (1, 2, 2))
        expected = np.mean([(0.5 - draw().double()).square().mean() for _ in range(2)])
        assert losses[i] == pytest.approx(expected, rel=1e-6)
