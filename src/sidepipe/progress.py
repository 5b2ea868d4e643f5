"""Progress and logs: a bar on a terminal, lines in a log file, `progress.json` for status."""

import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from sidepipe import interruption, ranks
from sidepipe.artifacts import PROGRESS, write_json
from sidepipe.interruption import Preempted

log = logging.getLogger(__name__)

_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


def quiet_libraries() -> None:
    """Silences what libraries say about themselves and nobody running an experiment can use."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ignored = (
        ".*does not have many workers.*",  # our loaders slice arrays in memory
        ".*`IterableDataset` has `__len__` defined.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # resuming is what we do
        ".*Couldn't infer the batch indices.*",  # ours are in the batch
        ".*srun` command is available.*",
        ".*isinstance.treespec, LeafSpec.* is deprecated.*",
        ".*Found .* module.s. in eval mode at the start of training.*",
    )
    for message in ignored:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def stage_log(path: Path) -> Iterator[None]:
    """Appends the package's log lines to `path`, and the traceback if the block fails."""
    handler = logging.FileHandler(path)
    handler.setFormatter(_FORMAT)
    # Where the disk is full the console has the line, and no traceback for each.
    handler.handleError = lambda record: None
    logger = logging.getLogger("sidepipe")
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        yield
    except Preempted:
        log.info("asked to stop")
        raise
    except BaseException as error:
        # To the file alone: on the console the message is enough.
        at, exc_info = (__file__, 0), sys.exc_info()
        handler.emit(logger.makeRecord(__name__, logging.ERROR, *at, "failed", (), exc_info))
        error.add_note(f"the traceback is in {path}")
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


class LineProgress(Callback):
    """One log line every `seconds`, and `progress.json` in `folder`, for training and prediction.

    unit: what is counted, "step" or "image"; total: how many in all; first: how many images an
    earlier run left. In training the trainer knows where it goes on.
    """

    def __init__(
        self, folder: Path, total: int, *, seconds: float, unit: str = "step", first: int = 0
    ) -> None:
        self.folder, self.total, self.unit, self.first = folder, total, unit, first
        self.seconds = seconds
        self.done = first
        self.started = self.said = time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.first = self.done = trainer.global_step
        self.started = self.said = time.monotonic()

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = self.said = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self._report(trainer, trainer.global_step)

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        # The other devices' images are not seen from here; they are as many, nearly.
        self._report(trainer, self.done + len(outputs) * trainer.world_size)

    def _report(self, trainer: Any, done: int) -> None:
        self.done = min(done, self.total)
        now = time.monotonic()
        if now - self.said < self.seconds or not trainer.is_global_zero:
            return
        self.said = now
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
            said = "".join(f" {k} {v:g}" for k, v in metrics.items())
            log.info(
                "%s %d/%d (%d %%), %.1f/s, %s left%s",
                *(self.unit, self.done, self.total, 100 * self.done // self.total, rate),
                *(clock(left), said),
            )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 0:05:00."""
    minutes, seconds = divmod(int(min(seconds, 360000)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class SpawnedProcess(Callback):
    """Makes a process that Lightning spawned like its parent: quiet, the log lines of the first on
    stderr and in the folder's log.txt; and it dies with its parent.

    The other processes of an srun step are made quiet; in the parent itself this does nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if ranks.several():
            quiet_libraries()
        if multiprocessing.parent_process() is None:
            return
        # SIGINT too, which torch sends to a process whose parent died: shells start background
        # jobs with SIGINT ignored.
        interruption.only_set_the_flag()
        quiet_libraries()
        logger = logging.getLogger("sidepipe")
        if trainer.is_global_zero and not logger.handlers:
            logger.setLevel(logging.INFO)
            for handler in (logging.StreamHandler(), logging.FileHandler(self.folder / "log.txt")):
                handler.setFormatter(_FORMAT)
                logger.addHandler(handler)


def progress_callbacks(folder: Path, total: int, **options: Any) -> list[Callback]:
    """The callbacks that show progress wherever the process writes to."""
    bar: list[Callback] = [TQDMProgressBar(leave=False)] if sys.stderr.isatty() else []
    return [LineProgress(folder, total, **options), *bar]


def progress_settings() -> dict[str, Any]:
    """Trainer arguments that go with `progress_callbacks`."""
    return {"enable_progress_bar": sys.stderr.isatty(), "enable_model_summary": False}
