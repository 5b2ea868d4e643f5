"""One attack's images held against training images, and against others as a control.

gamma is what `sidepipe.features.search` says of two feature vectors.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from sidepipe.features.real import Encoded, RealImages, compared_sets
from sidepipe.features.search import Metric, nearest

AROUND = 50  # nearest images that Carlini et al.'s adaptive score looks at


@dataclass(frozen=True)
class Compared:
    """Encoded real images, and how near generated ones come to them.

    other_gamma: of each to the nearest other one. around, around_index: each generated image's
    nearest real images, closest first, up to 50; indices within the m of `rows`. reverse_gamma:
    each real image's nearest generated one.
    """

    rows: Int64[np.ndarray, "m"]
    features: Float32[np.ndarray, "m d"]
    other_gamma: Float32[np.ndarray, "m"]
    around: Float32[np.ndarray, "n k"]
    around_index: Int64[np.ndarray, "n k"]
    reverse_gamma: Float32[np.ndarray, "m"]

    @property
    def gamma(self) -> Float32[np.ndarray, "n"]:
        """gamma to the nearest real image."""
        return self.around[:, 0]

    @property
    def index(self) -> Int64[np.ndarray, "n"]:
        """The nearest real image."""
        return self.around_index[:, 0]


@dataclass(frozen=True)
class Comparison:
    """One attack's images against everything they are compared with.

    queries: features of the generated images. sets: those of `compared_sets`, by name. real_gamma:
    of every real unseen image to its nearest training image. synthetic_*: of every synthetic image,
    which the attacker had before the attack, to its nearest training image.
    """

    metric: Metric
    queries: Float32[np.ndarray, "n d"]
    sets: dict[str, Compared]
    real_gamma: Float32[np.ndarray, "u"]
    synthetic_gamma: Float32[np.ndarray, "s"]
    synthetic_index: Int64[np.ndarray, "s"]

    @property
    def train(self) -> Compared:
        return self.sets["train"]

    @property
    def heldout(self) -> Compared:
        return self.sets["heldout"]

    @property
    def equal(self) -> Compared:
        """The training images that the held-out ones are compared with: as many."""
        return self.sets.get("train_equal", self.train)


def compare(
    queries: Float32[np.ndarray, "n d"],
    synthetic: Float32[np.ndarray, "s d"],
    real: RealImages,
    metric: Metric,
    attacker_rows: Int64[np.ndarray, "a"] | None = None,
) -> Comparison:
    """Searches that every measure is made of. queries, synthetic: features of generated images.

    attacker_rows: unseen images that the attack learnt from, so no control of what it brings out.
    They are real images all the same, which say how near such come to training images.
    """
    sets = compared_sets(real.train, real.unseen, attacker_rows)
    gamma, index = nearest(synthetic, real.train.features, metric)
    return Comparison(
        metric,
        queries,
        {
            name: _compared(queries, images, real.other_gamma_of(name, images, metric), metric)
            for name, images in sets.items()
        },
        real.real_gamma,
        gamma[:, 0],
        index[:, 0],
    )


def _compared(
    queries: Float32[np.ndarray, "n d"],
    images: Encoded,
    other_gamma: Float32[np.ndarray, "m"],
    metric: Metric,
) -> Compared:
    around, index = nearest(queries, images.features, metric, k=min(AROUND, len(images.rows)))
    reverse_gamma, _ = nearest(images.features, queries, metric)
    return Compared(images.rows, images.features, other_gamma, around, index, reverse_gamma[:, 0])
