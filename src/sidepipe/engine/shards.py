"""Images as numbered files, each written whole or not at all.

`shards/000000.npy` holds images 0 to shard_size - 1, and so on. The same command resumes a killed
run with the shards that it left (`sidepipe.engine.resuming`).
"""

import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from sidepipe.base.files import existing, gigabytes, whole_file
from sidepipe.base.images import Images
from sidepipe.engine.resuming import keep


def shard_path(folder: Path, shard: int) -> Path:
    """The file of shard number `shard` of the artifact in `folder`."""
    return folder / "shards" / f"{shard:06d}.npy"


def shard_ranges(num_images: int, shard_size: int) -> list[range]:
    """Image indices of each shard."""
    starts = range(0, num_images, shard_size)
    return [range(start, min(start + shard_size, num_images)) for start in starts]


def missing_shards(
    folder: Path,
    num_images: int,
    shard_size: int,
    image_shape: Sequence[int | None],
    dtype: type[np.generic] = np.uint8,
) -> list[int]:
    """Numbers of the missing shards.

    image_shape: (height, width, channels), None for any. A truncated shard, or one of other images,
    is removed with a warning.
    """
    return [
        shard
        for shard, indices in enumerate(shard_ranges(num_images, shard_size))
        if not keep(shard_path(folder, shard), (len(indices), *image_shape), dtype)
    ]


def write_shard(folder: Path, shard: int, images: Images) -> None:
    """Writes one shard under a temporary name, flushes it to disk, then renames."""
    path = shard_path(folder, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, images)


def write_steps(folder: Path, shard: int, steps: Int64[np.ndarray, "n"]) -> None:
    """Writes the number of refinement steps that each start of a shard took."""
    path = folder / "steps" / f"{shard:06d}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, steps)


def load_steps(folder: Path) -> Int64[np.ndarray, "n"]:
    """The number of refinement steps that each start took, in order."""
    return np.concatenate([np.load(path) for path in sorted((folder / "steps").glob("*.npy"))])


class BackgroundShards:
    """Writes shards one after another in a thread.

    It holds at most WAITING shards in memory; `write` waits for room. A later `write`, or `close`,
    raises an error of the thread.
    """

    WAITING = 2

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.thread = ThreadPoolExecutor(1)
        self.pending: deque[Future[None]] = deque()

    def write(self, shard: int, parts: Sequence[Callable[[], np.ndarray]]) -> None:
        """Queues one shard. parts: functions that return its images; the thread calls them."""
        while self.pending and (len(self.pending) >= self.WAITING or self.pending[0].done()):
            self.pending.popleft().result()
        self.pending.append(self.thread.submit(self._write, shard, parts))

    def _write(self, shard: int, parts: Sequence[Callable[[], np.ndarray]]) -> None:
        write_shard(self.folder, shard, np.concatenate([part() for part in parts]))

    def close(self) -> None:
        """Waits until everything is written; raises the first error."""
        self.thread.shutdown(wait=True)
        while self.pending:
            self.pending.popleft().result()


def load_shards(folder: Path) -> Images:
    """All images of a finished artifact, in index order."""
    paths = sorted((folder / "shards").glob("*.npy"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no shards; remedy: delete the folder and run the same command again"
        )
    return np.concatenate([np.load(path, mmap_mode="r") for path in paths])


def load_first(folder: Path, count: int) -> Images:
    """The first `count` images, or all where there are fewer."""
    parts: list[np.ndarray] = []
    for path in sorted((folder / "shards").glob("*.npy")):
        parts.append(np.load(path, mmap_mode="r")[: count - sum(map(len, parts))])
        if sum(map(len, parts)) == count:
            break
    return np.concatenate(parts)


def check_disk(folder: Path, num_bytes: float, what: str = "the images") -> None:
    """Raises OSError unless the disk of `folder` has room for `num_bytes` and a tenth more."""
    there = existing(folder)
    free = shutil.disk_usage(there).free
    if num_bytes * 1.1 > free:
        raise OSError(
            f"the disk of {there} must have {gigabytes(num_bytes * 1.1)} free for {what}, "
            f"got {gigabytes(free)}; remedy: free space, set runtime.outputs, or lower "
            "num_images"
        )
