"""What a surrogate's gradient costs beside a forward of the network under attack."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

WARM_UP, REPETITIONS = 1, 5
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@torch.no_grad()
def gradient_cost(
    unet: Any,
    surrogate: Any,
    y: Int64[Tensor, "n"],
    t: int,
    precision: str,
    device: str,
) -> float:
    """Seconds of `surrogate.grad_log_prob(x_t, t, y)` over seconds of `unet(x_t, t)`.

    Medians of a few warm repetitions in turn, on `device`, to which it moves both, and in the
    sampler's precision; x_t is noise.
    """
    unet, surrogate, y = unet.eval().to(device), surrogate.to(device), y.to(device)
    side, channels = unet.config["sample_size"], unet.config["in_channels"]
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(len(y), channels, side, side, generator=generator).to(device)
    steps = torch.full_like(y, t)
    forwards, gradients = [], []
    with torch.autocast(device, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
        for _ in range(WARM_UP + REPETITIONS):
            forwards.append(_seconds(lambda: unet(x_t, steps), x_t.device))
            gradients.append(_seconds(lambda: surrogate.grad_log_prob(x_t, steps, y), x_t.device))
    return statistics.median(gradients[WARM_UP:]) / statistics.median(forwards[WARM_UP:])


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
