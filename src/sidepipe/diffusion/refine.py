"""Refinement: moving finished samples toward a mode of the model, where memorized images stand out.

A sampler ends with the network's error at little noise, where the network hardly depends on single
training images. At more noise, the denoised image of a memorized image is that training image.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import EpsFn


def seek_mode(
    eps_fn: EpsFn,
    x_0: Float[Tensor, "n *shape"],
    t: int,
    num_steps: int,
    alphas_cumprod: Float[Tensor, "T"],
    noise: float = 0.0,
    noise_fn: Callable[[], Float[Tensor, "n *shape"]] | None = None,
) -> Float[Tensor, "n *shape"]:
    """x_0 replaced `num_steps` times by the model's pred_x_0 of sqrt(ab_t) x_0, taken for an x_t.

    That is DDIM's last step, from level t to no noise. No noise is added, so it leads up the
    density of the data smoothed by level t: by Tweedie's formula it is x_0 + (1 - ab_t) / ab_t *
    grad log p(x_0) (Alain & Bengio, 2014; Kadkhodaie & Simoncelli, 2021). For a model that has
    memorized its training images this is mean shift on them (Comaniciu & Meer, 2002); they are its
    fixed points where level t keeps them apart.

    noise: the share of the noise of level t that each step adds, from `noise_fn`. With 1, x_t is a
    proper draw and the steps are a cycle of noising and denoising (Sharma & Martiniani, arXiv
    2606.24000; Verma et al., arXiv 2610.11670), here with a single denoising step.
    """
    alpha_bar = float(alphas_cumprod[t])
    signal, spread = alpha_bar**0.5, noise * (1 - alpha_bar) ** 0.5
    for _ in range(num_steps):
        x_t = signal * x_0
        if spread and noise_fn is not None:
            x_t = x_t + spread * noise_fn()
        x_0 = ddim(eps_fn, x_t, [t], alphas_cumprod)
    return x_0
