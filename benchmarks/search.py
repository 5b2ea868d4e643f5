"""Seconds and memory of `nearest` and `covered`, beside a plain torch.cdist with min in blocks.

Targets for 50,000 queries, 25,000 vectors and 512 dimensions on two cores: under 60 seconds each,
under 2 GB beyond the features. Linux only: memory is read from /proc.
"""

import sidepipe  # noqa: F401, before torch, as it says how torch's threads wait

# isort: split
import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from sidepipe.features.search import covered, nearest

BANDS = [(0.4, 0.5), (0.5, 0.6), (0.6, math.inf)]  # SIDE's low, mid and high
CDIST_QUERIES = 1024
T = TypeVar("T")


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def features(num_queries: int, num_vectors: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Random unit vectors, and queries each of which is more or less like one of them."""
    rng = np.random.default_rng(0)
    database = unit(rng.standard_normal((num_vectors, d), np.float32))
    queries = unit(rng.standard_normal((num_queries, d), np.float32))
    likeness = rng.random((num_queries, 1), np.float32)
    queries += likeness * database[rng.integers(num_vectors, size=num_queries)]
    return unit(queries), database


def measured(name: str, run: Callable[[], T]) -> tuple[T, float]:
    """What `run` returns and its seconds, which are printed with the memory it took at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # makes the peak the present
    before, start = memory("VmRSS"), time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    print(f"{name:12} {seconds:6.1f} s {memory('VmHWM') - before:6.2f} GB beyond the features")
    return result, seconds


def memory(field: str) -> float:
    """GB of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e9


def closest_by_cdist(queries: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Of unit vectors, the one of the least distance has the largest cosine."""
    x = torch.from_numpy(database)
    parts = torch.from_numpy(queries).split(CDIST_QUERIES)
    return torch.cat([torch.cdist(part, x).min(1).indices for part in parts]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--database", type=int, default=25_000)
    parser.add_argument("--dimensions", type=int, default=512)
    sizes = parser.parse_args()
    queries, database = features(sizes.queries, sizes.database, sizes.dimensions)
    threads = torch.get_num_threads()
    print(f"{len(queries)} x {len(database)} x {sizes.dimensions} on {threads} threads")
    plain, plain_seconds = measured("torch.cdist", lambda: closest_by_cdist(queries, database))
    (_, index), seconds = measured("nearest", lambda: nearest(queries, database, "cosine"))
    print(f"{'':12} {seconds / plain_seconds:6.2f} of torch.cdist; ", end="")
    print(f"{(index[:, 0] == plain).mean():.4%} the same")
    mask, seconds = measured("covered", lambda: covered(queries, database, "cosine", BANDS))
    print(f"{'':12} {seconds / plain_seconds:6.2f} of torch.cdist; {mask.sum(1).tolist()} covered")


if __name__ == "__main__":
    main()
