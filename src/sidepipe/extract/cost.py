"""What asking a surrogate costs beside a forward of the network under attack."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.schedule import for_each

WARM_UP, REPETITIONS = 1, 5
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@torch.no_grad()
def gradient_cost(
    denoiser: Denoiser,
    surrogate: Any,
    y: Int64[Tensor, "n"],
    t: int,
    precision: str,
    device: str,
) -> float:
    """Seconds of a surrogate's gradient at x_t, or of its eps, over those of the model's eps.

    Medians of a few warm repetitions in turn, on `device`, to which it moves both, and in the
    sampler's precision; x_t is noise.
    """
    denoiser, surrogate, y = denoiser.to(device), surrogate.to(device), y.to(device)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(len(y), *denoiser.shape, generator=generator).to(device)
    plain, ask = denoiser.eps_fn(y), _asked(surrogate, y)
    forwards, gradients = [], []
    with torch.autocast(device, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
        for _ in range(WARM_UP + REPETITIONS):
            forwards.append(_seconds(lambda: plain(x_t, t), x_t.device))
            gradients.append(_seconds(lambda: ask(x_t, t), x_t.device))
    return statistics.median(gradients[WARM_UP:]) / statistics.median(forwards[WARM_UP:])


def _asked(surrogate: Any, y: Int64[Tensor, "n"]) -> Callable[[Tensor, int], Tensor]:
    """What sampling takes of a surrogate at each step."""
    if isinstance(surrogate, Denoiser):
        return surrogate.eps_fn(y)
    return lambda x_t, t: surrogate.grad_log_prob(x_t, for_each(t, x_t), y)


def with_evaluations(spent: Mapping[str, Any], gradient_cost: float) -> dict[str, Any]:
    """`spent` and `network_evaluations`, its gradients counted as forwards at their cost."""
    total = spent["unet_forwards"] + gradient_cost * spent["surrogate_gradients"]
    return {**spent, "gradient_cost": gradient_cost, "network_evaluations": round(total)}


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given; kernels of a GPU run on their own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
