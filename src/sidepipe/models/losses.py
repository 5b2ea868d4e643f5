"""The denoising loss of single images, to compare training images with held-out ones."""

import numpy as np
import torch
from jaxtyping import Float64

from sidepipe.base.images import Images
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.schedule import add_noise

AT_ONCE = 256  # images


@torch.no_grad()
def image_losses(
    denoiser: Denoiser, images: Images, *, draws: int, seed: int
) -> Float64[np.ndarray, "n"]:
    """|eps - eps_fn(x_t, t)|^2 of each image, its mean over `draws` timesteps at equal distances.

    Image i of any set of images has the same noise.
    """
    ab = denoiser.alphas_cumprod
    levels = [(2 * k + 1) * len(ab) // (2 * draws) for k in range(draws)]
    found = []
    for start in range(0, len(images), AT_ONCE):
        some = torch.from_numpy(images[start : start + AT_ONCE]).to(ab.device)
        x_0, numbers = denoiser.encode(some), range(start, start + len(some))
        noise = image_noise(seed, "clock", numbers, denoiser.shape, ab.device)
        y = torch.zeros(len(x_0), dtype=torch.int64, device=ab.device)
        loss = torch.zeros(len(x_0), dtype=torch.float64, device=ab.device)
        for t in levels:
            eps = noise()
            x_t = add_noise(x_0, eps, torch.full_like(y, t), ab)
            loss += (denoiser.eps_fn(y)(x_t, t).double() - eps).square().flatten(1).mean(1)
        found.append(loss / draws)
    return torch.cat(found).cpu().numpy()
