"""The training loop of the trained stages: batches, noise, seeded steps, checkpoints, resuming.

All random numbers of a step come from (seed, step), so a run that resumes gets the same batches and
the same noise as one that was not killed.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from sidepipe.base.images import to_model
from sidepipe.diffusion.schedule import add_noise
from sidepipe.engine import ranks
from sidepipe.engine.checkpoints import CheckpointByRename, SaveLast, require_whole
from sidepipe.engine.progress import SpawnedProcess, progress_callbacks, progress_settings
from sidepipe.engine.stage import Job
from sidepipe.engine.thread_callback import Threads
from sidepipe.engine.trained import Training
from sidepipe.tracking import MetricsCSV

log = logging.getLogger(__name__)

LAST = "last.ckpt"


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one training step, on `device`."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) & (2**63 - 1))


@dataclass(frozen=True)
class Noised:
    """A batch at random noise levels: x_t of x_0 and eps at t (DDPM, eq. 4)."""

    x_0: Float[Tensor, "n c h w"]
    eps: Float[Tensor, "n c h w"]
    t: Int64[Tensor, "n"]
    x_t: Float[Tensor, "n c h w"]


def as_x_0(
    images: UInt8[Tensor, "n h w c"] | Float[Tensor, "n c h w"],
) -> Float[Tensor, "n c h w"]:
    """The x_0 of images, or x_0 itself as it is."""
    return to_model(images) if images.dtype == torch.uint8 else images


def noised(
    images: UInt8[Tensor, "n h w c"] | Float[Tensor, "n c h w"],
    alphas_cumprod: Float[Tensor, "T"],
    generator: torch.Generator,
    share: tuple[int, int] = (0, 1),
    random_flip: bool = False,
) -> Noised:
    """Images, or x_0 itself, noised at uniform t; mirrored at random if `random_flip`.

    share: (rank, number of devices). The noise is drawn for the global batch and then sliced, so
    that it does not depend on the number of devices.
    """
    x_0, (rank, world) = as_x_0(images), share
    count, mine = len(x_0) * world, slice(rank * len(x_0), (rank + 1) * len(x_0))
    options: dict[str, Any] = {"generator": generator, "device": x_0.device}
    t = torch.randint(0, len(alphas_cumprod), (count,), **options)[mine]
    eps = torch.randn((count, *x_0.shape[1:]), **options)[mine]
    if random_flip:
        flip = torch.rand(count, **options)[mine] < 0.5
        x_0 = torch.where(flip[:, None, None, None], x_0.flip(3), x_0)
    return Noised(x_0, eps, t, add_noise(x_0, eps, t, alphas_cumprod))


class EndlessBatches:
    """Batches of rows in one seeded permutation after another, from the trainer's step on.

    rows: arrays of equal length; a batch is a list of tensors. batch_size: global; each rank gets
    its slice. The order depends on (seed, epoch) alone. A GPU with enough free memory holds the
    rows and their order, so that no step waits for a copy.
    """

    def __init__(
        self, module: L.LightningModule, rows: Sequence[np.ndarray], batch_size: int, seed: int
    ) -> None:
        self.module, self.rows = module, [torch.from_numpy(np.ascontiguousarray(r)) for r in rows]
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[list[Tensor]]:
        trainer = self.module.trainer
        size = self.batch_size // trainer.world_size
        mine = slice(trainer.global_rank * size, (trainer.global_rank + 1) * size)
        rows = _where_there_is_room(self.rows, self.module.device)
        orders = self._orders(trainer.global_step * self.batch_size)
        left = next(orders).to(rows[0].device)
        while True:
            while len(left) < self.batch_size:
                left = torch.cat([left, next(orders).to(left.device)])
            batch, left = left[: self.batch_size][mine], left[self.batch_size :]
            yield [r[batch] for r in rows]

    def _orders(self, start: int) -> Iterator[Int64[Tensor, "k"]]:
        """The rest of the epoch that contains image number `start`, then whole epochs."""
        count = len(self.rows[0])
        epoch, skip = divmod(start, count)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
            yield torch.from_numpy(order[skip:])
            epoch, skip = epoch + 1, 0


def _where_there_is_room(rows: list[Tensor], device: torch.device) -> list[Tensor]:
    """The rows on `device` if they need at most half of its free memory, else unchanged."""
    needed = sum(r.nbytes for r in rows)
    if device.type != "cuda" or 2 * needed > torch.cuda.mem_get_info(device)[0]:
        return rows
    return [r.to(device) for r in rows]


def validation_batches(rows: Sequence[np.ndarray], size: int = 256) -> DataLoader:
    """All rows in order, in batches of `size`."""
    tensors = [torch.from_numpy(np.ascontiguousarray(r)) for r in rows]
    batches = [[t[i : i + size] for t in tensors] for i in range(0, len(tensors[0]), size)]
    # Lightning treats a plain list of batches as a list of loaders.
    return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]


def require_finite(loss: Tensor, stage: str, step: int) -> None:
    """Raises RuntimeError, which names the step, unless the loss is finite."""
    if not torch.isfinite(loss):
        raise RuntimeError(
            f"{stage}: the loss is {loss.item()} at step {step}; remedy: lower {stage}.lr, raise "
            f"{stage}.lr_warmup_steps, or set {stage}.precision=32-true"
        )


def adamw_with_warmup(
    module: torch.nn.Module, lr: float, weight_decay: float, warmup_steps: int
) -> tuple[list[Any], list[Any]]:
    """AdamW with a linear warm-up of the learning rate, in the form that Lightning takes."""
    optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=weight_decay, fused=True)
    # Fused AdamW can unscale 16-bit gradients itself, and then Lightning refuses to clip them.
    optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
    warmup = max(1, warmup_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / warmup))
    return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(
    stage: Training,
    module: L.LightningModule,
    rows: Sequence[np.ndarray],
    validation: Any,
    job: Job,
    *,
    validate_every_steps: int,
    callbacks: Sequence[Callback] = (),
) -> dict[str, float]:
    """Trains until `stage.max_steps`, from the job's last checkpoint if any; the last metrics.

    rows: arrays of equal length, whose batches the module's steps get. The result is
    `weights(job.folder)`, not the module, which a run that was killed after its last step, or that
    spawns processes, does not update. Raises Preempted after a signal, with a checkpoint.
    """
    last, metrics = job.folder / LAST, MetricsCSV(job.folder / "metrics.csv")
    metrics.drop_half_line()
    if last.exists():
        require_whole(last)
        log.info("resuming from %s", last)
    resume, earlier = str(last) if last.exists() else None, len(metrics.rows())
    every = min(validate_every_steps, stage.max_steps)
    ranks.together(_fit, stage, module, rows, validation, job, every, callbacks, resume)
    if job.runtime.spawns:
        metrics.forward(metrics.rows()[earlier:])
    return {name: value for _, name, value in metrics.rows()}


def _fit(
    stage: Training,
    module: L.LightningModule,
    rows: Sequence[np.ndarray],
    validation: Any,
    job: Job,
    validate_every_steps: int,
    callbacks: Sequence[Callback],
    resume: str | None,
) -> None:
    """The part of `fit` that each process runs. resume: the checkpoint to start from."""
    folder, runtime = job.folder, job.runtime
    trainer = runtime.trainer(
        max_steps=stage.max_steps,
        max_epochs=-1,
        precision=stage.precision,
        gradient_clip_val=stage.gradient_clip_val,
        logger=MetricsCSV(folder / "metrics.csv"),
        log_every_n_steps=stage.log_every_steps,
        val_check_interval=validate_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[
            SpawnedProcess(folder),
            Threads(runtime),
            *callbacks,
            _SeedTorch(stage.seed),
            SaveLast(folder / LAST, stage.checkpoint_every_steps, validate_every_steps),
            *progress_callbacks(folder, stage.max_steps, seconds=runtime.progress_seconds),
        ],
        plugins=[CheckpointByRename()],
        default_root_dir=folder,
        **progress_settings(),
    )
    batches = EndlessBatches(module, rows, stage.batch_size, stage.seed)
    trainer.fit(module, batches, validation, ckpt_path=resume, weights_only=True)


def weights(folder: Path, checkpoint: str = LAST) -> dict[str, Tensor]:
    """The module's state in a checkpoint of `fit`; with an EMA callback, the averaged weights."""
    require_whole(folder / checkpoint)
    return torch.load(folder / checkpoint, map_location="cpu", weights_only=True)["state_dict"]


class _SeedTorch(Callback):
    """Seeds torch's default generator, which dropout uses, by (seed, step, rank)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        # 1 + rank: SeedSequence ignores a trailing 0, and `step_generator` has (seed, step).
        entropy = [self.seed, trainer.global_step, 1 + trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
