"""The score divergence of single images, to compare training images with held-out ones."""

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.score_divergence import score_divergence

AT_ONCE = 256  # images


@torch.no_grad()
def image_divergences(
    denoiser: Denoiser,
    images: UInt8[np.ndarray, "n h w c"],
    *,
    t: int,
    probes: int,
    seed: int,
    first: int,
) -> Float32[np.ndarray, "n"]:
    """`score_divergence` of each image. first: the number of the first one, for the noise."""
    device, found = denoiser.alphas_cumprod.device, []
    for start in range(0, len(images), AT_ONCE):
        x_0 = denoiser.encode(torch.from_numpy(images[start : start + AT_ONCE]).to(device))
        numbers = range(first + start, first + start + len(x_0))
        noise_fn = image_noise(seed, "divergence", numbers, denoiser.shape, device)
        eps_fn = denoiser.eps_fn(torch.zeros(len(x_0), dtype=torch.int64, device=device))
        found.append(
            score_divergence(eps_fn, x_0, t, denoiser.alphas_cumprod, probes, noise_fn).float()
        )
    return torch.cat(found).cpu().numpy()
