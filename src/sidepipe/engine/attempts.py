"""The seconds of work on an artifact, summed over all attempts, with those that were killed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sidepipe.base.files import read_json, write_json
from sidepipe.engine.artifacts import SECONDS

# A killed attempt loses at most these.
SAVE_SECONDS = 10.0


@contextmanager
def working_seconds(folder: Path) -> Iterator[Callable[[], float]]:
    """A clock that starts at the seconds of earlier attempts at the artifact in `folder`."""
    earlier, started, stop = read_seconds(folder), time.monotonic(), threading.Event()

    def seconds() -> float:
        return earlier + time.monotonic() - started

    def save() -> None:
        while not stop.wait(SAVE_SECONDS):
            save_seconds(folder, seconds())

    thread = threading.Thread(target=save, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()
        save_seconds(folder, seconds())


def read_seconds(folder: Path) -> float:
    """The seconds of earlier attempts, 0 without any."""
    return float((read_json(folder / SECONDS) or {}).get("seconds", 0))


def save_seconds(folder: Path, seconds: float) -> None:
    """Writes the seconds so far; ignores errors, such as a full disk."""
    with suppress(OSError):
        write_json(folder / SECONDS, {"seconds": round(seconds, 2)})
