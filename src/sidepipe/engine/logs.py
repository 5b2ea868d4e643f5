"""Logs of a run: libraries are quiet, each artifact keeps its own lines, times are readable.

Nothing heavy is imported here, so that a refusal or a status costs no more than it must.
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


def counting(total: int, unit: str, seconds: float) -> Callable[[int], None]:
    """A function that logs how many of `total` are done, at most once in `seconds`."""
    logged = time.monotonic()

    def report(done: int) -> None:
        nonlocal logged
        if time.monotonic() - logged >= seconds:
            logged = time.monotonic()
            log.info("%d of %d %s", done, total, unit)

    return report


@contextmanager
def stage_log(path: Path) -> Iterator[None]:
    """Appends the package's log lines to `path`, and the traceback if the block fails."""
    handler = logging.FileHandler(path)
    handler.setFormatter(FORMAT)
    # Where the disk is full the console has the line, and no traceback for each.
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
        # To the file alone: on the console the message is enough.
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
