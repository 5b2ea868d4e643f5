"""The alarm of a training: at every validation it refines a few samples, and looks for hits.

It reads what a trainer has: the training images and the held-out ones. A training stops at the
first look at which memorization is certain (`memorization.clock`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from sidepipe.base.files import write_json
from sidepipe.base.images import Images
from sidepipe.diffusion.finite import Seen, require_finite_eps
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.sampler import ddim, sampling_timesteps
from sidepipe.features.encoders import Encoder
from sidepipe.memorization.clock import Look, level_of, look
from sidepipe.memorization.real import Encoded, RealImages, encode_rows, real_images
from sidepipe.memorization.thresholds import usable_rates
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.module import DenoisingModule
from sidepipe.stages.dpm.stage import load_subset

log = logging.getLogger(__name__)

LOOKS = "looks.json"
AT_ONCE = 256  # samples
Judge = Callable[[Images], Look]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """The work of each look.

    num_images: refined samples. num_inference_steps: evaluations of the sampler per image, at
    trailing timesteps. refine_steps, refine_t: of refinement. false_positive_rate: share of real
    held-out images that pass the threshold of a hit. features: the encoder of that threshold.
    """

    num_images: int
    num_inference_steps: int
    refine_steps: int
    refine_t: int
    false_positive_rate: float
    features: Encoder

    @property
    def evaluations(self) -> int:
        """Network evaluations per look."""
        return self.num_images * (self.num_inference_steps + self.refine_steps)

    @torch.no_grad()
    def refined(self, module: DenoisingModule, first: int) -> Images:
        """Refined samples of the module. first: the number of the first one, for its noise."""
        numbers, parts = range(first, first + self.num_images), []
        for start in range(0, self.num_images, AT_ONCE):
            seen: Seen = []
            some = numbers[start : start + AT_ONCE]
            eps_fn, ab = module.eps_fn(len(some), seen), module.alphas_cumprod
            noise = image_noise(module.seed, "alarm", some, module.image_shape, module.device)
            timesteps = sampling_timesteps(len(ab), self.num_inference_steps, "trailing")
            x_0 = ddim(eps_fn, noise(), timesteps, ab)
            x_0 = seek_mode(eps_fn, x_0, self.refine_t, self.refine_steps, ab)
            require_finite_eps(seen, f"dpm at step {module.global_step}", some)
            parts.append(module.decode(x_0.cpu()).numpy())
        return np.concatenate(parts)


def stopping(alarm: Alarm, folder: Path, data: Path, looks: int, device: str) -> StopWhenMemorizing:
    """The callback of a training. folder: its artifact, which has the split. data: the images."""
    encoder, images = alarm.features, load_images(data)
    train, unseen = (
        Encoded(rows, encode_rows(encoder, images, rows, device)) for rows in load_subset(folder)
    )
    real = real_images(train, unseen, encoder.metric, counts_only=True)
    rate = usable_rates([alarm.false_positive_rate], len(unseen.rows))[0]
    judge = partial(_judge, encoder=encoder, real=real, rate=rate, looks=looks, device=device)
    return StopWhenMemorizing(alarm, folder, judge)


def _judge(
    images: Images,
    *,
    encoder: Encoder,
    real: RealImages,
    rate: float,
    looks: int,
    device: str,
) -> Look:
    return look(encoder.encode(images, device=device), real, encoder.metric, rate, looks)


class StopWhenMemorizing(Callback):
    """Stops the training at the first validation at which memorization is certain.

    judge: the `Look` of refined samples. It runs while the averaged weights are in place. `LOOKS`
    has all looks, so that a run that resumes stops at the same step, also after its last one.
    """

    def __init__(self, alarm: Alarm, folder: Path, judge: Judge) -> None:
        self.alarm, self.path, self.judge = alarm, folder / LOOKS, judge

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        looks = [one for one in load_looks(self.path) if one["step"] <= trainer.global_step]
        if trainer.is_global_zero:
            write_json(self.path, looks)
        trainer.should_stop = trainer.strategy.broadcast(memorizes(looks))

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        looks: list[dict[str, Any]] = []
        if trainer.is_global_zero:
            looks = [*load_looks(self.path), self._look(pl_module)]
            write_json(self.path, looks)
            told = {name: looks[-1][name] for name in ("hits", "heldout_hits", "excess", "low")}
            logged = {f"val/refined_{name}": value for name, value in told.items()}
            trainer.logger.log_metrics(logged, trainer.global_step - 1)
        if trainer.strategy.broadcast(memorizes(looks)):
            trainer.should_stop = True

    def _look(self, module: Any) -> dict[str, Any]:
        start, step = time.perf_counter(), module.global_step
        # New samples at every look, the same ones in a run that resumes.
        found = self.judge(self.alarm.refined(module, first=step * self.alarm.num_images))
        seconds = time.perf_counter() - start
        row = {"step": step, **vars(found), "evaluations": self.alarm.evaluations}
        log.info("step %s", in_words(row, seconds))
        return {**row, "seconds": round(seconds, 3)}


def in_words(row: dict[str, Any], seconds: float) -> str:
    """A look in plain English, from its step on."""
    verdict = "the model memorizes: training stops" if row["memorizes"] else "no certain excess"
    return (
        f"{row['step']:,}: {row['hits']:,} of {row['images']:,} refined samples are hits, with "
        f"{row['heldout_hits']:.1f} held-out hits (excess {100 * row['excess']:.1f} %, at least "
        f"{100 * row['low']:.1f} %; different images: {row['different']:,} training, "
        f"{row['different_heldout']:,} held-out); {verdict} ({row['evaluations']:,} evaluations, "
        f"{seconds:.1f} s)"
    )


def memorizes(looks: Sequence[dict[str, Any]]) -> bool:
    """Whether the last of these looks stops the training."""
    return bool(looks) and looks[-1]["memorizes"]


def load_looks(path: Path) -> list[dict[str, Any]]:
    """The looks of a training so far."""
    return json.loads(path.read_text()) if path.exists() else []


def summary(folder: Path, num_looks: int, max_steps: int) -> dict[str, Any]:
    """The looks of a finished training, for its manifest. num_looks: of a whole training."""
    looks = load_looks(folder / LOOKS)
    return {
        "max_steps": max_steps,
        "looks": len(looks),
        "planned_looks": num_looks,
        "level": level_of(num_looks),
        "evaluations": sum(one["evaluations"] for one in looks),
        "seconds": round(sum(one["seconds"] for one in looks), 3),
        "stopped_at": looks[-1]["step"] if memorizes(looks) else None,
        "last": looks[-1] if looks else None,
    }
