"""Logs of a run: quiet libraries, one log per artifact, readable times.

This module imports nothing slow, as refusals and status use it.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sidepipe.base.interruption import Preempted

log = logging.getLogger(__name__)

FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


def quiet_libraries() -> None:
    """Silences messages of libraries that do not concern the user of an experiment."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ignored = (
        ".*does not have many workers.*",  # our loaders slice arrays in memory
        ".*`IterableDataset` has `__len__` defined.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # expected when a run resumes
        ".*Couldn't infer the batch indices.*",  # ours are in the batch
        ".*srun` command is available.*",
        ".*isinstance.treespec, LeafSpec.* is deprecated.*",
        ".*Found .* module.s. in eval mode at the start of training.*",
    )
    for message in ignored:
        warnings.filterwarnings("ignore", message=message)


def counting(total: int, unit: str, seconds: float) -> Callable[[int], None]:
    """A function that logs how many of `total` are done, at most once every `seconds`.

    The rate is that since its first call, because work that an earlier run has done took no time.
    """
    logged = time.monotonic()
    first: tuple[float, int] | None = None

    def report(done: int) -> None:
        nonlocal logged, first
        now = time.monotonic()
        first = first or (now, done)
        if now - logged < seconds:
            return
        logged, text = now, f"{done:,} of {total:,} {unit}"
        if done > first[1]:
            rate = (done - first[1]) / (now - first[0])
            text += f", {rate:,.1f} per second, {clock((total - done) / rate)} left"
        log.info("%s", text)

    return report


@contextmanager
def stage_log(path: Path) -> Iterator[None]:
    """Appends the package's log lines to `path`, and the traceback if the block fails."""
    handler = logging.FileHandler(path)
    handler.setFormatter(FORMAT)
    # On a full disk the console still shows the line, without a traceback for each.
    handler.handleError = lambda record: None
    logger = logging.getLogger("sidepipe")
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        yield
    except Preempted:
        log.info("stopped by a signal")
        raise
    except BaseException as error:
        # Only to the file: the console shows the message alone.
        at, exc_info = (__file__, 0), sys.exc_info()
        handler.emit(logger.makeRecord(__name__, logging.ERROR, *at, "failed", (), exc_info))
        error.add_note(f"the traceback is in {path}")
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 0:05:00."""
    minutes, seconds = divmod(int(min(seconds, 360000)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
