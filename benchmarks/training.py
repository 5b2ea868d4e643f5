"""Training images per second: a plain Lightning and DataLoader loop against ours, in turns.

Plain: float32, a shuffled DataLoader, AdamW, clipped gradients, no averaged weights. Ours: what the
stage dpm runs. Target: 1.5 times as fast.

The roofline (Williams et al., 2009) is measured in the same run: each operation of a forward and
backward pass takes at least its FLOPs at the rate of a large matrix product, and its bytes at the
rate of a large copy. Their sum bounds images per second from above, whatever the loop is.
"""

import sidepipe  # noqa: F401, before torch, as it says how torch's threads wait

# isort: split
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers import DDPMScheduler
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import flop_registry

from sidepipe.base.settings import build
from sidepipe.engine.progress import quiet_libraries
from sidepipe.engine.stage import Job, Runtime
from sidepipe.engine.trained import Training
from sidepipe.engine.training import fit, validation_batches
from sidepipe.stages.dpm.module import EMA, DenoisingModule

CONF = Path(__file__).parents[1] / "conf/dpm"
SIDES = {"tiny": 8, "unet16": 16}
NUM_IMAGES, BATCH_SIZE, NUM_STEPS, WARM_UP, REPEATS = 512, 128, 20, 3, 5


class Loop(Training):
    name = "dpm"


LOOP = Loop(
    max_steps=NUM_STEPS,
    batch_size=BATCH_SIZE,
    lr=1e-3,
    weight_decay=0.0,
    lr_warmup_steps=5,
    gradient_clip_val=1.0,
    precision="bf16-mixed",
    log_every_steps=50,
    checkpoint_every_steps=NUM_STEPS,
    seed=0,
)


class Timer(Callback):
    """Images a second after the first steps, validation and start excluded."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if trainer.global_step == WARM_UP:
            self.start = time.perf_counter()
        if trainer.global_step == NUM_STEPS:
            seconds = time.perf_counter() - self.start
            self.images_per_second = (NUM_STEPS - WARM_UP) * BATCH_SIZE / seconds


class Plain(L.LightningModule):
    """DDPM training as it is usually written."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet, self.scheduler = unet, DDPMScheduler()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x_0 = batch[0].permute(0, 3, 1, 2).float() / 127.5 - 1
        eps = torch.randn_like(x_0)
        t = torch.randint(0, 1000, (len(x_0),), device=self.device)
        x_t = self.scheduler.add_noise(x_0, eps, t)  # pyright: ignore[reportArgumentType]
        loss = F.mse_loss(self.unet(x_t, t).sample, eps)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def unet_of(name: str) -> nn.Module:
    """The network of conf/dpm, with random weights, for gray images."""
    data = {"data": {"size": SIDES[name], "channels": 1}}
    config = OmegaConf.merge(data, OmegaConf.load(CONF / f"{name}.yaml"))
    torch.manual_seed(0)
    return build(OmegaConf.to_container(config.unet, resolve=True))


def plain(name: str, images: np.ndarray) -> float:
    """Images per second of the plain loop."""
    timer = Timer()
    trainer = L.Trainer(
        max_steps=NUM_STEPS,
        gradient_clip_val=1.0,
        callbacks=[timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(torch.from_numpy(images)), BATCH_SIZE, shuffle=True)
    trainer.fit(Plain(unet_of(name).train()), loader)
    return timer.images_per_second


def ours(name: str, images: np.ndarray) -> float:
    """Images per second of the stage's loop."""
    timer, side = Timer(), SIDES[name]
    with tempfile.TemporaryDirectory() as folder:
        module = DenoisingModule(
            unet_of(name).train(),
            DDPMScheduler().alphas_cumprod,
            "epsilon",
            lr=1e-3,
            weight_decay=0.0,
            lr_warmup_steps=5,
            random_flip=False,
            seed=0,
            preview_folder=Path(folder) / "previews",
            image_shape=(1, side, side),
        )
        fit(
            LOOP,
            module,
            [images],
            validation_batches([images[:8]]),
            Job(Path(folder), {}, Runtime()),
            validate_every_steps=NUM_STEPS,
            callbacks=[EMA(0.999, 0), timer],
        )
    return timer.images_per_second


class Roofline(TorchDispatchMode):
    """The least seconds of what runs under it: the larger of FLOPs and bytes of each operation.

    flops, bytes: totals. Bytes are those of arguments and results; views move none.
    """

    def __init__(self, flops_per_second: float, bytes_per_second: float) -> None:
        super().__init__()
        self.rates = flops_per_second, bytes_per_second
        self.seconds, self.flops, self.bytes = 0.0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        moved = 0 if func.is_view else sum(x.numel() * x.element_size() for x in tensors)
        self.flops, self.bytes = self.flops + flops, self.bytes + moved
        self.seconds += max(flops / self.rates[0], moved / self.rates[1])
        return result


def best(step: Any, work: float) -> float:
    """Work per second of the fastest of ten calls."""
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return work / min(seconds)


def roofline(name: str, dtype: torch.dtype) -> tuple[float, Roofline]:
    """The bound of images per second, and what it was counted from."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n = 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    source, target = (torch.zeros(2**26, device=device) for _ in range(2))
    flops_per_second = best(lambda: a @ b, 2 * n**3)
    bytes_per_second = best(lambda: target.copy_(source), 2 * 4 * 2**26)
    unet, side = unet_of(name).train().to(device), SIDES[name]
    x_t = torch.randn(BATCH_SIZE, 1, side, side, device=device)
    t = torch.zeros(BATCH_SIZE, dtype=torch.int64, device=device)
    counted = Roofline(flops_per_second, bytes_per_second)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), counted:
        unet(x_t, t).sample.float().square().mean().backward()
    return BATCH_SIZE / counted.seconds, counted


def print_roofline(name: str, rates: dict[str, float]) -> None:
    """The bounds of both loops, and how near they are to them."""
    print(f"{'':8} {'bound':>8} {'/ plain':>8} {'reached':>8}  per step")
    for title, dtype in (("plain", torch.float32), ("ours", torch.bfloat16)):
        bound, counted = roofline(name, dtype)
        reached = rates[title] / bound
        step = f"{counted.flops / 1e9:.1f} GFLOP, {counted.bytes / 1e6:.0f} MB"
        peak = f"{counted.rates[0] / 1e9:.0f} GFLOP/s and {counted.rates[1] / 1e9:.1f} GB/s"
        print(
            f"{title:8} {bound:8.1f} {bound / rates['plain']:8.2f} {reached:8.2f}  {step} at {peak}"
        )


def main() -> None:
    quiet_libraries()
    warnings.filterwarnings("ignore")
    logging.getLogger("sidepipe").setLevel(logging.ERROR)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, side in SIDES.items():
        images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, side, side, 1), np.uint8)
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(REPEATS):
            rates["plain"].append(plain(name, images))
            rates["ours"].append(ours(name, images))
        print(f"\n{name}, batches of {BATCH_SIZE}\n{'':8} images/s  / plain")
        base = statistics.median(rates["plain"])
        for title, values in rates.items():
            rate = statistics.median(values)
            print(f"{title:8} {rate:8.1f} {rate / base:8.2f}", flush=True)
        print_roofline(name, {title: statistics.median(rates[title]) for title in rates})


if __name__ == "__main__":
    main()
