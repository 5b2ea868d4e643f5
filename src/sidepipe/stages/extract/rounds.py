"""An attack in rounds: each round's images join the synthetic ones, and all are labeled again.

A round is judged without the training images, by its new groups of near duplicates, since a model
repeats the images that it has memorized. Plain sampling is judged alike, by the last of the
synthetic images. Once a round finds fewer groups per network evaluation than plain sampling, the
remaining images are sampled plainly, since more rounds would only repeat the same images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from sidepipe.base.images import Images
from sidepipe.features.duplicates import new_groups
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.attack.attack import SPENT


class Seen:
    """All images of an attack so far: which are near duplicates, and which of them are reached.

    images: at first the synthetic ones. An image is reached if a round aimed at its cluster, or if
    a round made it. After another clustering, reached images may lie in several clusters, and no
    round aims at any of these again.
    """

    def __init__(self, near_duplicates: NearDuplicates, device: str, images: Images) -> None:
        self.encoder, self.threshold = near_duplicates.encoder, near_duplicates.threshold
        self.device = device
        self.images, self.num_synthetic = images, len(images)
        self.features = self.encoder.encode(images, device=device)
        self.reached = np.zeros(len(images), bool)

    def aim(self, labels: Int64[np.ndarray, "m"], targets: Int64[np.ndarray, "n"]) -> None:
        """Marks all images with a label among `targets` as reached."""
        self.reached |= np.isin(labels, targets)

    def reached_labels(self, labels: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "k"]:
        """The labels of reached images."""
        return np.unique(labels[self.reached & (labels >= 0)])

    def add(self, images: Images) -> int:
        """Adds reached images; returns the number of their new groups of near duplicates."""
        added = self.encoder.encode(images, device=self.device)
        found = new_groups(self.features, added, self.encoder.metric, self.threshold)
        self.images = np.concatenate([self.images, images])
        self.features = np.concatenate([self.features, added])
        self.reached = np.concatenate([self.reached, np.ones(len(images), bool)])
        return found

    def plain_rate(self, round_size: int, evaluations: int) -> float:
        """New groups of the last synthetic images, per thousand network evaluations.

        The last images are as many as a round has, at most half of all: they stand for a round of
        plain sampling after the others. evaluations: per image.
        """
        count = min(round_size, self.num_synthetic // 2)
        plain = self.features[: self.num_synthetic]
        found = new_groups(plain[:-count], plain[-count:], self.encoder.metric, self.threshold)
        return per_thousand(found, count * evaluations)


def per_thousand(count: int, evaluations: float) -> float:
    """The count per thousand network evaluations."""
    return 1000 * count / evaluations


def spans_of_rounds(num_images: int, rounds: int, shard_size: int) -> tuple[list[range], int]:
    """The images of each round, and a shard size at which each round ends with a whole shard.

    All rounds but the last have the same length, and shards have at most `shard_size` images.
    """
    each = math.ceil(num_images / rounds)
    shards = math.ceil(each / shard_size)
    size = math.ceil(each / shards)
    starts = range(0, num_images, shards * size)
    return [range(start, min(start + shards * size, num_images)) for start in starts], size


def summary_of(rows: Sequence[Mapping[str, Any]], plain_rate: float) -> dict[str, Any]:
    """The cost of all rounds together, as for one attack, and the rounds themselves."""
    total = {name: sum(row[name] for row in rows) for name in ("num_images", *SPENT)}
    gradients = total["network_evaluations"] - total["unet_forwards"]
    return {
        **total,
        "gradient_cost": gradients / max(1, total["surrogate_gradients"]),
        "num_targets": sum(row["targets"] for row in rows),
        "plain_new_groups_per_1000": plain_rate,
        "rounds": list(rows),
    }
