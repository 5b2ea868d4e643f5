"""Extraction without ground truth: which generated images an attacker would bet on.

What a model has memorised it makes again and again, so candidates are groups of near duplicates
among its own images, the largest and tightest first (Carlini et al., USENIX 2023, section 4.2).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64
from sklearn.metrics import roc_auc_score, roc_curve

from sidepipe.features.pairs import exact_losses, gamma_of
from sidepipe.features.search import Metric, closer, nearest, pairs_within

AT = (10, 20, 50, 100, 200, 500, 1000)
ROC_POINTS = 200
DENSITY = 10  # near duplicates that make Carlini et al.'s cliques
BLOCK = 1024


def near_duplicate_groups(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float
) -> Int64[np.ndarray, "n"]:
    """The centre of each image's group: the image itself where nothing is near it.

    In order of how densely others surround it (gamma to its tenth nearest, itself included), an
    image becomes a centre unless an earlier centre is within `threshold`; every image belongs to
    its nearest centre. So no chain of small steps joins what is far apart. Memory does not grow
    with the number of pairs, which is quadratic where a model repeats itself.
    """
    around = nearest(features, features, metric, k=min(DENSITY, len(features)))[0][:, -1]
    order = np.argsort(-around if metric == "cosine" else around, kind="stable")
    centres = order[:0]
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        if len(centres):
            gamma = nearest(features[block], features[centres], metric)[0][:, 0]
            block = block[~closer(gamma, threshold, metric)]
        if len(block):
            first = _first_come(features[block], metric, threshold)
            centres = np.concatenate([centres, block[first]])
    centres = np.sort(centres)
    return centres[nearest(features, features[centres], metric)[1][:, 0]]


def _first_come(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float
) -> Bool[np.ndarray, "n"]:
    """Which rows become centres where each does unless an earlier centre is near."""
    i, j, _ = pairs_within(features, metric, threshold)
    ends = np.searchsorted(i, np.arange(len(features) + 1))
    free = np.ones(len(features), bool)
    for row in range(len(features)):
        if free[row]:
            free[j[ends[row] : ends[row + 1]]] = False
    return free


@dataclass(frozen=True)
class Candidates:
    """One candidate a group, the best bet first.

    index: its centre among the images. size: images in the group. tightness: mean gamma of the
    others to the centre; of a group of one, gamma to the nearest other image.
    """

    index: Int64[np.ndarray, "c"]
    size: Int64[np.ndarray, "c"]
    tightness: Float32[np.ndarray, "c"]


def candidates(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float
) -> Candidates:
    """Generated images ranked without truth: by group size, then tightness, then index.

    features: of at least two images. threshold: gamma of a near duplicate.
    """
    centre = near_duplicate_groups(features, metric, threshold)
    index = np.unique(centre)
    size = np.bincount(centre, minlength=len(features))[index]
    others = np.flatnonzero(centre != np.arange(len(features)))
    gamma = gamma_of(exact_losses(features, features, others, centre[others], metric), metric)
    sums = np.bincount(centre[others], gamma, minlength=len(features))[index]
    tightness = sums / np.maximum(size - 1, 1)
    alone = size == 1
    if alone.any():
        # The closest is the image itself, or an exact copy of it that belongs to another group.
        values = nearest(features[index[alone]], features, metric, k=2)[0]
        tightness[alone] = values[:, 1]
    closest_first = -tightness if metric == "cosine" else tightness
    order = np.lexsort((index, closest_first, -size))
    return Candidates(index[order], size[order], tightness[order].astype(np.float32))


def ranking_quality(hit: Bool[np.ndarray, "c"]) -> dict[str, Any]:
    """How well a ranking finds hits: precision at k, area under the ROC and the ROC itself.

    hit: whether each candidate, best first, is a hit. The area is None where all or none are.
    """
    precision = {str(k): float(hit[:k].mean()) for k in AT if k <= len(hit)}
    quality: dict[str, Any] = {"base_rate": float(hit.mean()), "precision_at": precision}
    if hit.all() or not hit.any():
        return {**quality, "auc": None, "roc": None}
    score = -np.arange(len(hit))
    false, true, _ = roc_curve(hit, score)
    some = np.unique(np.linspace(0, len(false) - 1, ROC_POINTS).round().astype(int))
    roc = {"false_positive_rate": false[some].tolist(), "true_positive_rate": true[some].tolist()}
    return {**quality, "auc": float(roc_auc_score(hit, score)), "roc": roc}
