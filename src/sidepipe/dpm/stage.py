"""Stage `dpm`: trains the diffusion model under attack, or takes somebody else's checkpoint."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from lightning.pytorch.callbacks import EMAWeightAveraging

from sidepipe.data.stage import Data, load_partitions
from sidepipe.data.stage import load as load_images
from sidepipe.dpm.module import DenoisingModule
from sidepipe.dpm.subset import split
from sidepipe.settings import build, require
from sidepipe.stage import Runtime, Stage
from sidepipe.training import EndlessBatches, fit, validation_batches, weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _DPM(Stage):
    """What trained and pretrained models share: the split into training and held-out images.

    num_train_images: size of the training subset, None for every image of the pool.
    train_partitions: the pool, e.g. [train]; None for all. subset_seed: of the one permutation.
    """

    name: ClassVar[str] = "dpm"
    num_train_images: int | None
    train_partitions: list | None
    subset_seed: int

    def inputs(self) -> tuple[str, ...]:
        return ("data",)

    def _split(self, folder: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
        train, heldout = split(
            load_partitions(data), self.num_train_images, self.train_partitions, self.subset_seed
        )
        np.save(folder / "subset.npy", train)
        np.save(folder / "heldout.npy", heldout)
        return train, heldout


@dataclass(frozen=True, kw_only=True)
class TrainDPM(_DPM):
    """A UNet2DModel trained on the subset.

    batch_size: global, in images. lr_warmup_steps, max_steps, *_every_steps: in optimizer steps.
    ema_decay: per step, from ema_start_step on. gradient_clip_val: maximal gradient norm.
    """

    unet: dict[str, Any]
    noise_schedule: dict[str, Any]
    max_steps: int
    batch_size: int
    lr: float
    weight_decay: float
    lr_warmup_steps: int
    ema_decay: float
    ema_start_step: int
    gradient_clip_val: float
    random_flip: bool
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    log_every_steps: int
    checkpoint_every_steps: int
    preview_every_steps: int
    seed: int

    def __post_init__(self) -> None:
        for field in ("max_steps", "batch_size", "log_every_steps", "checkpoint_every_steps"):
            require(getattr(self, field) >= 1, f"dpm.{field}", ">= 1", getattr(self, field))
        require(
            self.preview_every_steps >= 1,
            "dpm.preview_every_steps",
            ">= 1",
            self.preview_every_steps,
        )
        require(self.lr > 0, "dpm.lr", "> 0", self.lr)
        require(0 <= self.ema_decay < 1, "dpm.ema_decay", "in [0, 1)", self.ema_decay)
        require(
            self.ema_start_step < self.max_steps,
            "dpm.ema_start_step",
            f"< dpm.max_steps = {self.max_steps}, or the averaged weights are the initial ones",
            self.ema_start_step,
        )
        require(self.seed >= 0, "dpm.seed", ">= 0", self.seed)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        levels = len(self.unet["block_out_channels"])
        factor = 2 ** (levels - 1)
        require(
            data.size % factor == 0,
            "data.size",
            f"divisible by {factor}, what {levels} levels of the UNet downsample",
            data.size,
            "change data.size or dpm.unet.block_out_channels",
        )
        require(
            self.batch_size % runtime.devices == 0,
            "dpm.batch_size",
            f"divisible by runtime.devices = {runtime.devices}",
            self.batch_size,
        )

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        images = load_images(inputs["data"])
        train, heldout = self._split(folder, inputs["data"])
        L.seed_everything(self.seed, verbose=False)
        unet, scheduler = build(self.unet), build(self.noise_schedule)
        module = self._module(unet, scheduler, folder)
        batches = EndlessBatches(module, [images[train]], self.batch_size, self.seed)
        validation = [validation_batches([images[p[:512]]]) for p in (train, heldout) if len(p)]
        log.info(
            "training %.2f M parameters on %d images, %d held out",
            *(sum(p.numel() for p in unet.parameters()) / 1e6, len(train), len(heldout)),
        )
        ema = EMAWeightAveraging(
            decay=self.ema_decay, update_starting_at_step=self.ema_start_step, use_buffers=False
        )
        metrics = fit(
            module,
            batches,
            validation,
            folder,
            runtime,
            max_steps=self.max_steps,
            precision=self.precision,
            gradient_clip_val=self.gradient_clip_val,
            log_every_steps=self.log_every_steps,
            checkpoint_every_steps=self.checkpoint_every_steps,
            validate_every_steps=self.preview_every_steps,
            callbacks=[ema],
        )
        module.load_state_dict(weights(folder))
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "model")
        return {
            "num_train_images": len(train),
            "num_heldout_images": len(heldout),
            "num_parameters": sum(p.numel() for p in unet.parameters()),
            "epochs": self.max_steps * self.batch_size / len(train),
            **metrics,
        }

    def _module(self, unet: UNet2DModel, scheduler: DDPMScheduler, folder: Path) -> DenoisingModule:
        size = unet.config["sample_size"]
        return DenoisingModule(
            unet,
            scheduler.alphas_cumprod,
            scheduler.config["prediction_type"],
            lr=self.lr,
            weight_decay=self.weight_decay,
            lr_warmup_steps=self.lr_warmup_steps,
            random_flip=self.random_flip,
            seed=self.seed,
            preview_folder=folder / "previews",
            image_shape=(unet.config["in_channels"], size, size),
        )


@dataclass(frozen=True, kw_only=True)
class PretrainedDPM(_DPM):
    """Somebody else's unconditional diffusers checkpoint, attacked as it is.

    path: a folder saved by `save_pretrained`, or a hub id (fetched when the stage runs).
    revision: of the hub id. The training subset must be the images the model was trained on.
    """

    path: str
    revision: str | None

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            data = upstream["data"]
            assert isinstance(data, Data)
            _check_checkpoint(folder, data)
        elif self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
            raise FileNotFoundError(f"dpm.path names {self.path}, which is not a folder")

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        images = load_images(inputs["data"])
        train, heldout = self._split(folder, inputs["data"])
        source = (
            str(Path(self.path).expanduser())
            if Path(self.path).expanduser().is_dir()
            else self.path
        )
        options = {} if self.revision is None else {"revision": self.revision}
        unet = UNet2DModel.from_pretrained(
            source, subfolder="unet", low_cpu_mem_usage=False, **options
        )
        scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler", **options)
        _check_network(dict(unet.config), self.path, images.shape[1], images.shape[3])
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "model")
        return {
            "num_train_images": len(train),
            "num_heldout_images": len(heldout),
            "num_parameters": sum(p.numel() for p in unet.parameters()),
            "path": self.path,
        }


def _check_checkpoint(folder: Path, data: Data) -> None:
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        if not (folder / part).is_file():
            raise FileNotFoundError(
                f"dpm.path must be a folder written by DDPMPipeline.save_pretrained, but {folder} "
                f"has no {part}"
            )
    config = json.loads((folder / "unet/config.json").read_text())
    _check_network(config, str(folder), data.size, data.channels)
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    require(
        "ScoreSde" not in scheduler.get("_class_name", "") and "num_train_timesteps" in scheduler,
        "dpm.path",
        "a model with discrete timesteps (DDPM, DDIM and kin)",
        scheduler.get("_class_name"),
        "variance-exploding models have no alphas_cumprod and are not supported",
    )


def _check_network(config: Mapping[str, Any], path: str, size: int, channels: int) -> None:
    kind = config.get("_class_name", "UNet2DModel")
    require(kind == "UNet2DModel", f"the network of {path}", "an unconditional UNet2DModel", kind)
    fixes = (
        ("in_channels", channels, f"data.channels={config['in_channels']}"),
        ("out_channels", channels, "learned-variance outputs are not supported"),
        ("sample_size", size, f"data.size={config['sample_size']}"),
    )
    for name, wanted, remedy in fixes:
        require(
            config[name] == wanted,
            f"{name} of {path}",
            f"{wanted}, as the data are",
            config[name],
            remedy,
        )
    labels = config.get("num_class_embeds")
    require(labels is None, f"num_class_embeds of {path}", "null (an unconditional model)", labels)


def load(folder: Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """The network with its EMA weights, and its noise schedule."""
    model = folder / "model"
    unet = UNet2DModel.from_pretrained(
        model / "unet", use_safetensors=True, low_cpu_mem_usage=False
    )
    return unet.eval(), DDPMScheduler.from_pretrained(model / "scheduler")


def load_subset(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images, and of all others, the best held-out images first."""
    return np.load(folder / "subset.npy"), np.load(folder / "heldout.npy")
