"""Rates of sampling and training, idle and beside other work, by CPU threads and by spin.

The demo's network, in turns within one run. Each pair of a spin and a number of threads has a
process of its own, because libgomp reads its spin once. 300,000 is libgomp's default; "auto" is
what the stages use, timed after its first choice. Target: auto is nowhere slower than 0.8 of the
best fixed pair.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sidepipe  # noqa: F401, before torch, as it says how torch's threads wait

# isort: split
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from sidepipe.base.settings import build
from sidepipe.engine.threads import ThreadChoice, available

CONF = Path(__file__).parents[1] / "conf/dpm"
SIDE, SAMPLED, TRAINED = 8, 64, 128  # pixels, and images per step
SPINS = {"default": "300000", "none": "0", "short": "1000"}
BUSY_LOOPS, OTHER_TRAININGS = 4, 2
SECONDS, ROUNDS = 0.6, 3
# It ends with the process that started it, however that ends.
LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"

Spawn = multiprocessing.get_context("spawn")


def unet() -> nn.Module:
    data = {"data": {"size": SIDE, "channels": 1}}
    config = OmegaConf.merge(data, OmegaConf.load(CONF / "tiny.yaml"))
    torch.manual_seed(0)
    return build(OmegaConf.to_container(config.unet, resolve=True))


def sampling() -> Callable[[], object]:
    """One step of a batch."""
    network, x_t = unet().eval(), torch.randn(SAMPLED, 1, SIDE, SIDE)

    @torch.no_grad()
    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            network(x_t, 500)

    return step


def training() -> Callable[[], object]:
    """One step, of a batch."""
    network, x_0 = unet().train(), torch.randn(TRAINED, 1, SIDE, SIDE)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)

    def step() -> None:
        eps, t = torch.randn_like(x_0), torch.randint(0, 1000, (TRAINED,))
        with torch.autocast("cpu", torch.bfloat16):
            F.mse_loss(network(x_0 + eps, t).sample, eps).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


STEPS = {"sampling": sampling, "training": training}


def serve(pipe: Connection, threads: int | None) -> None:
    """For every ("sampling" or "training", seconds) sends steps per second and the last threads.

    threads: None for a choice by timing.
    """
    warnings.simplefilter("ignore")
    most, parent = available(), os.getppid()
    torch.set_num_threads(threads or most)
    steps = {name: make() for name, make in STEPS.items()}
    for step in steps.values():
        step()
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        name, seconds = asked
        step, choice = steps[name], ThreadChoice(most) if threads is None and most > 1 else None
        if choice is not None:
            choice.settle(step)
        start, count = time.perf_counter(), 0
        while time.perf_counter() < start + seconds and os.getppid() == parent:
            choice.run(step) if choice is not None else step()
            count += 1
        pipe.send((count / (time.perf_counter() - start), torch.get_num_threads()))


class Server:
    """A process that measures, with this spin and so many threads."""

    def __init__(self, threads: int | None, spin: str) -> None:
        self.pipe, theirs = Spawn.Pipe()
        os.environ["GOMP_SPINCOUNT"] = spin
        self.process = Spawn.Process(target=serve, args=(theirs, threads), daemon=True)
        self.process.start()

    def ready(self) -> "Server":
        assert self.pipe.recv() == "ready"
        return self

    def measure(self, name: str, seconds: float = SECONDS) -> tuple[float, int]:
        self.pipe.send((name, seconds))
        return self.pipe.recv()


@contextmanager
def beside(others: Sequence[Any]) -> Iterator[None]:
    """In the block the processes run."""
    try:
        yield
    finally:
        for process in others:
            process.kill()


@contextmanager
def busy_loops() -> Iterator[None]:
    with beside([subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(BUSY_LOOPS)]):
        yield


@contextmanager
def other_trainings() -> Iterator[None]:
    servers = [Server(available(), SPINS["short"]) for _ in range(OTHER_TRAININGS)]
    with beside([server.process for server in servers]):
        for server in servers:
            server.ready().pipe.send(("training", float("inf")))
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


def main() -> None:
    most = available()
    print(f"CPU, {most} threads at most, torch {torch.__version__}")
    pairs = [(most, spin) for spin in SPINS] + [(1, "short"), (None, "short")]
    servers = {pair: Server(pair[0], SPINS[pair[1]]) for pair in pairs}
    for server in servers.values():
        server.ready()
    loads = {
        "idle": nothing,
        f"beside {BUSY_LOOPS} busy loops": busy_loops,
        f"beside {OTHER_TRAININGS} trainings of {most} threads": other_trainings,
    }
    for load, running in loads.items():
        rates = {(name, pair): [] for name in STEPS for pair in pairs}
        with running():
            for _ in range(ROUNDS):
                for (name, pair), found in rates.items():
                    found.append(servers[pair].measure(name))
        print(f"\n{load}, steps/s\n{'':24}" + "".join(f"{name:>12}  / best" for name in STEPS))
        show(rates, pairs)


def show(rates: dict, pairs: list) -> None:
    """A line for each pair: its median rates, over the best of a given number of threads."""
    medians = {key: statistics.median(rate for rate, _ in found) for key, found in rates.items()}
    for pair in pairs:
        threads, spin = pair
        line = f"{threads or 'auto'} thread{'s' * (threads != 1)}, {spin} spin"
        cells = []
        for name in STEPS:
            best = max(medians[name, other] for other in pairs if other[0] is not None)
            rate = medians[name, pair]
            cells.append(f"{rate:12.1f} {rate / best:7.2f}")
        took = {name: [n for _, n in rates[name, pair]] for name in STEPS}
        print(f"{line:24}" + "".join(cells) + (f"  took {took}" if threads is None else ""))


if __name__ == "__main__":
    main()
