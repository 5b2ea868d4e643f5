"""Changes of training that make a model memorize less: shifts, less medium noise, ambient training.

Each is a function of a batch; `stages.dpm.module` calls them. They cost nothing at a step.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sidepipe.diffusion.schedule import add_noise, at


def shifted(
    x_0: Float[Tensor, "n c h w"], down: Int64[Tensor, "n"], right: Int64[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Each image moved by whole pixels; its edge is repeated where it has moved away."""
    n, _, height, width = x_0.shape
    rows = (torch.arange(height, device=x_0.device) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x_0.device) - right[:, None]).clamp(0, width - 1)
    images = torch.arange(n, device=x_0.device)[:, None, None]
    moved = x_0.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def noise_weights(
    t: Int64[Tensor, "n"], t_min: int, t_max: int, weight: float
) -> Float[Tensor, "n"]:
    """The weight of the loss at each t: `weight` from t_min to t_max, both included, else 1.

    Medium noise is where models memorize: Dodson et al. (arXiv 2602.17846) train it less.
    """
    inside = (t >= t_min) & (t <= t_max)
    return torch.where(inside, weight, 1.0)


def ambient(
    x_0: Float[Tensor, "n *shape"],
    fixed: Float[Tensor, "n *shape"],
    eps: Float[Tensor, "n *shape"],
    t: Int64[Tensor, "n"],
    ambient_t: int,
    alphas_cumprod: Float[Tensor, "T"],
) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, "n *shape"]]:
    """x_t of noisy images at ambient_t, and the factor that makes the network's eps predict `eps`.

    Ambient training (Shah et al., arXiv 2502.21278): at t > ambient_t training uses only one noisy
    version of each image, x_n = sqrt(ab_n) x_0 + sqrt(1 - ab_n) fixed, and x_t = sqrt(ab_t / ab_n)
    x_n + sqrt(v) eps with v = 1 - ab_t / ab_n. As E[eps | x_t] = sqrt(v / (1 - ab_t)) E[noise of
    x_t | x_t], the loss |eps - sqrt(v / (1 - ab_t)) eps_fn(x_t, t)|^2 has its minimum at the usual
    denoiser. At t <= ambient_t, x_t is the usual one and the factor is 1.
    """
    x_n = add_noise(x_0, fixed, torch.full_like(t, ambient_t), alphas_cumprod)
    alpha_bar = at(alphas_cumprod, t, x_0)
    kept = (alpha_bar / alphas_cumprod[ambient_t]).clamp(max=1)
    noisy = (t > ambient_t).reshape(-1, *[1] * (x_0.ndim - 1))
    x_t = torch.where(
        noisy, kept.sqrt() * x_n + (1 - kept).sqrt() * eps, add_noise(x_0, eps, t, alphas_cumprod)
    )
    factor = ((1 - kept) / (1 - alpha_bar)).sqrt()
    return x_t, torch.where(noisy, factor, 1.0)
