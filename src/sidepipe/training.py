"""What dpm and classifier share in training: endless batches, seeded steps, checkpoints, resuming.

Everything random of a step comes from (seed, step), so a run that was killed and goes on by the
same command sees the batches and the noise it would have seen.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from sidepipe.progress import progress_callbacks, progress_settings
from sidepipe.stage import Runtime
from sidepipe.tracking import MetricsCSV

log = logging.getLogger(__name__)

LAST = "last.ckpt"


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one training step, on `device`."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) & (2**63 - 1))


class EndlessBatches:
    """Batches of rows, one seeded permutation after another, from the trainer's step on.

    rows: arrays of equal length; a batch is a list of tensors. batch_size is global, each rank gets
    its slice. The order depends on (seed, epoch) alone.
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
        indices = self._indices(trainer.global_step * self.batch_size)
        while True:
            batch = torch.tensor([next(indices) for _ in range(self.batch_size)][mine])
            yield [r[batch] for r in self.rows]

    def _indices(self, start: int) -> Iterator[int]:
        count = len(self.rows[0])
        epoch, skip = divmod(start, count)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
            yield from order[skip:].tolist()
            epoch, skip = epoch + 1, 0


def validation_batches(rows: Sequence[np.ndarray], size: int = 256) -> DataLoader:
    """All rows in order, in batches of `size`."""
    tensors = [torch.from_numpy(np.ascontiguousarray(r)) for r in rows]
    batches = [[t[i : i + size] for t in tensors] for i in range(0, len(tensors[0]), size)]
    # Lightning would take a bare list of batches for a list of loaders.
    return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]


def require_finite(loss: Tensor, stage: str, step: int) -> None:
    """Raises RuntimeError naming the step unless the loss is a finite number."""
    if not torch.isfinite(loss):
        raise RuntimeError(
            f"{stage}: the loss is {loss.item()} at step {step}; remedy: lower {stage}.lr, raise "
            f"{stage}.lr_warmup_steps, or set {stage}.precision=32-true"
        )


def adamw_with_warmup(
    module: torch.nn.Module, lr: float, weight_decay: float, warmup_steps: int
) -> tuple[list[Any], list[Any]]:
    """AdamW whose learning rate rises linearly over the first steps, as Lightning wants it."""
    optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=weight_decay)
    warmup = max(1, warmup_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / warmup))
    return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(
    module: L.LightningModule,
    batches: EndlessBatches,
    validation: Any,
    folder: Path,
    runtime: Runtime,
    *,
    max_steps: int,
    precision: Any,
    gradient_clip_val: float | None,
    log_every_steps: int,
    checkpoint_every_steps: int,
    validate_every_steps: int,
    callbacks: Sequence[Callback] = (),
) -> dict[str, float]:
    """Trains until `max_steps`, going on from the folder's last checkpoint; returns last metrics.

    Afterwards `weights(folder)` has the result; the module itself may not (a run killed after its
    last step only has the file, and spawned processes keep theirs).
    """
    last = folder / LAST
    checkpoint = ModelCheckpoint(
        dirpath=folder,
        filename=last.stem,
        every_n_train_steps=checkpoint_every_steps,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    progress = progress_callbacks(folder, max_steps, seconds=runtime.progress_seconds)
    trainer = L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        precision=precision,
        gradient_clip_val=gradient_clip_val,
        logger=MetricsCSV(folder / "metrics.csv"),
        log_every_n_steps=log_every_steps,
        val_check_interval=min(validate_every_steps, max_steps),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, _SaveLastStep(last), checkpoint, *progress],
        default_root_dir=folder,
        use_distributed_sampler=False,
        **progress_settings(),
        **runtime.trainer_settings(),
    )
    if last.exists():
        log.info("going on from %s", last)
    resume = str(last) if last.exists() else None
    trainer.fit(module, batches, validation, ckpt_path=resume, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def weights(folder: Path, checkpoint: str = LAST) -> dict[str, Tensor]:
    """The module's state in a checkpoint of `fit`; with an EMA callback, the averaged weights."""
    return torch.load(folder / checkpoint, map_location="cpu", weights_only=True)["state_dict"]


class _SaveLastStep(Callback):
    """Writes the checkpoint of the last step, which a period of saving can miss."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.path)
