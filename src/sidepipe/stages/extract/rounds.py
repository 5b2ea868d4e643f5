"""An attack in rounds: every round's images join the synthetic ones, and the next learns from all.

A round is judged blindly, by the groups of near duplicates that it makes and that were not there
before: what a model makes again is what it has memorized. Plain sampling is judged alike, by the
last of the synthetic images. Where a round finds less for its network evaluations, what is left is
sampled plainly: going on would only repeat what is known.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from sidepipe.features.duplicates import new_groups
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.attack.attack import SPENT


class Seen:
    """All images of an attack so far: which are near duplicates, and which of them are reached.

    images: the synthetic ones, to begin with. The images of a cluster that was aimed at are
    reached, and so are those that aiming made: once clustered again, they may lie in several
    clusters, and none of these is aimed at again.
    """

    def __init__(
        self, near_duplicates: NearDuplicates, device: str, images: UInt8[np.ndarray, "m h w c"]
    ) -> None:
        self.encoder, self.threshold = near_duplicates.encoder, near_duplicates.threshold
        self.device = device
        self.images, self.num_synthetic = images, len(images)
        self.features = self.encoder.encode(images, device=device)
        self.reached = np.zeros(len(images), bool)

    def aim(self, labels: Int64[np.ndarray, "m"], targets: Int64[np.ndarray, "n"]) -> None:
        """Makes all images with a label among `targets` reached ones."""
        self.reached |= np.isin(labels, targets)

    def reached_labels(self, labels: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "k"]:
        """Labels that some reached image has."""
        return np.unique(labels[self.reached & (labels >= 0)])

    def add(self, images: UInt8[np.ndarray, "n h w c"]) -> int:
        """How many new groups of near duplicates they make; from then on seen, and reached."""
        added = self.encoder.encode(images, device=self.device)
        found = new_groups(self.features, added, self.encoder.metric, self.threshold)
        self.images = np.concatenate([self.images, images])
        self.features = np.concatenate([self.features, added])
        self.reached = np.concatenate([self.reached, np.ones(len(images), bool)])
        return found

    def plain_rate(self, round_size: int, evaluations: int) -> float:
        """New groups for a thousand evaluations that the last synthetic images made.

        Of as many as a round has, or half of them all: a round of plain sampling from the rest.
        evaluations: for an image.
        """
        count = min(round_size, self.num_synthetic // 2)
        plain = self.features[: self.num_synthetic]
        found = new_groups(plain[:-count], plain[-count:], self.encoder.metric, self.threshold)
        return per_thousand(found, count * evaluations)


def per_thousand(count: int, evaluations: float) -> float:
    """So many for a thousand network evaluations."""
    return 1000 * count / evaluations


def spans_of_rounds(num_images: int, rounds: int, shard_size: int) -> tuple[list[range], int]:
    """The images of each round, and the size of a shard with which every round ends a shard.

    Rounds are as long as each other but for the last, and shards no larger than asked for.
    """
    each = math.ceil(num_images / rounds)
    shards = math.ceil(each / shard_size)
    size = math.ceil(each / shards)
    starts = range(0, num_images, shards * size)
    return [range(start, min(start + shards * size, num_images)) for start in starts], size


def summary_of(rows: Sequence[Mapping[str, Any]], plain_rate: float) -> dict[str, Any]:
    """What all rounds cost together, as of one attack, and the rounds themselves."""
    total = {name: sum(row[name] for row in rows) for name in ("num_images", *SPENT)}
    gradients = total["network_evaluations"] - total["unet_forwards"]
    return {
        **total,
        "gradient_cost": gradients / max(1, total["surrogate_gradients"]),
        "num_targets": sum(row["targets"] for row in rows),
        "plain_new_groups_per_1000": plain_rate,
        "rounds": list(rows),
    }
