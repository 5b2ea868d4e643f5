"""The denoising loss of single images, to compare training images with held-out ones."""

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.schedule import add_noise

AT_ONCE = 64  # images, each with all its draws of noise


@torch.no_grad()
def image_losses(
    denoiser: Denoiser, images: UInt8[np.ndarray, "n h w c"], *, draws: int, seed: int
) -> Float64[np.ndarray, "n"]:
    """|eps - eps_fn(x_t, t)|^2 of each image, its mean over `draws` timesteps at equal distances.

    Image i of any set of images has the same noise.
    """
    device, num_timesteps = denoiser.alphas_cumprod.device, len(denoiser.alphas_cumprod)
    levels = (
        torch.arange(draws, device=device) * num_timesteps // draws + num_timesteps // draws // 2
    )
    found = []
    for start in range(0, len(images), AT_ONCE):
        some = torch.from_numpy(images[start : start + AT_ONCE]).to(device)
        x_0 = denoiser.encode(some).repeat_interleave(draws, 0)
        numbers = range(start * draws, start * draws + len(x_0))
        eps = image_noise(seed, "clock", numbers, denoiser.shape, device)()
        t = levels.repeat(len(some))
        y = torch.zeros(len(x_0), dtype=torch.int64, device=device)
        x_t = add_noise(x_0, eps, t, denoiser.alphas_cumprod)
        error = (denoiser.eps_fn(y)(x_t, t).double() - eps).square()
        found.append(error.flatten(1).mean(1).reshape(-1, draws).mean(1))
    return torch.cat(found).cpu().numpy()
