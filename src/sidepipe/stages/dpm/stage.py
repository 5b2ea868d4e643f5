"""Stage `dpm`: trains the diffusion model under attack, or takes somebody else's checkpoint."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.pretrained import fingerprint, folder_or_hub_id, part_folder, read_object
from sidepipe.base.settings import build, require, tried
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.engine.trained import Training
from sidepipe.models.checkpoint import (
    SCHEDULER,
    check_checkpoint,
    check_network,
    load_checkpoint,
    load_unet,
)
from sidepipe.models.schedules import (
    check_alphas,
    check_scheduler,
    clip_range,
    read_schedule,
    step_rule,
)
from sidepipe.stages.data.stage import Data, load_partitions
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.duplicates import (
    PAIRS,
    OnDuplicates,
    not_duplicated,
    require_allowed,
    require_few_copies,
    without_duplicates,
)
from sidepipe.stages.dpm.subset import split

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

    from sidepipe.stages.dpm.module import DenoisingModule

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DPM(Stage):
    """What trained and pretrained models share: the split into training and held-out images.

    num_train_images: size of the training subset, None for every image of the pool.
    train_partitions: the pool, e.g. [train]; None for all. subset_seed: of the one permutation.
    on_duplicates: the setting of data. "error" and "keep" make the same artifact.
    """

    name: ClassVar[str] = "dpm"
    version: ClassVar[int] = 2
    takes: ClassVar[Mapping[str, str]] = {"on_duplicates": "data.on_duplicates"}
    parallel: ClassVar[bool] = True
    checks_ahead: ClassVar[bool] = True
    checkpoints: ClassVar[str] = "model/**/*"
    pictures: ClassVar[str] = "previews/*.png"
    num_train_images: int | None
    train_partitions: list | None
    subset_seed: int
    on_duplicates: OnDuplicates = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_train_images is not None:
            require(
                self.num_train_images >= 1,
                "dpm.num_train_images",
                ">= 1 or null",
                self.num_train_images,
            )
        require(self.subset_seed >= 0, "dpm.subset_seed", ">= 0", self.subset_seed)

    def inputs(self) -> tuple[str, ...]:
        return ("data",)

    def unused(self) -> tuple[str, ...]:
        return super().unused() if self.on_duplicates == "drop" else ("on_duplicates",)

    def scheduler(self) -> Any | None:
        """The model's noise schedule; None where it is not on this machine yet."""
        raise NotImplementedError

    def check_images(self, data: Stage) -> None:
        """Raises ValueError where samples of the model cannot be compared with the data."""

    def check_timesteps(
        self,
        stage: str,
        num_inference_steps: int,
        timestep_spacing: str | None = None,
        timesteps: Mapping[str, int] | None = None,
    ) -> None:
        """Raises ValueError where a stage sets timesteps that the model does not have.

        timesteps: single ones by the name of their setting.
        """
        from sidepipe.diffusion.sampler import require_x_0

        if (scheduler := self.scheduler()) is None:
            return
        alphas_cumprod, single = scheduler.alphas_cumprod, timesteps or {}
        steps = len(alphas_cumprod)
        name, rule = f"{stage}.num_inference_steps", f"<= {steps}, the timesteps of the model"
        require(num_inference_steps <= steps, name, rule, num_inference_steps)
        for name, t in single.items():
            require(t < steps, name, f"< {steps}, the timesteps of the model", t)
        sampled = step_rule(scheduler).timesteps(steps, num_inference_steps, timestep_spacing)
        kind = scheduler.config["prediction_type"]
        require_x_0(kind, alphas_cumprod, [*sampled, *single.values()])

    def split(self, data: Path, runtime: Runtime) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training and of the held-out images, as in the artifact.

        The first call searches for the duplicates that are dropped. Raises ValueError where the
        data cannot be split as the settings say.
        """
        train, others = self._all(data)
        if self.on_duplicates == "drop":
            return train, not_duplicated(data, train, others, runtime)
        return train, others

    def _all(self, data: Path) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training images and of all others, with those that duplicate them."""
        return split(
            load_partitions(data), self.num_train_images, self.train_partitions, self.subset_seed
        )

    def require_few_copies(
        self, data: Path, unseen: np.ndarray, rates: Sequence[float], runtime: Runtime
    ) -> None:
        """Raises ValueError where kept copies in the rows `unseen` would hide every hit."""
        if self.on_duplicates == "keep":
            require_few_copies(data, *self._all(data), unseen, rates, runtime)

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        self._check_partitions(data)
        self.split(data, runtime)

    def check_artifact(self, folder: Path, summary: Mapping[str, Any]) -> None:
        found, num_heldout = summary["duplicates"], summary["num_heldout_images"]
        require_allowed(found, self.on_duplicates, num_heldout, folder / PAIRS)

    def _write_split(self, job: Job) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Rows of the training and of the held-out images, and what the summary tells of them."""
        data = job.inputs["data"]
        train, heldout = self._all(data)
        heldout, found = without_duplicates(
            job.folder, data, train, heldout, self.on_duplicates, job.runtime
        )
        np.save(job.folder / "subset.npy", train)
        np.save(job.folder / "heldout.npy", heldout)
        numbers = {"num_train_images": len(train), "num_heldout_images": len(heldout)}
        return train, heldout, {**numbers, "duplicates": found}

    def _check_partitions(self, data: Path) -> None:
        counts = Counter(load_partitions(data).tolist())
        if self.train_partitions is None and len(counts) > 1:
            self._take_all(", ".join(f"{name} ({count:,})" for name, count in counts.items()))

    def _take_all(self, partitions: str) -> None:
        """Warns, or raises ValueError, where all of several partitions are the pool by default."""
        log.warning(
            "the training images are drawn from every partition, %s: "
            "'dpm.train_partitions=[train]' would hold the others out",
            partitions,
        )


@dataclass(frozen=True, kw_only=True)
class TrainedDPM(Training, DPM):
    """What every model trained here has: a diffusers UNet, a noise schedule, averaged weights.

    ema_decay: per step, from ema_start_step on. preview_every_steps: between validations.
    """

    unet: dict[str, Any]
    noise_schedule: dict[str, Any]
    ema_decay: float
    ema_start_step: int
    random_flip: bool
    preview_every_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        every, start = self.preview_every_steps, self.ema_start_step
        require(every >= 1, "dpm.preview_every_steps", ">= 1", every)
        require(start >= 0, "dpm.ema_start_step", ">= 0", start)
        require(0 <= self.ema_decay < 1, "dpm.ema_decay", "in [0, 1)", self.ema_decay)
        require(
            self.ema_start_step < self.max_steps,
            "dpm.ema_start_step",
            f"< dpm.max_steps = {self.max_steps}, or the averaged weights are the initial ones",
            self.ema_start_step,
        )

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        data = upstream["data"]
        assert isinstance(data, Data)
        remedy = "choose another data=, or dpm=pretrained to attack a checkpoint without images"
        require(not data.is_empty, "data", "images to train on", "none", remedy)

    def scheduler(self) -> Any | None:
        return tried("diffusion", self.noise_schedule)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        import torch

        data = upstream["data"]
        assert isinstance(data, Data)
        scheduler = tried("diffusion", self.noise_schedule)
        check_scheduler(scheduler.config, type(scheduler).__name__, "diffusion")
        check_alphas(scheduler, "diffusion")
        with torch.device("meta"):  # its settings are tried, no weights are made
            unet = tried("dpm.unet", self.unet)
        self._check_network(unet.config, data)
        levels = len(unet.config["block_out_channels"])
        require(
            data.size % 2 ** (levels - 1) == 0,
            "data.size",
            f"divisible by {2 ** (levels - 1)}, what {levels} levels of the UNet downsample",
            data.size,
            "change data.size or dpm.unet.block_out_channels",
        )

    def _check_network(self, config: Mapping[str, Any], data: Data) -> None:
        """Raises ValueError unless this is the config of a UNet for the stage and its data."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TrainDPM(TrainedDPM):
    """An unconditional UNet2DModel trained on the subset."""

    def _check_network(self, config: Mapping[str, Any], data: Data) -> None:
        check_network(config, "dpm.unet", data.size, data.channels)

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L
        from diffusers import DDPMPipeline

        from sidepipe.engine.training import validation_batches, weights
        from sidepipe.stages.dpm.module import EMA

        images = load_images(job.inputs["data"])
        train, heldout, about = self._write_split(job)
        L.seed_everything(self.seed, verbose=False)
        unet, scheduler = build(self.unet), build(self.noise_schedule)
        module = self._module(unet, scheduler, job.folder)
        validation = [validation_batches([images[p[:512]]]) for p in (train, heldout) if len(p)]
        log.info(
            "training %.2f M parameters on %d images, %d held out",
            *(unet.num_parameters() / 1e6, len(train), len(heldout)),
        )
        metrics = self.fit(
            module,
            [images[train]],
            validation,
            job,
            validate_every_steps=self.preview_every_steps,
            callbacks=[EMA(self.ema_decay, self.ema_start_step)],
        )
        module.load_state_dict(weights(job.folder))
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(job.folder / "model")
        return {
            **about,
            "num_parameters": unet.num_parameters(),
            "epochs": self.max_steps * self.batch_size / len(train),
            **metrics,
        }

    def _module(self, unet: UNet2DModel, scheduler: DDPMScheduler, folder: Path) -> DenoisingModule:
        from sidepipe.stages.dpm.module import DenoisingModule

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
            clip_range=clip_range(scheduler),
        )


