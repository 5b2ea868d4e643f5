"""Sampling and refining many images through Lightning's `Trainer.predict`, guided or not.

The sampling stages write shards; the API takes an array. Each image's noise comes from (seed,
stream, index), so images depend on batch size and number of devices only by rounding.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from sidepipe.base.images import to_model
from sidepipe.base.settings import Precision
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.finite import Seen, require_finite_eps, watched
from sidepipe.diffusion.guidance import conditioned, guided
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.sampler import SAMPLERS, require_x_0
from sidepipe.diffusion.schedule import EpsFn, add_noise, clip_x_0
from sidepipe.diffusion.timesteps import Guidance as Guidance
from sidepipe.engine import ranks
from sidepipe.engine.progress import (
    SpawnedProcess,
    progress_bar,
    progress_callbacks,
    progress_settings,
)
from sidepipe.engine.shard_writer import ShardWriter
from sidepipe.engine.shards import check_disk, missing_shards, shard_ranges
from sidepipe.engine.stage import Runtime
from sidepipe.engine.thread_callback import Threads
from sidepipe.engine.threads import ThreadChoice
from sidepipe.models.speed import (
    CPU_BATCH_SIZE,
    cast_once,
    compile_networks,
    compiling_pays,
    has_compiler,
    keep_freed_memory,
    largest_useful_batch,
    lay_out,
    seconds_of,
)

log = logging.getLogger(__name__)

SETTLING_PAYS = 1000  # steps after which timing some that make no image costs less than 1 %


class ImageSampler(L.LightningModule):
    """Predicts uint8 NHWC images for batches of image indices and their targets.

    A batch that brings images starts from these: with noise of the first timestep, where there are
    timesteps, and otherwise as they are.

    denoiser: the model under attack; a target is its condition, where it has one. surrogate: None
    for plain sampling, else a target is its label: a module with `grad_log_prob(x_t, t, y)`, or a
    model that takes the label for a condition. refine_steps, refine_t: how often finished samples
    move toward a mode of the model, unguided, and at which noise.
    """

    surrogate: Any

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        seed: int,
        stream: str,
        sampler: str = "ddim",
        timesteps: Sequence[int],
        eta: float,
        surrogate: nn.Module | None = None,
        guidance: Guidance | None = None,
        refine_steps: int = 0,
        refine_t: int = 0,
    ) -> None:
        super().__init__()
        self.denoiser, self.surrogate = denoiser, surrogate
        if surrogate is not None and not isinstance(surrogate, Denoiser):
            lay_out(surrogate)
        self.seed, self.stream, self.sampler = seed, stream, SAMPLERS[sampler]
        self.timesteps, self.eta, self.guidance = list(timesteps), eta, guidance
        self.refine_steps, self.refine_t = refine_steps, refine_t
        if refine_steps > 0:
            require_x_0(denoiser.prediction_type, denoiser.alphas_cumprod, [refine_t])
        self.is_compiled = False
        self.thread_choice: ThreadChoice | None = None

    @property
    def guided_timesteps(self) -> list[int]:
        """Those at which the surrogate is evaluated."""
        return [] if self.guidance is None else self.guidance.within(self.timesteps)

    @property
    def label_alone(self) -> bool:
        """Whether at those it is the surrogate's eps that is taken, and the model is not asked."""
        scale = None if self.guidance is None else self.guidance.guidance_scale
        return isinstance(self.surrogate, Denoiser) and scale == 1

    def on_predict_start(self) -> None:
        keep_freed_memory()

    @torch.no_grad()
    def predict_step(self, batch: dict[str, Tensor]) -> UInt8[Tensor, "n h w c"]:
        numbers, targets = batch["indices"].tolist(), batch["targets"]
        seen: Seen = []
        plain = watched(self.denoiser.eps_fn(targets), "the model's prediction", seen)
        # Compiling again, for the last shard's smaller batches, would take longer than they do.
        once = torch.compiler.set_stance("eager_on_recompile") if self.is_compiled else None
        with cast_once(self.device), once or nullcontext():
            x_0 = to_model(batch["images"]) if "images" in batch else None
            if x_0 is None or self.timesteps:
                x_0 = self._sampled(plain, numbers, targets, seen, x_0)
                require_finite_eps(seen, self.stream, numbers)
            if self.refine_steps > 0:
                x_0 = self.denoiser.as_saved(x_0)  # so that saved images can be refined alike
                x_0 = seek_mode(
                    self._in_range(plain),
                    x_0,
                    self.refine_t,
                    self.refine_steps,
                    self.denoiser.alphas_cumprod,
                )
                require_finite_eps(seen, self.stream, numbers)
            return self.denoiser.decode(x_0)

    def _sampled(
        self,
        plain: EpsFn,
        numbers: list[int],
        targets: Int64[Tensor, "n"],
        seen: Seen,
        x_0: Tensor | None = None,
    ) -> Tensor:
        """x_0 of the images with these numbers, from noise alone or from a noised `x_0`."""
        guided_eps_fn = self._guided(plain, targets)
        if guided_eps_fn is not plain:
            guided_eps_fn = watched(guided_eps_fn, "the guided prediction", seen)
        eps_fn = self._timed(self._in_range(guided_eps_fn))
        noise_fn = image_noise(self.seed, self.stream, numbers, self.denoiser.shape, self.device)
        alphas_cumprod, x_t = self.denoiser.alphas_cumprod, noise_fn()
        if x_0 is not None:
            t = torch.full((len(x_t),), self.timesteps[0], device=self.device)
            x_t = add_noise(x_0, x_t, t, alphas_cumprod)
        last = self.denoiser.step_rule.last_alpha_bar
        return self.sampler(eps_fn, x_t, self.timesteps, alphas_cumprod, self.eta, noise_fn, last)

    def _guided(self, plain: EpsFn, targets: Int64[Tensor, "n"]) -> EpsFn:
        """The model's eps, steered by the surrogate where there is one."""
        if self.surrogate is None or self.guidance is None:
            return plain
        if isinstance(self.surrogate, Denoiser):
            return conditioned(plain, self.surrogate.eps_fn(targets), **vars(self.guidance))
        return guided(
            plain,
            self.surrogate.grad_log_prob,
            targets,
            alphas_cumprod=self.denoiser.alphas_cumprod,
            **vars(self.guidance),
        )

    def _in_range(self, eps_fn: EpsFn) -> EpsFn:
        """`eps_fn` whose pred_x_0 lies where x_0 does."""
        return clip_x_0(eps_fn, self.denoiser.alphas_cumprod, self.denoiser.clip_range)

    def _timed(self, eps_fn: EpsFn) -> EpsFn:
        """`eps_fn`, whose guided steps, or all where none is, choose the number of CPU threads."""
        choice, steps = self.thread_choice, set(self.guided_timesteps or self.timesteps)
        if choice is None:
            return eps_fn
        return lambda x_t, t: choice.run(eps_fn, x_t, t) if t in steps else eps_fn(x_t, t)

    def prepare(self, num_images: int, shard_size: int, runtime: Runtime) -> int:
        """The batch size to sample `num_images` with; compiles the networks where that pays.

        Shards are cut into equal batches, so that nearly all have the compiled shape.
        """
        size = runtime.sampling_batch_size or self._useful_batch_size(shard_size)
        size = math.ceil(shard_size / math.ceil(shard_size / size))
        step = self._step(size)
        evaluations = num_images * (len(self.timesteps) + self.refine_steps)

        def seconds() -> float:
            return seconds_of(step, self.device) * evaluations / size

        pays = compiling_pays(runtime.compile, evaluations, seconds, self.device)
        if pays and has_compiler(self.device):
            # Compiled for their number of threads; with another one they run as they were.
            if self.thread_choice is not None and evaluations / size >= SETTLING_PAYS:
                self.thread_choice.settle(step)
            self.compile_for(step)
        return size

    def compile_for(self, step: Callable[[], object]) -> None:
        """Compiles the networks for the batches that `step` evaluates them on."""
        models = [m for m in (self.denoiser, self.surrogate) if isinstance(m, Denoiser)]
        compile_networks([model.unet for model in models], self.surrogate, step)
        self.is_compiled = True

    def _useful_batch_size(self, most: int) -> int:
        if self.device.type != "cuda":
            return CPU_BATCH_SIZE
        return largest_useful_batch(
            lambda n: n / seconds_of(self._step(n), self.device), self.denoiser.first_batch, most
        )

    def _step(self, n: int) -> Callable[[], Tensor]:
        """One evaluation of the networks on `n` images, at a guided timestep if there is one."""
        t = (self.guided_timesteps or self.timesteps or [self.refine_t])[0]
        x_t = torch.zeros(n, *self.denoiser.shape, device=self.device)
        targets = torch.zeros(n, dtype=torch.int64, device=self.device)
        eps_fn = self._in_range(self._guided(self.denoiser.eps_fn(targets), targets))

        @torch.no_grad()
        def step() -> Tensor:
            with self.trainer.precision_plugin.predict_step_context(), cast_once(self.device):
                return eps_fn(x_t, t)

        return step


