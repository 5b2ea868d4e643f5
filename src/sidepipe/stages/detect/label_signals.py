"""|| D_t || of surrogate labels, where D_t is the change of the predicted noise by a label."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.finite import Seen, require_finite_eps, watched
from sidepipe.diffusion.guidance import gradient_at
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import at, clip_x_0
from sidepipe.models.speed import AUTOCAST, cast_once
from sidepipe.stages.detect.labels import DetectLabels


@torch.no_grad()
def label_signals(
    stage: DetectLabels, denoiser: Denoiser, surrogate: nn.Module, labels: range
) -> Float[Tensor, "k"]:
    """The mean || D_t || of each label over its images and steps."""
    numbers = [label * 1_000_000 + g for label in labels for g in range(stage.num_generations)]
    device, lengths = denoiser.alphas_cumprod.device, []
    y = torch.tensor(list(labels), device=device).repeat_interleave(stage.num_generations)
    noise = image_noise(stage.seed, "prompts", numbers, denoiser.shape, device)
    plain, difference = denoiser.eps_fn(y), label_difference(denoiser, surrogate, y)

    def eps_fn(x_t: Tensor, t: int) -> Tensor:
        eps = plain(x_t, t)
        D_t = difference(x_t, t, eps)
        lengths.append(D_t.flatten(1).norm(dim=1))
        return eps + stage.guidance_scale * D_t

    timesteps = denoiser.timesteps(stage.num_inference_steps, stage.timestep_spacing)
    seen: Seen = []
    watched_eps_fn = watched(eps_fn, "the prediction for a label", seen)
    kept = clip_x_0(watched_eps_fn, denoiser.alphas_cumprod, denoiser.clip_range)
    dtype = AUTOCAST.get(stage.precision)
    with torch.autocast(device.type, dtype, enabled=dtype is not None), cast_once(device):
        ddim(kept, noise(), timesteps[: stage.num_steps], denoiser.alphas_cumprod)
    require_finite_eps(seen, "detect", range(len(y)))
    return torch.stack(lengths).mean(0).unflatten(0, (len(labels), -1)).mean(1)


def label_difference(
    denoiser: Denoiser, surrogate: nn.Module, y: Int64[Tensor, "n"]
) -> Callable[[Tensor, int, Tensor], Tensor]:
    """D_t from (x_t, t, eps): -sqrt(1 - ab_t) grad log p(y | x_t), or the change of eps by y."""
    if isinstance(surrogate, Denoiser):
        labeled = surrogate.eps_fn(y)
        return lambda x_t, t, eps: labeled(x_t, t) - eps
    gradient: Any = surrogate.grad_log_prob

    def from_gradient(x_t: Tensor, t: int, eps: Tensor) -> Tensor:
        sigma = (1 - at(denoiser.alphas_cumprod, t, x_t)).sqrt()
        return -sigma * gradient_at(gradient, x_t, t, y, eps)

    return from_gradient
