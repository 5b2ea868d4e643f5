"""How a score field points around an image: toward it where the model has memorized it."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sidepipe.diffusion.schedule import EpsFn

RADIUS = 0.1  # of the sphere, per root of the number of values of x_t


def score_divergence(
    eps_fn: EpsFn,
    x_0: Float[Tensor, "n *shape"],
    t: int,
    alphas_cumprod: Float[Tensor, "T"],
    probes: int,
    noise_fn: Callable[[], Float[Tensor, "n *shape"]],
) -> Float[Tensor, "n"]:
    """The mean cosine between the score and the outward direction, on a sphere around each image.

    By the divergence theorem it is the mean divergence of the normalized score within the sphere,
    the 1-Laplacian of log p, up to a factor (Brokman et al., arXiv 2505.08246): -1 where all scores
    point to the center, 0 where they are parallel. The center is sqrt(ab_t) x_0 and the radius
    RADIUS sqrt(d) for d values. The network is evaluated `probes` times, at points of the sphere
    that `noise_fn`, standard normal noise, draws.
    """
    center, cosines = float(alphas_cumprod[t]) ** 0.5 * x_0, []
    radius = RADIUS * x_0[0].numel() ** 0.5
    for _ in range(probes):
        noise = noise_fn()
        outward = noise / noise.flatten(1).norm(dim=1).reshape(-1, *[1] * (x_0.ndim - 1))
        y = center + radius * outward
        score = -eps_fn(y, t)
        cosines.append(torch.cosine_similarity(score.flatten(1), outward.flatten(1)))
    return torch.stack(cosines).mean(0)