class _ShardBatches:
    """Batches of image indices, none across two shards; rank r of w takes every w-th shard.

    All but the last shard are cut alike, whichever are already there.
    """

    def __init__(
        self,
        module: ImageSampler,
        shards: list[tuple[int, range]],
        shard_size: int,
        targets: np.ndarray,
        runtime: Runtime,
        images: UInt8[np.ndarray, "n h w c"] | None = None,
        first: int = 0,
    ) -> None:
        self.module, self.shards, self.shard_size = module, shards, shard_size
        self.targets, self.runtime, self.images, self.first = targets, runtime, images, first

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer = self.module.trainer
        mine = self.shards[trainer.global_rank :: trainer.world_size]
        count = sum(len(indices) for _, indices in mine)
        batch_size = self.module.prepare(count, self.shard_size, self.runtime)
        for shard, indices in mine:
            for start in range(0, len(indices), batch_size):
                part = indices[start : start + batch_size]
                batch = {
                    "indices": torch.tensor(part) + self.first,
                    "targets": torch.tensor(self.targets[part.start : part.stop]),
                    "shard": shard,
                    "ends_shard": part.stop == indices.stop,
                }
                if self.images is not None:
                    batch["images"] = torch.tensor(self.images[part.start : part.stop])
                yield batch


def sample_to_shards(
    sampler: ImageSampler,
    folder: Path,
    num_images: int,
    shard_size: int,
    precision: Precision,
    runtime: Runtime,
    targets: np.ndarray | None = None,
) -> None:
    """Writes `num_images` sampled images into `folder`, skipping shards that are whole.

    targets: int64 (num_images,), each image's label for the surrogate, or the number of its prompt;
    zeros when None.
    Raises OSError when the disk is too full for what is missing, and Preempted when asked to stop,
    after writing the shards that are whole.
    """
    channels, height, width = sampler.denoiser.image_shape
    shape = (height, width, channels)
    ranges = shard_ranges(num_images, shard_size)
    shards = missing_shards(folder, num_images, shard_size, shape)
    missing = [(shard, ranges[shard]) for shard in shards]
    left = sum(len(indices) for _, indices in missing)
    if left == 0:
        return
    if left < num_images:
        log.info("%d of %d images are there; making the rest", num_images - left, num_images)
    check_disk(folder, left * math.prod(shape))
    if targets is None:
        targets = np.zeros(num_images, np.int64)
    batches = _ShardBatches(sampler, missing, len(ranges[0]), targets, runtime)
    ranks.together(_predict, batches, folder, precision, num_images, num_images - left)


