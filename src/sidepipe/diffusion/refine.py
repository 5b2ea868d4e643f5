"""Refinement: moving finished samples toward a mode of the model, where memorized images stand out.

A sampler ends with the network's error at little noise, where the network hardly depends on single
training images. At more noise, the denoised image of a memorized image is that training image.
"""

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
) -> Float[Tensor, "n *shape"]:
    """x_0 replaced `num_steps` times by the model's pred_x_0 of sqrt(ab_t) x_0, taken for an x_t.

    That is DDIM's last step, from level t to no noise. No noise is added, so it leads up the
    density of the data smoothed by level t: by Tweedie's formula it is x_0 + (1 - ab_t) / ab_t *
    grad log p(x_0) (Alain & Bengio, 2014; Kadkhodaie & Simoncelli, 2021). For a model that has
    memorized its training images this is mean shift on them (Comaniciu & Meer, 2002); they are its
    fixed points where level t keeps them apart.
    """
    shrink = float(alphas_cumprod[t]) ** 0.5
    for _ in range(num_steps):
        x_0 = ddim(eps_fn, shrink * x_0, [t], alphas_cumprod)
    return x_0
