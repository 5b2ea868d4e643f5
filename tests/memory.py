"""A network in closed form, of a model whose memorized images are known."""

from types import SimpleNamespace

import torch
from torch import nn

from sidepipe.base.images import to_model

ALPHAS = torch.linspace(0.999, 1e-4, 100)


class Memory(nn.Module):
    """The exact pred_x_0 of a model that has memorized these images and no others."""

    def __init__(self, images):
        super().__init__()
        self.known = to_model(images)

    def forward(self, x_t, t):
        alpha_bar = ALPHAS[int(t.flatten()[0])]
        gap = x_t[:, None] - alpha_bar.sqrt() * self.known[None]
        weight = (-gap.flatten(2).square().sum(2) / (2 * (1 - alpha_bar))).softmax(1)
        return SimpleNamespace(sample=torch.einsum("nk,kchw->nchw", weight, self.known))
