"""Training images a second: a plain Lightning and DataLoader loop against ours, in turns.

Plain: float32, a shuffled DataLoader, AdamW, clipped gradients, no averaged weights. Ours: what the
stage dpm runs. Target: 1.5 times as fast.
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
from torch.utils.data import DataLoader, TensorDataset

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


if __name__ == "__main__":
    main()
