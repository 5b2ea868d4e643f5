"""The split into training and held-out images; every stage uses this one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

Rows = Int64[np.ndarray, "_"]


def split(
    partitions: np.ndarray,
    num_train_images: int | None,
    train_partitions: Sequence[str] | None,
    seed: int,
    num_apart: int = 0,
) -> tuple[Rows, Rows]:
    """Indices of the training subset and of everything else, the best held-out images first.

    The subset is a prefix of one seeded permutation of the pool, so 1,000 images are within 5,000.
    The held-out images are first the rest of the pool in the same order, then the images outside
    the pool. The last `num_apart` images of this order are in neither: an autoencoder has them.

    partitions: each image's partition. num_train_images: None for the whole pool. train_partitions:
    the partitions of the pool, None for all. Raises ValueError where the pool is smaller than
    num_train_images, or a partition has no images. Without any images both are empty.
    """
    if len(partitions) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    pool, outside = _order(partitions, train_partitions, seed)
    left = len(pool) - max(0, num_apart - len(outside))
    count = left if num_train_images is None else num_train_images
    if not 1 <= count <= left:
        less, lower = "", "lower it"
        if num_apart > 0:
            less = f" less those of the autoencoder's {num_apart} that are in it"
            lower = "lower it or autoencoder.num_images"
        raise ValueError(
            f"dpm.num_train_images must be in [1, {left}], the images of the pool{less}, got "
            f"{count}; remedy: {lower}, or bring more images"
        )
    others = np.concatenate([pool[count:], outside])
    return pool[:count], others[: len(others) - num_apart]


def apart(
    partitions: np.ndarray, train_partitions: Sequence[str] | None, seed: int, count: int
) -> Rows:
    """Indices of the last `count` images of the order of `split`, which it leaves out.

    They are the worst held-out images, and the same for every size of the training subset. Raises
    ValueError unless some images are left for a model.
    """
    order = np.concatenate(_order(partitions, train_partitions, seed))
    if count >= len(order):
        raise ValueError(
            f"autoencoder.num_images must be below {len(order)}, the images of the data, got "
            f"{count}; remedy: lower it, bring more images, or autoencoder=pretrained"
        )
    return order[len(order) - count :]


def _order(
    partitions: np.ndarray, train_partitions: Sequence[str] | None, seed: int
) -> tuple[Rows, Rows]:
    """The pool in the order in which training images are taken, and all other images."""
    present = sorted(set(partitions.tolist()))
    for name in train_partitions or []:
        if name not in present:
            raise ValueError(
                f"dpm.train_partitions names {name!r}, but the data's partitions are {present}"
            )
    in_pool = np.isin(partitions, train_partitions or present)
    rng = np.random.default_rng(seed)
    pool = rng.permutation(np.flatnonzero(in_pool))
    return pool, rng.permutation(np.flatnonzero(~in_pool))
