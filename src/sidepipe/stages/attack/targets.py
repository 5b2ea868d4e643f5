"""The target label of each image of an attack."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from sidepipe.diffusion.noise import generator


def allowed_targets(
    targets: str,
    target_fraction: float,
    cohesion: Float64[np.ndarray, "k"],
    excluded: Sequence[int] | Int64[np.ndarray, "e"] = (),
) -> Int64[np.ndarray, "a"]:
    """Labels that may be drawn: for "top_cohesion" the most cohesive fraction of all, else all.

    excluded: labels that are never drawn.
    """
    order = np.argsort(-cohesion, kind="stable")
    order = order[~np.isin(order, excluded)]
    if targets == "top_cohesion":
        # Rounded first: 0.07 * 100 is a little more than 7.
        order = order[: max(1, math.ceil(round(target_fraction * len(cohesion), 9)))]
    return np.sort(order)


def target_weights(
    cohesion: Float64[np.ndarray, "k"], sizes: Int64[np.ndarray, "k"]
) -> Float64[np.ndarray, "k"]:
    """Probability of each label, proportional to (K' - rank) / K' * size.

    rank: 0 for the most cohesive label, K' - 1 for the least. size: images in its cluster, an
    estimate of how often the model makes such images.
    """
    rank = np.empty(len(cohesion))
    rank[np.argsort(-cohesion, kind="stable")] = np.arange(len(cohesion))
    weights = (len(cohesion) - rank) / len(cohesion) * sizes
    return weights / weights.sum()


def draw_targets(
    allowed: Int64[np.ndarray, "k"], num_images: int, seed: int
) -> Int64[np.ndarray, "n"]:
    """Each image's label, uniform over `allowed`; label i depends on seed and i alone."""
    chosen = [generator(seed, "targets", i).integers(len(allowed)) for i in range(num_images)]
    return allowed[np.array(chosen, np.int64)]


def draw_weighted_targets(
    weights: Float64[np.ndarray, "k"], num_images: int, seed: int
) -> Int64[np.ndarray, "n"]:
    """As `draw_targets`, with probability weights[c] for label c."""
    edges = np.cumsum(weights)
    drawn = np.array([generator(seed, "targets", i).random() for i in range(num_images)])
    # The sum of the weights may be slightly below 1.
    return np.searchsorted(edges[:-1], drawn, side="right").astype(np.int64)
