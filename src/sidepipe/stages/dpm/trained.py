"""Stage `dpm` that trains a model: the settings of every trained one, and the unconditional one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sidepipe.base.settings import build, require, tried
from sidepipe.engine.kinds import check_kind
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.engine.trained import Training
from sidepipe.memorization.thresholds import usable_rates
from sidepipe.models.pixels import check_network
from sidepipe.models.schedules import check_noise_schedule, schedule_from
from sidepipe.stages.data.stage import Data, load_repeats
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.mitigations import Mitigations, fixed_noise
from sidepipe.stages.dpm.stage import DPM

if TYPE_CHECKING:
    import numpy as np
    from diffusers import UNet2DModel

    from sidepipe.stages.dpm.module import EMA, DenoisingModule

log = logging.getLogger(__name__)

MAX_VALIDATION = 512  # images of each part


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining(Training):
    """The settings of a trained denoiser, and its loop.

    ema_decay: per step, from ema_start_step. preview_every_steps: between validations.
    of_rows: whether it is a model of table rows, not of images.
    """

    of_rows: ClassVar[bool] = False
    ema_decay: float
    ema_start_step: int
    random_flip: bool
    preview_every_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        every, start = self.preview_every_steps, self.ema_start_step
        name, most = self.name, f"{self.name}.max_steps = {self.max_steps}"
        require(every >= 1, f"{name}.preview_every_steps", ">= 1", every)
        require(start >= 0, f"{name}.ema_start_step", ">= 0", start)
        require(0 <= self.ema_decay < 1, f"{name}.ema_decay", "in [0, 1)", self.ema_decay)
        rule = f"< {most}, or the averaged weights are the initial ones"
        require(start < self.max_steps, f"{name}.ema_start_step", rule, start)

    def _fitted(
        self,
        job: Job,
        module: DenoisingModule,
        rows: Sequence[np.ndarray],
        parts: tuple[np.ndarray, np.ndarray],
    ) -> dict[str, Any]:
        """Trains the module, whose weights are then the averaged ones; its part of the summary.

        rows: arrays with a row per image of the data. parts: the rows of the training and of the
        held-out images.
        """
        train, heldout = parts
        count = sum(p.numel() for p in module.unet.parameters() if p.requires_grad)
        log.info(
            "training %.2f M parameters on %d %s, %d held out",
            *(count / 1e6, len(train), "rows" if self.of_rows else "images", len(heldout)),
        )
        epoch = self._epoch(job, train)
        metrics = self._averaged(job, module, rows, epoch, parts)
        return {"epochs": self.max_steps * self.batch_size / len(epoch), **metrics}

    def _epoch(self, job: Job, train: np.ndarray) -> np.ndarray:
        """The rows of an epoch, in which a training image may repeat."""
        return train

    def _averaged(
        self,
        job: Job,
        module: DenoisingModule,
        arrays: Sequence[np.ndarray],
        rows: np.ndarray,
        parts: Sequence[np.ndarray],
    ) -> dict[str, float]:
        """Trains the module, whose weights are then the averaged ones; its last metrics.

        arrays: with a row per image. rows: those of an epoch, where a row may repeat. parts: the
        rows of the training and of the held-out images, of which some are validated on.
        """
        from sidepipe.engine.training import fit, validation_batches, weights
        from sidepipe.stages.dpm.module import EMA

        ema = EMA(self.ema_decay, self.ema_start_step)
        some = [part[:MAX_VALIDATION] for part in parts if len(part)]
        metrics = fit(
            self,
            module,
            [array[rows] for array in arrays],
            [validation_batches([array[part] for array in arrays]) for part in some],
            job,
            validate_every_steps=self.preview_every_steps,
            callbacks=[ema, *self._watching(job, ema)],
        )
        module.load_state_dict(weights(job.folder))
        return metrics

    def _watching(self, job: Job, ema: EMA) -> list[Any]:
        """Callbacks that read the averaged weights while the model trains."""
        return []

    def _module(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        folder: Path,
        kind: type[DenoisingModule] | None = None,
        **settings: Any,
    ) -> DenoisingModule:
        """kind: None for DenoisingModule. settings: of the kind, besides those of this stage."""
        from sidepipe.stages.dpm.module import DenoisingModule

        # A row of a table is one pixel.
        size, schedule = unet.config.get("sample_size", 1), schedule_from(scheduler)
        return (kind or DenoisingModule)(
            schedule.called(unet),
            schedule.alphas_cumprod,
            schedule.prediction_type,
            lr=self.lr,
            weight_decay=self.weight_decay,
            lr_warmup_steps=self.lr_warmup_steps,
            random_flip=self.random_flip,
            seed=self.seed,
            preview_folder=folder / "previews",
            image_shape=(unet.config["in_channels"], size, size),
            clip_range=schedule.clip_range,
            **settings,
        )


@dataclass(frozen=True, kw_only=True)
class TrainedDPM(DenoiserTraining, DPM):
    """A model trained here: a diffusers UNet, a noise schedule, averaged weights."""

    unet: dict[str, Any]
    noise_schedule: dict[str, Any]

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        data = upstream["data"]
        assert isinstance(data, Data)
        remedy = "choose another data=, or dpm=pretrained to attack a checkpoint without images"
        require(not data.is_empty, "data", "images to train on", "none", remedy)
        check_kind(upstream, "this model", of_rows=self.of_rows)

    def scheduler(self) -> Any | None:
        return tried("diffusion", self.noise_schedule)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        import torch

        data = upstream["data"]
        assert isinstance(data, Data)
        self._check_schedule()
        with torch.device("meta"):  # checks its settings without weights
            unet = tried("dpm.unet", self.unet)
        self._check_network(unet.config, data)
        check_levels(unet.config, data.size, "data.size")

    def _check_schedule(self) -> None:
        check_noise_schedule(self.noise_schedule)

    def _check_network(self, config: Mapping[str, Any], data: Data) -> None:
        """Raises ValueError unless this is the config of a UNet for the stage and its data."""
        raise NotImplementedError


def _check_alarm(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting of the alarm out of its range, without torch."""
    for field in ("num_images", "num_inference_steps", "refine_steps"):
        require(settings[field] >= 1, f"dpm.alarm.{field}", ">= 1", settings[field])
    rate = settings["false_positive_rate"]
    require(0 < rate < 1, "dpm.alarm.false_positive_rate", "in (0, 1)", rate)


