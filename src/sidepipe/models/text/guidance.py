"""Classifier-free guidance, and the difference of the predictions with and without a prompt.

`D_t = eps(x_t, e) - eps(x_t, e_0)`, and the guided `eps(x_t, e_0) + s D_t` (Ho & Salimans, 2022).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sidepipe.diffusion.schedule import EpsFn
from sidepipe.models.text.model import Embeddings, Latents, TextModel

# Receives (t, eps_0, D_t) of each step of a trajectory.
Look = Callable[[int, Latents, Latents], None]


def noise_difference(
    model: TextModel,
    x_t: Latents,
    t: int | Tensor,
    e: Embeddings,
    e_0: Float[Tensor, "1 l d"],
) -> tuple[Latents, Latents]:
    """eps(x_t, e_0) and D_t, in one batch: two evaluations of the network per image."""
    both = torch.cat([e_0.expand_as(e), e])
    at = t if isinstance(t, int) else torch.cat([t, t])
    eps_0, eps = model.eps(torch.cat([x_t, x_t]), at, both).chunk(2)
    return eps_0, eps - eps_0


def norms(difference: Latents) -> Float[Tensor, "n"]:
    """|| D_t ||_2 per image, over the whole latent."""
    return difference.flatten(1).norm(dim=1)


def prompt_guided(
    model: TextModel,
    e: Embeddings,
    e_0: Float[Tensor, "1 l d"],
    guidance_scale: float,
    look: Look | None = None,
) -> EpsFn:
    """eps(x_t, e_0) + s D_t; `look` receives the parts of every step."""

    @torch.no_grad()
    def eps_fn(x_t: Tensor, t: int) -> Tensor:
        eps_0, difference = noise_difference(model, x_t, t, e, e_0)
        if look is not None:
            look(t, eps_0, difference)
        return eps_0 + guidance_scale * difference

    return eps_fn
