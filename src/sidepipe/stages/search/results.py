"""The training images that a set of prompts replays, by cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64, UInt8

from sidepipe.base.settings import build
from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.encoders import Encoder
from sidepipe.features.search import closer, nearest
from sidepipe.memorization.real import encode_rows
from sidepipe.stages.detect.replays import replayed


def judged(
    images: UInt8[np.ndarray, "p n h w c"],
    data: UInt8[np.ndarray, "m h w c"],
    train: Int64[np.ndarray, "t"],
    known: pd.DataFrame,
    *,
    costs: Int64[np.ndarray, "p"],
    encoder: Encoder,
    threshold: float,
    copied_share: float,
    near_duplicates: Mapping[str, Any],
    device: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """memorized prompts, different training images, recall, its curve; and copies and nearest.

    known: the table of detect. Recall is the share of the images that its memorized prompts replay;
    near duplicates among these count as one. curve: evaluations and recall after each prompt.
    """
    features = encode_rows(encoder, data, train, device)
    queries = encoder.encode(images.reshape(-1, *images.shape[2:]), device=device)
    gamma, index = nearest(queries, features, encoder.metric)
    gamma, rows = gamma.reshape(images.shape[:2]), train[index].reshape(images.shape[:2])
    copies = closer(gamma, threshold, encoder.metric)
    memorized = copies.sum(1) >= np.ceil(round(copied_share * copies.shape[1], 9))
    image = replayed(copies, gamma, rows, encoder.metric)
    memorized_images = known.loc[known["memorized"].eq(True), "nearest"].to_numpy(np.int64)
    group = _groups(data, np.union1d(image[memorized], memorized_images), near_duplicates, device)
    truth = {group[row] for row in memorized_images.tolist()}
    seen: set[int] = set()
    curve = []
    for row, found, spent in zip(image.tolist(), memorized, np.cumsum(costs), strict=True):
        seen |= {group[row]} if found else set()
        recall = len(seen & truth) / len(truth) if truth else None
        curve.append([int(spent), len(seen), recall])
    results = {
        "memorized": int(memorized.sum()),
        "different": len(seen),
        "known_images": len(truth),
        "recall": curve[-1][2],
        "curve": curve,
    }
    return results, {"copies": copies.sum(1), "nearest": image}


def _groups(
    data: UInt8[np.ndarray, "m h w c"],
    rows: Int64[np.ndarray, "r"],
    near_duplicates: Mapping[str, Any],
    device: str,
) -> dict[int, int]:
    """The center of each row's group of near duplicates."""
    if not len(rows):
        return {}
    encoder: Encoder = build(near_duplicates["features"])
    features = encode_rows(encoder, data, rows, device)
    centers = near_duplicate_groups(features, encoder.metric, near_duplicates["threshold"])
    return dict(zip(rows.tolist(), rows[centers].tolist(), strict=True))