def check_levels(config: Mapping[str, Any], size: int, name: str) -> None:
    """Raises ValueError unless the levels of this UNet can halve what it denoises.

    size: the side of that, by the setting `name`.
    """
    levels = len(config["block_out_channels"])
    require(
        size % 2 ** (levels - 1) == 0,
        name,
        f"divisible by {2 ** (levels - 1)}, as {levels} levels of the UNet downsample",
        size,
        f"change {name} or dpm.unet.block_out_channels",
    )


@dataclass(frozen=True, kw_only=True)
class TrainDPM(Mitigations, TrainedDPM):
    """An unconditional UNet2DModel trained on the subset.

    keep_every_steps: steps between checkpoints that are kept as models of their own, or the steps;
    None for none. stop_when_memorizing: whether training stops at the first validation at which
    memorization is certain. alarm: what it does there.
    """

    takes_canaries: ClassVar[bool] = True
    keep_every_steps: int | list | None = None
    stop_when_memorizing: bool = False
    alarm: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "set, to stop when the model memorizes"
        able = self.alarm is not None or not self.stop_when_memorizing
        require(able, f"{self.name}.alarm", rule, self.alarm)
        if self.stop_when_memorizing:
            _check_alarm(self.alarm or {})
        first, every = self.ema_start_step + 1, self.keep_every_steps
        name, rule = f"{self.name}.keep_every_steps", f"null, a number in [1, {self.max_steps}] "
        rule += f"with a multiple in [{first}, {self.max_steps}], or such steps, ascending: "
        rule += f"averaging starts at step {self.ema_start_step}"
        steps = self.kept_steps
        within = all(first <= step <= self.max_steps for step in steps)
        fits = within and sorted(set(steps)) == steps and (every is None or len(steps) > 0)
        require(fits, name, rule, every)

    @property
    def kept_steps(self) -> list[int]:
        """The steps whose averaged weights are kept; of a number its multiples."""
        every = self.keep_every_steps
        if not isinstance(every, int):
            return list(every or [])
        steps = range(every, self.max_steps + 1, every) if every >= 1 else ()
        return [step for step in steps if step > self.ema_start_step]

    def unused(self) -> tuple[str, ...]:
        return (*super().unused(), *(() if self.stop_when_memorizing else ("alarm",)))

    def _check_schedule(self) -> None:
        super()._check_schedule()
        if self.stop_when_memorizing:
            alarm = tried("dpm.alarm", self.alarm or {})
            steps, t = alarm.num_inference_steps, {"dpm.alarm.refine_t": alarm.refine_t}
            self.check_timesteps("dpm.alarm", steps, "trailing", t)
            alarm.features.check()
        if self.timesteps:
            self.check_timesteps("dpm", 1, None, self.timesteps)

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check_data(data, upstream, runtime)
        if self.stop_when_memorizing:
            usable_rates([0.5], len(self.split(data, runtime)[1]))

    def _epoch(self, job: Job, train: np.ndarray) -> np.ndarray:
        return train.repeat(load_repeats(job.inputs["data"], train))

    @property
    def _num_looks(self) -> int:
        """Validations of a whole training, at each of which the alarm looks."""
        return self.max_steps // min(self.preview_every_steps, self.max_steps)

    def _watching(self, job: Job, ema: EMA) -> list[Any]:
        from sidepipe.stages.dpm.alarm import stopping
        from sidepipe.stages.dpm.kept import KeepWeights

        found: list[Any] = []
        if steps := self.kept_steps:
            found.append(KeepWeights(job.folder, steps, ema))
        if self.stop_when_memorizing:
            data, device = job.inputs["data"], job.runtime.torch_device()
            found.append(stopping(build(self.alarm), job.folder, data, self._num_looks, device))
        return found

    def _fitted(self, *args: Any) -> dict[str, Any]:
        fitted = super()._fitted(*args)
        if not self.stop_when_memorizing:
            return fitted
        from sidepipe.stages.dpm.alarm import summary

        found = summary(args[0].folder, self._num_looks, self.max_steps)
        share = (found["stopped_at"] or self.max_steps) / self.max_steps
        return {**fitted, "epochs": share * fitted["epochs"], "alarm": found}

    def _check_network(self, config: Mapping[str, Any], data: Data) -> None:
        check_network(config, "dpm.unet", data.size, data.channels)

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L
        from diffusers import DDPMPipeline

        from sidepipe.stages.dpm.kept import complete
        from sidepipe.stages.dpm.module import AmbientModule

        images = load_images(job.inputs["data"])
        train, heldout, about = self._write_split(job)
        L.seed_everything(self.seed, verbose=False)
        unet, scheduler = build(self.unet), build(self.noise_schedule)
        if self.ambient_t is None:
            module, rows = self._module(unet, scheduler, job.folder, **self.shaping), [images]
        else:
            kind, t = AmbientModule, self.ambient_t
            module = self._module(unet, scheduler, job.folder, kind, ambient_t=t)
            rows = [images, fixed_noise(len(images), train, module.image_shape, self.seed)]
        fitted = self._fitted(job, module, rows, (train, heldout))
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(job.folder / "model")
        complete(job.folder)
        return {**about, "num_parameters": unet.num_parameters(), **fitted}
