"""Wrappers that change a surrogate's gradient before `guided` applies it.

They wrap a surrogate (anything with `grad_log_prob`) or one another; the outermost is applied last.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sidepipe.diffusion.guidance import Labels, NeedsEps, gradient_at
from sidepipe.diffusion.schedule import at, signal_and_noise


class ThroughPredX0(NeedsEps):
    """grad_{x_t} log p(y | pred_x_0), pred_x_0 = (x_t - sqrt(1 - ab_t) eps) / sqrt(ab_t).

    eps is held constant, so the chain's factor is 1 / sqrt(ab_t) and no gradient passes the UNet.
    The surrogate takes pred_x_0, not clipped, as an image of t = 0.
    """

    alphas_cumprod: Tensor

    def __init__(self, surrogate: Any, alphas_cumprod: Float[Tensor, "T"]) -> None:
        super().__init__()
        self.surrogate = surrogate
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def forward(self, x_t: Tensor, t: int, y: Labels, eps: Tensor) -> Tensor:
        signal, noise = signal_and_noise(self.alphas_cumprod, t, x_t)
        pred_x_0 = ((x_t - noise * eps) / signal).to(x_t.dtype)
        at_x_0 = gradient_at(self.surrogate.grad_log_prob, pred_x_0, 0, y, eps)
        return at_x_0 / signal


class ScaledByNoise(NeedsEps):
    """The gradient times `factors[t]`; where that is 0 the surrogate is not evaluated."""

    def __init__(self, surrogate: Any, factors: Float[Tensor, "T"]) -> None:
        super().__init__()
        self.surrogate, self.factors = surrogate, factors.tolist()

    def forward(self, x_t: Tensor, t: int, y: Labels, eps: Tensor) -> Tensor:
        factor = self.factors[t]
        if factor == 0:
            return torch.zeros_like(x_t)
        return factor * gradient_at(self.surrogate.grad_log_prob, x_t, t, y, eps)


class ClippedNorm(NeedsEps):
    """The gradient, shortened where guidance would move eps by more than max_norm times its length.

    For each image, |lambda sqrt(1 - ab_t) grad| <= max_norm |eps|; the direction stays.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        surrogate: Any,
        guidance_scale: float,
        max_norm: float,
        alphas_cumprod: Float[Tensor, "T"],
    ) -> None:
        super().__init__()
        self.surrogate = surrogate
        self.guidance_scale, self.max_norm = guidance_scale, max_norm
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def forward(self, x_t: Tensor, t: int, y: Labels, eps: Tensor) -> Tensor:
        gradient = gradient_at(self.surrogate.grad_log_prob, x_t, t, y, eps)
        sigma = (1 - at(self.alphas_cumprod, t, x_t)).sqrt()
        limit = self.max_norm * _norm(eps) / (self.guidance_scale * sigma)
        # A gradient of 0 is within any limit, and must not give 0 / 0.
        return gradient * (limit / _norm(gradient).clamp_min(1e-30)).clamp_max(1)


def _norm(x: Float[Tensor, "n *shape"]) -> Tensor:
    """The norm of each image, shaped to multiply with x."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
