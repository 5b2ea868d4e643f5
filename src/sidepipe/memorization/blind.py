"""Extraction without ground truth: the generated images that an attacker would choose.

A model generates a memorized image again and again, so candidates are groups of near duplicates
among its own images, the largest and tightest first (Carlini et al., USENIX 2023, section 4.2).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64
from sklearn.metrics import roc_auc_score, roc_curve

from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.pairs import exact_losses, gamma_of
from sidepipe.features.search import Metric, nearest

AT = (10, 20, 50, 100, 200, 500, 1000)
ROC_POINTS = 200


@dataclass(frozen=True)
class Candidates:
    """One candidate per group, the best first.

    index: its center among the images. size: starts with an image in the group. tightness: mean
    gamma of the other images to the center; of one image, gamma to the nearest other one.
    """

    index: Int64[np.ndarray, "c"]
    size: Int64[np.ndarray, "c"]
    tightness: Float32[np.ndarray, "c"]


def candidates(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float, per_start: int = 1
) -> Candidates:
    """Generated images ranked without truth: by group size, then tightness, then index.

    features: of at least two images. threshold: gamma of a near duplicate. per_start: images that
    follow each other and come from one start; their likeness is no repetition.
    """
    center = near_duplicate_groups(features, metric, threshold)
    index = np.unique(center)
    images = np.bincount(center, minlength=len(features))[index]
    pairs = np.unique(np.stack([center, np.arange(len(features)) // per_start]), axis=1)
    size = np.bincount(pairs[0], minlength=len(features))[index]
    others = np.flatnonzero(center != np.arange(len(features)))
    gamma = gamma_of(exact_losses(features, features, others, center[others], metric), metric)
    sums = np.bincount(center[others], gamma, minlength=len(features))[index]
    tightness = sums / np.maximum(images - 1, 1)
    alone = images == 1
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
