"""A fine-tuned model and its base: whether they can be compared, and the contrast of their losses.

Both predict eps of the same x_t, so that their difference is the effect of fine-tuning alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from sidepipe.base.images import Images
from sidepipe.base.settings import require
from sidepipe.models.pixels import side_of

if TYPE_CHECKING:
    from torch import Tensor

    from sidepipe.diffusion.denoiser import Denoiser

# Settings of the network that decide the shape and the condition of its x_t.
SAME = ("in_channels", "sample_size", "num_class_embeds", "num_embeds_ada_norm")
# The largest difference of alphas_cumprod; rounding in other dtypes is below it.
TOLERANCE = 1e-5
AT_ONCE = 64  # images, each with all its draws of noise
LEAST = 1e-30  # loss, so that a ratio is finite
OTHER = "name the checkpoint that was fine-tuned"


def require_comparable(
    network: Mapping[str, Any],
    alphas_cumprod: Tensor,
    base_network: Mapping[str, Any],
    base_alphas_cumprod: Tensor,
) -> None:
    """Raises ValueError unless two models have x_t of one shape, and one noise schedule.

    network, base_network: the configs of both networks. A setting that the JSON of an old config
    leaves out is not compared.
    """
    for name in SAME:
        if name not in network or name not in base_network:
            continue
        own, other = network[name], base_network[name]
        if name == "sample_size":
            own, other = side_of(own), side_of(other)
        rule = f"a model with {name} {own}, as the fine-tuned one"
        require(own == other, "dpm.base", rule, other, OTHER)
    own, other = alphas_cumprod, base_alphas_cumprod
    rule = f"a model of {len(own)} timesteps, as the fine-tuned one"
    require(len(own) == len(other), "dpm.base", rule, len(other), OTHER)
    difference = (own.double() - other.double()).abs().max().item()
    rule = "a model with the noise schedule of the fine-tuned one"
    same = difference <= TOLERANCE
    require(same, "dpm.base", rule, f"alphas_cumprod up to {difference:.3g} apart", OTHER)


def log_loss_ratio(
    model: Denoiser,
    base: Denoiser,
    images: Images,
    t: int,
    draws: int,
    seed: int,
    first: int,
) -> Float32[np.ndarray, "n"]:
    """log(loss_base / loss) of each image: by how much fine-tuning lowered its loss at timestep t.

    loss: |eps - eps_fn(x_t, t)|^2, the mean over `draws` of noise, which are the same for both
    models. first: the number of the first image, which decides its noise. A positive score means
    that the fine-tuned model denoises the image better. The base takes the place of the difficulty
    calibration of Watson et al. (ICLR 2022); the loss at one timestep is that of Matsumoto et al.
    (arXiv 2302.03262). Both models lie on one device, and are evaluated `draws` times per image.
    """
    import torch

    from sidepipe.diffusion.noise import image_noise
    from sidepipe.diffusion.schedule import add_noise

    device, found = model.alphas_cumprod.device, []
    for start in range(0, len(images), AT_ONCE):
        some = torch.from_numpy(images[start : start + AT_ONCE]).to(device)
        x_0 = model.encode(some).repeat_interleave(draws, 0)
        begin = (first + start) * draws
        numbers = range(begin, begin + len(x_0))
        eps = image_noise(seed, "audit", numbers, model.shape, device)()
        y = torch.zeros(len(x_0), dtype=torch.int64, device=device)
        x_t = add_noise(x_0, eps, torch.full_like(y, t), model.alphas_cumprod)
        errors = [(one.eps_fn(y)(x_t, t).double() - eps).square() for one in (base, model)]
        loss_base, loss = (e.flatten(1).mean(1).reshape(-1, draws).mean(1) for e in errors)
        found.append((loss_base.clamp_min(LEAST) / loss.clamp_min(LEAST)).log())
    return torch.cat(found).float().cpu().numpy()