@dataclass(frozen=True, kw_only=True)
class Pretrained(DPM):
    """What every model that somebody else trained has: where it is, and whether it changed.

    path: a folder saved by `save_pretrained`, or a hub id (fetched when the stage runs). revision:
    of the hub id. variant: of the weight files, "fp16", "non_ema", "ema" or "default", for the file
    without one; None: the only one. The training subset must be the images that the model was
    trained on.
    """

    path: str
    revision: str | None
    variant: str | None

    def _local_folder(self) -> Path | None:
        """The folder that `path` names, None for a hub id; FileNotFoundError if it is neither."""
        found = folder_or_hub_id("dpm.path", self.path)
        return found if isinstance(found, Path) else None

    def scheduler(self) -> Any | None:
        if (folder := self._local_folder()) is None:
            return None
        path = part_folder(folder, "scheduler") / SCHEDULER
        return read_schedule(read_object(path), str(path))

    def _take_all(self, partitions: str) -> None:
        # A wrong guess counts training images as unseen, which hides every copy.
        raise ValueError(
            f"dpm.train_partitions must name the partitions that the checkpoint was trained on, of "
            f"{partitions}, got null; remedy: 'dpm.train_partitions=[train]'"
        )

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        folder = Path(self.path).expanduser()
        if not folder.is_dir() or fingerprint(folder) == summary["files"]:
            return None  # the checkpoint need not be at hand once the artifact is
        return (
            f"the checkpoint {folder} changed since this artifact was made, and results would be "
            "of the old one; remedy: restore it, or delete the artifact's folder to read it again"
        )


