"""The speed of a device: the useful batch size, and whether compiling is worthwhile.

These decisions change images by floating-point rounding only.
"""

import ctypes
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import nn

log = logging.getLogger(__name__)

Compile = Literal["auto", True, False]

# On two cores, compiling a 16-pixel UNet took one to three minutes and made it 1.4 times as fast,
# which pays in runs of about 10 minutes or more.
PAYS_SECONDS = 600.0
# Fewer evaluations take less time on any network, and are not timed.
WORTH_TIMING = 10_000
# The dtype of torch's autocast for a precision of Lightning; none for the others.
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
CPU_BATCH_SIZE = 256  # the fastest of 32, 64, 128 and 256; the last two differ by 7 %
MEMORY_SHARE = 0.8
# glibc's mallopt: parameter and largest value.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = (-1, 2**31 - 1), (-3, 2**25)


def largest_useful_batch(images_per_second: Callable[[int], float], first: int, most: int) -> int:
    """The batch size: doubled from `first` to `most` while it adds 5 % images per second.

    images_per_second: of a batch size; it may raise torch.OutOfMemoryError, which ends the search.
    """
    size, best = min(first, most), images_per_second(min(first, most))
    while size < most:
        larger = min(2 * size, most)
        try:
            rate = images_per_second(larger)
        except torch.OutOfMemoryError:
            break
        if rate < 1.05 * best:
            break
        size, best = larger, rate
    return size


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one `step`, after one that warms up; infinite where memory is nearly full.

    On a CPU this excludes the time that other work has the cores: it is the CPU time of this
    thread, which takes part in every operation. Raises torch.OutOfMemoryError where memory is full.
    """
    step()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start, start_cpu = time.perf_counter(), _cpu_seconds()
    step()
    if on_gpu:
        torch.cuda.synchronize(device)
        total = torch.cuda.get_device_properties(device).total_memory
        if torch.cuda.max_memory_allocated(device) > MEMORY_SHARE * total:
            return float("inf")
    seconds = time.perf_counter() - start
    if device.type == "cpu":
        spent = [now - before for now, before in zip(_cpu_seconds(), start_cpu, strict=True)]
        seconds = min(seconds, max(spent))
    return seconds


def _cpu_seconds() -> tuple[float, float]:
    """CPU seconds of this thread, and the mean over all threads that torch computes with."""
    return time.thread_time(), time.process_time() / torch.get_num_threads()


def compiling_pays(
    setting: Compile, evaluations: int, seconds: Callable[[], float], device: torch.device
) -> bool:
    """Whether to compile; with "auto", where the rest of the run is long enough.

    evaluations: of a network on one image, in the rest of the run. seconds: their time without
    compiling, called only where it matters.
    """
    if setting != "auto":
        return setting
    if evaluations < WORTH_TIMING or device.type not in ("cpu", "cuda"):
        return False
    return seconds() > PAYS_SECONDS


def cast_once(device: torch.device) -> torch.autocast:
    """The present autocast, which keeps cast weights between steps; Lightning's does not.

    It saves 5 % of a 16-pixel UNet on a CPU. The weights must not change.
    """
    kind = device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype, enabled, cache_enabled=True)


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory for later allocations.

    By default it returns freed activations to the system, and every step maps them again page by
    page: an eighth of a guided 16-pixel run on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(*_TRIM_THRESHOLD)
        mallopt(*_MMAP_THRESHOLD)


def network_gradients(surrogate: nn.Module | None) -> Iterator[Any]:
    """The surrogate, or the modules within it, whose `grad_log_prob` evaluates a network."""
    for module in [] if surrogate is None else surrogate.modules():
        inside = [hasattr(child, "grad_log_prob") for child in module.children()]
        if hasattr(module, "grad_log_prob") and not all(inside):
            yield module


def lay_out(surrogate: nn.Module) -> None:
    """Sets channels last for its convolutions, which makes a classifier 1.3 times as fast.

    Not for a UNet: on a CPU, group norm is up to 20 times slower with channels last.
    """
    for module in surrogate.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile works for `device`; logs the reason where it does not."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import, and needed only here

    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except TorchDynamoException as error:
        why = str(error).strip().partition("\n")[0]
        log.warning("torch.compile does not work here (%s); continuing without it", why)
        return False
    return True


def compile_networks(
    networks: Iterable[nn.Module], surrogate: nn.Module | None, step: Callable[[], object]
) -> None:
    """Compiles `networks` and the surrogate's gradient in place, for the shapes of `step`."""
    start = time.monotonic()
    for network in networks:
        network.compile(dynamic=False)
    for module in network_gradients(surrogate):
        module.grad_log_prob = torch.compile(module.grad_log_prob, dynamic=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo's, about code of other packages
        step()
    log.info("compiled in %.0f s", time.monotonic() - start)
