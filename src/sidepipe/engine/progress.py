"""Progress: a bar on a terminal, lines in a log file, `progress.json` for status."""

import logging
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from sidepipe.base import interruption
from sidepipe.base.files import write_json
from sidepipe.engine import ranks
from sidepipe.engine.artifacts import PROGRESS
from sidepipe.engine.logs import FORMAT, clock, quiet_libraries

log = logging.getLogger(__name__)


class LineProgress(Callback):
    """One log line every `seconds`, and `progress.json` in `folder`, for training and prediction.

    unit: "step" or "image"; total: their number; first: the number of images of earlier runs.
    Training takes its first step from the trainer.
    """

    def __init__(
        self, folder: Path, total: int, *, seconds: float, unit: str = "step", first: int = 0
    ) -> None:
        self.folder, self.total, self.unit, self.first = folder, total, unit, first
        self.seconds = seconds
        self.done = first
        self.started = self.logged = time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.first = self.done = trainer.global_step
        self.started = self.logged = time.monotonic()

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = self.logged = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self._report(trainer, trainer.global_step)

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        # An estimate: the other devices make nearly as many images.
        self._report(trainer, self.done + len(outputs) * trainer.world_size)

    def _report(self, trainer: Any, done: int) -> None:
        self.done = min(done, self.total)
        now = time.monotonic()
        if now - self.logged < self.seconds or not trainer.is_global_zero:
            return
        self.logged = now
        rate = (self.done - self.first) / (now - self.started)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        metrics = {k: round(float(v), 5) for k, v in trainer.callback_metrics.items()}
        content = {
            "step": self.done,
            "total": self.total,
            "unit": self.unit,
            "per_second": round(rate, 2),
            "seconds_left": round(left, 1),
            "metrics": metrics,
        }
        write_json(self.folder / PROGRESS, content)
        if not sys.stderr.isatty():
            shown = "".join(f" {k} {v:g}" for k, v in metrics.items())
            at = f"{self.unit} {self.done}/{self.total} ({100 * self.done // self.total} %)"
            log.info("%s, %.1f/s, %s left%s", at, rate, clock(left), shown)


class SpawnedProcess(Callback):
    """Configures a process that Lightning spawned: it is quiet and ends with its parent.

    The first one logs to stderr and the folder's log.txt. The other processes of an srun step are
    made quiet; the parent does not change.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if ranks.several():
            quiet_libraries()
        if multiprocessing.parent_process() is None:
            return
        # This includes SIGINT, which torch sends to a process whose parent died: shells start
        # background jobs with SIGINT ignored.
        interruption.only_set_the_flag()
        quiet_libraries()
        logger = logging.getLogger("sidepipe")
        if trainer.is_global_zero and not logger.handlers:
            logger.setLevel(logging.INFO)
            for handler in (logging.StreamHandler(), logging.FileHandler(self.folder / "log.txt")):
                handler.setFormatter(FORMAT)
                logger.addHandler(handler)


def progress_callbacks(folder: Path, total: int, **options: Any) -> list[Callback]:
    """The callbacks that show progress on a terminal, in a log and in `progress.json`."""
    return [LineProgress(folder, total, **options), *progress_bar()]


def progress_bar() -> list[Callback]:
    """A progress bar where standard error is a terminal."""
    return [TQDMProgressBar(leave=False)] if sys.stderr.isatty() else []


def progress_settings() -> dict[str, Any]:
    """Trainer arguments that go with `progress_callbacks`."""
    return {"enable_progress_bar": sys.stderr.isatty(), "enable_model_summary": False}
