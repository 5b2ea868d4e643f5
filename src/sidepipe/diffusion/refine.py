"""Refinement: moving finished samples toward a mode of the model, where memorized images stand out.

A sampler ends with the network's error at little noise, where the network hardly depends on single
training images. At more noise, the denoised image of a memorized image is that training image.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sidepipe.diffusion.cycles import Cycle
from sidepipe.diffusion.fixed_points import rms
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import EpsFn


def iterates(
    eps_fn: EpsFn,
    x_0: Float[Tensor, "n *shape"],
    cycles: Sequence[Cycle],
    alphas_cumprod: Float[Tensor, "T"],
    noise_fn: Callable[[], Float[Tensor, "n *shape"]] | None = None,
) -> Iterator[Float[Tensor, "n *shape"]]:
    """The result of each of the cycles.

    noise_fn: fresh standard normal noise of x_0's shape; needed where a cycle has noise or eta.
    """
    for cycle in cycles:
        alpha_bar = float(alphas_cumprod[cycle.t])
        x_t = alpha_bar**0.5 * x_0
        if cycle.noise > 0:
            if noise_fn is None:
                raise ValueError(f"noise_fn is needed when noise > 0, got noise = {cycle.noise}")
            x_t = x_t + cycle.noise * (1 - alpha_bar) ** 0.5 * noise_fn()
        found = ddim(eps_fn, x_t, cycle.timesteps, alphas_cumprod, cycle.eta, noise_fn)
        yield found
        x_0 = found if cycle.relaxation == 1 else x_0 + cycle.relaxation * (found - x_0)


def settled(
    step: Callable[[Float[Tensor, "m *shape"], Int64[Tensor, "m"]], Float[Tensor, "m *shape"]],
    x_0: Float[Tensor, "n *shape"],
    max_steps: int,
    residual: float,
) -> tuple[Float[Tensor, "n *shape"], Int64[Tensor, "n"]]:
    """The iterate of each image that moved least, and the number of steps that the image took.

    An image leaves once a step moves it by less than `residual` (root mean square, in units of
    x_0), or by no less than an earlier one: chains slow down at a memorized image and walk on.
    step(x, rows): one step of the images `rows`.
    """
    best, least = x_0.clone(), torch.full((len(x_0),), torch.inf, device=x_0.device)
    rows = torch.arange(len(x_0), device=x_0.device)
    taken = torch.zeros_like(rows)
    for _ in range(max_steps):
        if len(rows) == 0:
            break
        moved = step(x_0, rows)
        distance = rms(moved - x_0)
        taken[rows] += 1
        slower = distance < least[rows]
        best[rows[slower]], least[rows[slower]] = moved[slower], distance[slower]
        stays = slower & (distance >= residual)
        rows, x_0 = rows[stays], moved[stays]
    return best, taken


def seek_mode(
    eps_fn: EpsFn,
    x_0: Float[Tensor, "n *shape"],
    t: int,
    num_steps: int,
    alphas_cumprod: Float[Tensor, "T"],
    noise: float = 0.0,
    noise_fn: Callable[[], Float[Tensor, "n *shape"]] | None = None,
) -> Float[Tensor, "n *shape"]:
    """The last of `iterates`, of `num_steps` cycles with one denoising step; x_0 for none."""
    cycles = [Cycle(t, noise)] * num_steps
    return [x_0, *iterates(eps_fn, x_0, cycles, alphas_cumprod, noise_fn)][-1]
