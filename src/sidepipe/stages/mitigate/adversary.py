"""The adversary: embeddings optimized so that the model denoises one given image best.

Mitigation at inference hides images that the weights still contain, and an adversary with the
weights can recover them. With enough steps, an embedding may also describe an image that was never
trained on, so the recovery of held-out images is the control.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sidepipe.diffusion.noise import generator
from sidepipe.diffusion.schedule import add_noise
from sidepipe.models.text.model import Embeddings, Latents, TextModel

EVALUATIONS_A_STEP = 3  # a forward, and a backward, which counts as two


def denoising_errors(
    model: TextModel, x_0: Latents, e: Embeddings, t: Tensor, eps: Latents
) -> Tensor:
    """The mean squared error of the noise predicted in each x_t: (n,)."""
    x_t = add_noise(x_0, eps, t, model.alphas_cumprod)
    return (model.eps(x_t, t, e) - eps).square().flatten(1).mean(1)


def noise_of(streams: Sequence[np.random.Generator], model: TextModel) -> tuple[Tensor, Latents]:
    """The next t, uniform over all timesteps, and noise of each stream."""
    steps, shape = len(model.alphas_cumprod), model.latent_shape
    t = torch.tensor([int(rng.integers(steps)) for rng in streams], device=model.device)
    eps = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in streams])
    return t, torch.from_numpy(eps).to(model.device)


def recovering(
    model: TextModel,
    x_0: Latents,
    e: Embeddings,
    seed: int,
    starts: Sequence[tuple[int, int]],
    num_steps: int,
    lr: float,
) -> Embeddings:
    """`e` after Adam on E || eps(x_t, e) - eps ||^2 over t and eps, for the image x_0.

    starts: the number of the prompt and that of the start, which with the seed give t and eps,
    whatever the batch. Start 0 is `e`; others are noise with the mean and the deviation of `e`.
    """
    streams = [
        generator(seed, "prompts", number * 1_000_000 + 999_999 - 10 * start)
        for number, start in starts
    ]
    e = e.detach().clone()
    for i, (_, start) in enumerate(starts):
        if start:
            noise = torch.from_numpy(streams[i].standard_normal(e.shape[1:]))
            e[i] = e[i].mean() + e[i].std() * noise.to(e)
    e.requires_grad_()
    optimizer = torch.optim.Adam([e], lr=lr)
    for _ in range(num_steps):
        errors = denoising_errors(model, x_0, e, *noise_of(streams, model))
        (e.grad,) = torch.autograd.grad(errors.sum(), e)
        optimizer.step()
    return e.detach()
