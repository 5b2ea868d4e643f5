"""The cost of a surrogate's gradient, in forwards of the network under attack.

Operations are counted, so that equal settings give equal costs on every device. The time is
measured apart, and enters no result.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.schedule import for_each
from sidepipe.models.speed import AUTOCAST

WARM_UP, REPETITIONS = 1, 5


@torch.no_grad()
def gradient_cost(denoiser: Denoiser, surrogate: Any, y: Int64[Tensor, "n"], t: int) -> float:
    """Operations of a surrogate's gradient, or of its eps, over those of the model's eps.

    The cost is per image, the mean over the labels y, on the device of both. It counts
    multiplications and additions of convolutions, matrix products and attention, forward and
    backward (torch.utils.flop_counter), and no norms, activations and searches.
    """
    # The operations of a network are the same for each image, and a large network is slow.
    asked = y[:1] if isinstance(surrogate, Denoiser) else y
    x_t = _noise(denoiser, len(y), y.device)
    forward = _operations(lambda: denoiser.eps_fn(y[:1])(x_t[:1], t))
    gradient = _operations(lambda: _asked(surrogate, asked)(x_t[: len(asked)], t))
    return gradient / len(asked) / forward


class _Operations(TorchDispatchMode):
    """`total` counts the operations within this context, by torch's formulas.

    torch's own FlopCounterMode hooks into modules, which autograd.grad by an input does not allow.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += 0 if count is None else count(*args, **(kwargs or {}), out_val=out)
        return out


def _operations(work: Callable[[], Any]) -> int:
    # Other attention kernels have other operations per device, and torch does not count all.
    with _Operations() as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.total


@torch.no_grad()
def gradient_seconds(
    denoiser: Denoiser, surrogate: Any, y: Int64[Tensor, "n"], t: int, precision: str
) -> float:
    """Seconds of a surrogate's gradient at x_t, or of its eps, over those of the model's eps.

    Medians of a few warm repetitions in turn, on the device where both lie, and in the sampler's
    precision.
    """
    x_t, device = _noise(denoiser, len(y), y.device), y.device.type
    plain, ask = denoiser.eps_fn(y), _asked(surrogate, y)
    forwards, gradients = [], []
    with torch.autocast(device, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
        for _ in range(WARM_UP + REPETITIONS):
            forwards.append(_seconds(lambda: plain(x_t, t), x_t.device))
            gradients.append(_seconds(lambda: ask(x_t, t), x_t.device))
    return statistics.median(gradients[WARM_UP:]) / statistics.median(forwards[WARM_UP:])


def _noise(denoiser: Denoiser, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *denoiser.shape, generator=generator).to(device)


def _asked(surrogate: Any, y: Int64[Tensor, "n"]) -> Callable[[Tensor, int], Tensor]:
    """The surrogate's part of each sampling step."""
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
    """Waits until the device has finished, since kernels of a GPU run asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