@dataclass(frozen=True, kw_only=True)
class PretrainedDPM(Pretrained):
    """An unconditional diffusers checkpoint of others, attacked as it is."""

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        if data.is_empty:
            for name in ("num_train_images", "train_partitions"):
                remedy = "there are no images to split with data=none"
                value = getattr(self, name)
                require(value is None, f"dpm.{name}", "null", value, remedy)
        self._local_folder()  # raises where there can be none

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        if (folder := self._local_folder()) is not None:
            check_checkpoint(folder, self.variant, data.size, data.channels)

    def run(self, job: Job) -> dict[str, Any]:
        from diffusers import DDPMPipeline

        about = self._write_split(job)[2]
        _, size, _, channels = load_images(job.inputs["data"]).shape
        unet, scheduler = load_checkpoint(
            self.path, self.revision, self.variant, size=size, channels=channels
        )
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(job.folder / "model")
        source = Path(self.path).expanduser()
        return {
            **about,
            "num_parameters": unet.num_parameters(),
            "files": fingerprint(source) if source.is_dir() else {},
        }


def load(folder: Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """The network with its EMA weights, and its noise schedule."""
    path = folder / "model" / "scheduler" / SCHEDULER
    return load_unet(folder / "model" / "unet"), read_schedule(read_object(path), str(path))


def load_subset(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images, and of all others, the best held-out images first."""
    return np.load(folder / "subset.npy"), load_unseen(folder)


def load_unseen(folder: Path) -> np.ndarray:
    """Indices of all images but the training images, the best held-out ones first."""
    return np.load(folder / "heldout.npy")
