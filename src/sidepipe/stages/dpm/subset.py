"""The split into training and held-out images; every stage uses this one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def split(
    partitions: np.ndarray,
    num_train_images: int | None,
    train_partitions: Sequence[str] | None,
    seed: int,
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "m"]]:
    """Indices of the training subset and of everything else, the best held-out images first.

    The subset is a prefix of one seeded permutation of the pool, so 1,000 images are within 5,000.
    The held-out images are first the rest of the pool in the same order, then the images outside
    the pool.

    partitions: each image's partition. num_train_images: None for the whole pool. train_partitions:
    the partitions of the pool, None for all. Raises ValueError where the pool is smaller than
    num_train_images, or a partition has no images. Without any images both are empty.
    """
    if len(partitions) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    present = sorted(set(partitions.tolist()))
    for name in train_partitions or []:
        if name not in present:
            raise ValueError(
                f"dpm.train_partitions names {name!r}, but the data's partitions are {present}"
            )
    in_pool = np.isin(partitions, train_partitions or present)
    rng = np.random.default_rng(seed)
    pool = rng.permutation(np.flatnonzero(in_pool))
    outside = rng.permutation(np.flatnonzero(~in_pool))
    count = len(pool) if num_train_images is None else num_train_images
    if not 1 <= count <= len(pool):
        raise ValueError(
            f"dpm.num_train_images must be in [1, {len(pool)}], the images of the pool, got "
            f"{count}; remedy: lower it, or bring more images"
        )
    return pool[:count], np.concatenate([pool[count:], outside])
