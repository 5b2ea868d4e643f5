"""Groups of near duplicates within one set of images: images that a model repeats."""

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sidepipe.features.search import Metric, closer, nearest, pairs_within

DENSITY = 10  # near duplicates that make Carlini et al.'s cliques
BLOCK = 1024


def nearest_other(features: Float32[np.ndarray, "n d"], metric: Metric) -> Float32[np.ndarray, "n"]:
    """gamma of each of at least two images to the nearest other one of the set."""
    gamma, index = nearest(features, features, metric, k=2)
    # An exact copy may come before the image itself.
    own = index[:, 0] == np.arange(len(features))
    return np.where(own, gamma[:, 1], gamma[:, 0])


def near_duplicate_groups(
    features: Float32[np.ndarray, "n d"],
    metric: Metric,
    threshold: float,
    other_gamma: Float32[np.ndarray, "n"] | None = None,
) -> Int64[np.ndarray, "n"]:
    """The center of each image's group: the image itself where nothing is near it.

    In order of how densely others surround it (gamma to its tenth nearest, itself included), an
    image becomes a center unless an earlier center is within `threshold`; every image belongs to
    its nearest center. So no chain of small steps joins what is far apart. Memory does not grow
    with the number of pairs, which is quadratic where a model repeats itself.

    other_gamma: `nearest_other` of `features`; nearly all of the work if few images have a near
    duplicate.
    """
    center = np.arange(len(features))
    if len(features) == 1:
        return center
    if other_gamma is None:
        other_gamma = nearest_other(features, metric)
    near = np.flatnonzero(closer(other_gamma, threshold, metric))
    if len(near):
        around = nearest(features[near], features, metric, k=min(DENSITY, len(features)))[0]
        center[near] = near[_groups(features[near], around[:, -1], metric, threshold)]
    return center


def _groups(
    features: Float32[np.ndarray, "n d"],
    density: Float32[np.ndarray, "n"],
    metric: Metric,
    threshold: float,
) -> Int64[np.ndarray, "n"]:
    """The center of each image's group. density: gamma to its tenth nearest of all."""
    order = np.argsort(-density if metric == "cosine" else density, kind="stable")
    centers = order[:0]
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        if len(centers):
            gamma = nearest(features[block], features[centers], metric)[0][:, 0]
            block = block[~closer(gamma, threshold, metric)]
        if len(block):
            first = _first_come(features[block], metric, threshold)
            centers = np.concatenate([centers, block[first]])
    centers = np.sort(centers)
    return centers[nearest(features, features[centers], metric)[1][:, 0]]


def _first_come(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float
) -> Bool[np.ndarray, "n"]:
    """Which rows become centers where each does unless an earlier center is near."""
    i, j, _ = pairs_within(features, metric, threshold)
    ends = np.searchsorted(i, np.arange(len(features) + 1))
    free = np.ones(len(features), bool)
    for row in range(len(features)):
        if free[row]:
            free[j[ends[row] : ends[row + 1]]] = False
    return free


def new_groups(
    before: Float32[np.ndarray, "n d"],
    added: Float32[np.ndarray, "m d"],
    metric: Metric,
    threshold: float,
) -> int:
    """Groups of at least two images that `added` makes, and `before` did not have yet.

    A group that holds an image with a near duplicate in `before` is not new; one is, where an added
    image is the second of its kind.
    """
    center = near_duplicate_groups(np.concatenate([before, added]), metric, threshold)
    size = np.bincount(center, minlength=len(center))
    repeated = closer(nearest_other(before, metric), threshold, metric)
    known = center[: len(before)][repeated]
    grown = center[len(before) :]
    return len(np.setdiff1d(grown[size[grown] > 1], known))