def _predict(
    batches: _ShardBatches, folder: Path, precision: Precision, num_images: int, first: int
) -> None:
    """What each process of `sample_to_shards` does; first: how many images are there already."""
    seconds = batches.runtime.progress_seconds
    progress = progress_callbacks(folder, num_images, seconds=seconds, unit="image", first=first)
    writing = [SpawnedProcess(folder), ShardWriter(folder), *progress]
    trainer = _trainer(batches.runtime, precision, writing)
    trainer.predict(batches.module, batches, return_predictions=False)


def sample_to_array(
    sampler: ImageSampler,
    num_images: int,
    shard_size: int,
    precision: Precision,
    runtime: Runtime,
    images: UInt8[np.ndarray, "n h w c"] | None = None,
    first: int = 0,
) -> UInt8[np.ndarray, "n h w c"]:
    """The images that `sample_to_shards` writes, in memory and on one device.

    images: to start from. first: the number of the first image, which decides its noise.
    """
    ranges = shard_ranges(num_images, shard_size)
    targets = np.zeros(num_images, np.int64)
    batches = _ShardBatches(
        sampler, list(enumerate(ranges)), len(ranges[0]), targets, runtime, images, first
    )
    trainer = _trainer(runtime, precision, progress_bar())
    parts: Any = trainer.predict(sampler, batches)
    return np.concatenate([part.numpy() for part in parts])


def _trainer(runtime: Runtime, precision: Precision, callbacks: Sequence[Any]) -> L.Trainer:
    return runtime.trainer(
        # The classifier's gradient is taken inside predict; inference mode would forbid it.
        inference_mode=False,
        precision=precision if precision.endswith("mixed") else "32-true",
        callbacks=[Threads(runtime), *callbacks],
        logger=False,
        enable_checkpointing=False,
        **progress_settings(),
    )
