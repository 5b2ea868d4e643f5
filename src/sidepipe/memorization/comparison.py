"""One attack's images compared with training images, and with others as a control.

gamma is that of `sidepipe.features.search` for two feature vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from sidepipe.features.pairs import blocks, distance
from sidepipe.features.search import EXACT_VECTORS, Metric, nearest
from sidepipe.memorization.excess import HeldoutHits
from sidepipe.memorization.real import (
    Encoded,
    Groups,
    RealImages,
    closest_of_groups,
    compared_sets,
    control_sets,
)
from sidepipe.memorization.scores import adaptive_scores

AROUND = 50  # nearest images in Carlini et al.'s adaptive score
QUERIES = 65_536  # generated images whose AROUND nearest images are in memory at a time
Gamma = Float32[np.ndarray, "n"]


@dataclass(frozen=True)
class Compared:
    """Encoded real images, and the nearest ones to each generated image.

    other_gamma: of each to the nearest other one; None where it was not measured. gamma, index: of
    each generated image to its nearest real image, an index within the m of `rows`. adaptive:
    Carlini et al.'s score of each generated image, None where it was not measured. groups: those of
    `Encoded`.
    """

    rows: Int64[np.ndarray, "m"]
    features: Float32[np.ndarray, "m d"]
    other_gamma: Float32[np.ndarray, "m"] | None
    gamma: Float32[np.ndarray, "n"]
    index: Int64[np.ndarray, "n"]
    adaptive: Float64[np.ndarray, "n"] | None
    groups: Groups


@dataclass(frozen=True)
class Control:
    """One held-out set. gamma, index: of each generated image to its nearest image of the set."""

    rows: Int64[np.ndarray, "m"]
    features: Float32[np.ndarray, "m d"]
    groups: Groups
    gamma: Float32[np.ndarray, "n"]
    index: Int64[np.ndarray, "n"]

    def hit_units(self, hit: Bool[np.ndarray, "n"]) -> Int64[np.ndarray, "_"]:
        """The held-out image, or its group where there are groups, of each hit."""
        index = self.index[hit]
        return index if self.groups is None else self.groups[index]


@dataclass(frozen=True)
class Comparison:
    """One attack's images against everything they are compared with.

    queries: features of the generated images. sets: those of `compared_sets`, by name. controls:
    the disjoint held-out sets that the unseen images allow, each as large as the training set,
    `heldout` first; one smaller set where there are fewer unseen images. real_gamma: of every real
    unseen image to its nearest training image, or of the closest image of every unseen group.
    synthetic_*: of every synthetic image, which the attacker had before the attack, to its nearest
    training image; empty where there are none. per_start: images that follow each other and come
    from one start of the attack. Starts are independent, their images are not: a start hits where
    any of its images hits, a training image or a held-out one alike. draws: of starts, as in
    `HeldoutHits`.
    """

    metric: Metric
    queries: Float32[np.ndarray, "n d"]
    sets: dict[str, Compared]
    controls: list[Control]
    real_gamma: Float32[np.ndarray, "u"]
    synthetic_gamma: Float32[np.ndarray, "s"]
    synthetic_index: Int64[np.ndarray, "s"]
    per_start: int = 1
    draws: Int64[np.ndarray, "k"] | None = None

    @property
    def num_starts(self) -> int:
        return len(self.queries) // self.per_start

    def of_starts(self, hit: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "k"]:
        """Whether any image of each start is a hit."""
        return hit.reshape(-1, self.per_start).max(axis=1)

    def sightings(
        self, hit: Bool[np.ndarray, "n"], unit: Int64[np.ndarray, "h"]
    ) -> Int64[np.ndarray, "2 s"]:
        """Starts and the units that they hit, each pair once. unit: of each hit."""
        starts = np.flatnonzero(hit) // self.per_start
        return np.unique(np.stack([starts, unit]), axis=1)

    @property
    def train(self) -> Compared:
        return self.sets["train"]

    @property
    def heldout(self) -> Compared:
        return self.sets["heldout"]

    @property
    def equal(self) -> Compared:
        """As many training images as there are in `heldout`."""
        return self.sets.get("train_equal", self.train)

    @property
    def scale(self) -> float:
        """How many times as many images the training set has as a held-out set, at least 1."""
        return max(1.0, len(self.train.rows) / len(self.heldout.rows))

    def heldout_hits(self, inside: Callable[[Gamma], Bool[np.ndarray, "n"]]) -> HeldoutHits:
        """Starts that hit held-out sets. inside: which of gamma to the nearest image are hits."""
        hits = [inside(control.gamma) for control in self.controls]
        draws = np.arange(self.num_starts) if self.draws is None else self.draws
        repeats = 0
        for one, hit in zip(self.controls, hits, strict=True):
            start, unit = self.sightings(hit, one.hit_units(hit))
            # Pairs of hits on one image, less those of one picture with itself.
            repeats += int(np.square(np.bincount(unit)).sum())
            same = np.unique(np.stack([unit, draws[start]]), axis=1, return_counts=True)[1]
            repeats -= int(np.square(same).sum())
        return HeldoutHits(
            share=sum(map(self.of_starts, hits), np.zeros(self.num_starts)) / len(hits),
            repeats=repeats,
            num_sets=len(self.controls),
            scale=self.scale,
            draws=self.draws,
        )


def compare(
    queries: Float32[np.ndarray, "n d"],
    synthetic: Float32[np.ndarray, "s d"] | None,
    real: RealImages,
    metric: Metric,
    attacker_rows: Int64[np.ndarray, "a"] | None = None,
    *,
    counts_only: bool = False,
    per_start: int = 1,
) -> Comparison:
    """The searches behind every measure. queries, synthetic: features of generated images.

    synthetic: None where no images were made before the attack.

    attacker_rows: unseen images that the attack learned from, so not a control. They are real
    images all the same, and count in the distances of real images to training images.

    counts_only: whether to leave out what `results.counted` does not use: all but the nearest image
    of each set, the distances within sets, and `train_equal`.
    """
    real_sets = compared_sets(real.train, real.unseen, attacker_rows)
    if counts_only:
        sets = {
            name: _compared(queries, real_sets[name], None, metric) for name in ("train", "heldout")
        }
    else:
        sets = {
            name: _scored(queries, images, real.other_gamma_of(name, images, metric), metric)
            for name, images in real_sets.items()
        }
    unseen = real.unseen if attacker_rows is None else real.unseen.without(attacker_rows)
    gamma, index = np.empty((0, 1), np.float32), np.empty((0, 1), np.int64)
    if synthetic is not None:
        gamma, index = nearest(synthetic, real.train.features, metric)
    return Comparison(
        metric,
        queries,
        sets,
        _controls(queries, sets["heldout"], unseen, len(real.train.rows), metric),
        closest_of_groups(real.real_gamma, real.unseen.groups, metric),
        gamma[:, 0],
        index[:, 0],
        per_start,
    )


def _compared(
    queries: Float32[np.ndarray, "n d"],
    images: Encoded,
    other_gamma: Float32[np.ndarray, "m"] | None,
    metric: Metric,
) -> Compared:
    """The nearest image of a set to each generated image."""
    gamma, index = (found[:, 0] for found in nearest(queries, images.features, metric))
    rows, features, groups = images.rows, images.features, images.groups
    return Compared(rows, features, other_gamma, gamma, index, None, groups)


def _scored(
    queries: Float32[np.ndarray, "n d"],
    images: Encoded,
    other_gamma: Float32[np.ndarray, "m"] | None,
    metric: Metric,
) -> Compared:
    """As `_compared`, with adaptive scores, from the AROUND nearest images of a set.

    These take 1 kB per generated image in the search, so some are searched for at a time.
    """
    # An approximate search builds an index: once for all.
    size = QUERIES if len(images.rows) <= EXACT_VECTORS else len(queries)
    gamma, index = np.empty(len(queries), np.float32), np.empty(len(queries), np.int64)
    adaptive = np.empty(len(queries))
    for some in blocks(len(queries), size):
        around, found = nearest(
            queries[some], images.features, metric, k=min(AROUND, len(images.rows))
        )
        gamma[some], index[some] = around[:, 0], found[:, 0]
        adaptive[some] = adaptive_scores(distance(around, metric))
    rows, features, groups = images.rows, images.features, images.groups
    return Compared(rows, features, other_gamma, gamma, index, adaptive, groups)


def _controls(
    queries: Float32[np.ndarray, "n d"],
    first: Compared,
    unseen: Encoded,
    size: int,
    metric: Metric,
) -> list[Control]:
    """`first`, and as many further sets of `size` as there are other unseen images for."""
    controls = [Control(first.rows, first.features, first.groups, first.gamma, first.index)]
    for some in control_sets(size, len(unseen.rows), unseen.groups)[1:]:
        images = unseen.part(some)
        gamma, index = nearest(queries, images.features, metric)
        controls.append(
            Control(images.rows, images.features, images.groups, gamma[:, 0], index[:, 0])
        )
    return controls
