"""Images a second: a plain guided sampler against ours, in turns within one run.

Plain: float32, eager, diffusers' DDIMScheduler.step, autograd through a float32 classifier. Ours:
what the stages run, at the precision they run it. Each has a process of its own, as a run has: what
one sampler frees would else serve the next. Targets on two cores: guided twice as fast as plain;
guided at most 1.25 times as dear as unguided where t >= 200 is guided, 1.6 times where all t are.
"""

import sidepipe  # noqa: F401, before torch, as it says how torch's threads wait

# isort: split
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sidepipe.base.settings import build
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.sampler import sampling_timesteps
from sidepipe.diffusion.timesteps import Guidance
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.models.speed import has_compiler
from sidepipe.stages.attack.surrogates import ClassifierSurrogate
from sidepipe.stages.classifier.resnet import fold_batch_norms

CONF = Path(__file__).parents[1] / "conf"
SIDES = {"tiny": 8, "unet16": 16}
NUM_CLASSES, NUM_STEPS, REPEATS = 60, 10, 7
EVERYWHERE = Guidance(guidance_scale=1.0, t_min=0, t_max=None)
INTERVAL = Guidance(guidance_scale=1.0, t_min=200, t_max=None)


def unet_of(name: str) -> nn.Module:
    """The network of conf/dpm, with random weights, for gray images."""
    data = {"data": {"size": SIDES[name], "channels": 1}}
    config = OmegaConf.merge(data, OmegaConf.load(CONF / f"dpm/{name}.yaml"))
    torch.manual_seed(0)
    return build(OmegaConf.to_container(config.unet, resolve=True)).eval()


def classifier() -> nn.Module:
    torch.manual_seed(1)
    network = OmegaConf.load(CONF / "classifier/small.yaml").network
    return build(network)(in_channels=1, num_classes=NUM_CLASSES).eval()


def plain(targets: Tensor, name: str) -> Callable[[], object]:
    """Guided sampling as it is usually written (Dhariwal & Nichol, 2021, algorithm 2)."""
    device, scheduler = targets.device, DDIMScheduler()
    unet, network = unet_of(name).to(device), classifier().to(device)
    scheduler.set_timesteps(NUM_STEPS)
    alphas_cumprod = scheduler.alphas_cumprod.to(device)

    def gradient(x_t: Tensor, t: Tensor) -> Tensor:
        x_t = x_t.detach().requires_grad_(True)
        log_probs = F.log_softmax(network(x_t, t), 1)
        total = log_probs[range(len(targets)), targets].sum()
        return torch.autograd.grad(total, x_t)[0]

    def sample() -> Tensor:
        x_t = torch.randn(len(targets), 1, SIDES[name], SIDES[name], device=device)
        for t in scheduler.timesteps.tolist():
            ts = torch.full((len(x_t),), t, device=device)
            with torch.no_grad():
                eps = unet(x_t, ts).sample
            eps = eps - (1 - alphas_cumprod[t]).sqrt() * gradient(x_t, ts)
            x_t = scheduler.step(eps, t, x_t, return_dict=False)[0]
        return x_t.cpu()

    return sample


def ours(
    targets: Tensor, name: str, guidance: Guidance | None, compiled: bool
) -> Callable[[], object]:
    """A batch as the stages sample it, from noise to uint8."""
    device = targets.device
    shape, alphas_cumprod = (1, SIDES[name], SIDES[name]), DDIMScheduler().alphas_cumprod
    sampler = ImageSampler(
        Denoiser(unet_of(name), alphas_cumprod, "epsilon", shape),
        seed=0,
        stream="extract",
        timesteps=sampling_timesteps(1000, NUM_STEPS, "leading"),
        eta=0.0,
        surrogate=None if guidance is None else ClassifierSurrogate(fold_batch_norms(classifier())),
        guidance=guidance,
    ).to(device)
    sampler.on_predict_start()
    batch = {"indices": torch.arange(len(targets)), "targets": targets}

    def sample() -> Tensor:
        # As Lightning's bf16-mixed does it.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return sampler.predict_step(batch).cpu()

    if compiled:
        sampler.compile_for(sample)
    return sample


def serve(
    pipe: Connection, make: Callable[[Tensor], Callable[[], object]], count: int, device: str
) -> None:
    """Sends the seconds that a batch takes: of the first, then as long as it is asked for more."""
    warnings.simplefilter("ignore")
    sample = make(torch.arange(count, device=device) % NUM_CLASSES)
    more = True
    while more:
        start = time.perf_counter()
        sample()
        pipe.send(time.perf_counter() - start)
        more = pipe.recv()


def medians(
    samplers: dict[str, Callable[[Tensor], Callable[[], object]]], count: int, device: str
) -> dict[str, float]:
    """Seconds of each, run in turns, so that what else the machine does slows all of them alike."""
    pipes, processes = {}, []
    for name, make in samplers.items():
        pipes[name], theirs = multiprocessing.Pipe()
        about = (theirs, make, count, device)
        processes.append(multiprocessing.get_context("spawn").Process(target=serve, args=about))
        processes[-1].start()
        pipes[name].recv()  # compiled, and warm
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(REPEATS):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_flops(device: torch.device, n: int = 8192) -> float:
    """bf16 operations a second that a large matrix product reaches."""
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.matmul(a, a)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds)


def unet_flops(name: str) -> int:
    """Operations of one evaluation on one image."""
    side = SIDES[name]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet_of(name)(torch.zeros(1, 1, side, side), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()


def measure(name: str, device: torch.device, can_compile: bool) -> None:
    count = 1024 if device.type == "cuda" else 128
    attacks = {"unguided": None, "guided": EVERYWHERE, "guided, t >= 200": INTERVAL}
    samplers: dict[str, Callable[[Tensor], Callable[[], object]]]
    samplers = {"plain guided": partial(plain, name=name)}
    for compiled in [False, True] if can_compile else [False]:
        for attack, guidance in attacks.items():
            title = f"ours {attack}" + (", compiled" if compiled else "")
            samplers[title] = partial(ours, name=name, guidance=guidance, compiled=compiled)
    seconds = medians(samplers, count, device.type)
    print(f"\n{name}, {count} images, {NUM_STEPS} steps")
    print(f"{'':34} images/s  / plain guided  cost / ours unguided")
    for title, value in seconds.items():
        alike = "ours unguided" + (", compiled" if title.endswith("compiled") else "")
        print(
            f"{title:34} {count / value:8.1f}  {seconds['plain guided'] / value:14.2f}"
            f"  {value / seconds[alike]:20.2f}"
        )
    if device.type == "cuda":
        done = count * NUM_STEPS * unet_flops(name) / min(seconds.values())
        print(f"{done / matmul_flops(device):.1%} of the bf16 rate of a matrix product")


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    can_compile = has_compiler(device)
    for name in SIDES:
        measure(name, device, can_compile)


if __name__ == "__main__":
    main()
