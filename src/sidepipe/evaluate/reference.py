"""Images that an attack's images are compared with: the training images, and others as a control.

gamma is what `sidepipe.features.search` says of two feature vectors.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from sidepipe.features.encoders import Encoder
from sidepipe.features.search import Metric, nearest

ENCODE_IMAGES = 8192  # read at once: the data may be larger than memory
AROUND = 50  # nearest images that Carlini et al.'s adaptive score looks at


@dataclass(frozen=True)
class Encoded:
    """Places in the data's array, and the features of the images there."""

    rows: Int64[np.ndarray, "m"]
    features: Float32[np.ndarray, "m d"]

    def first(self, count: int) -> "Encoded":
        """The first `count` of them, or all where there are fewer."""
        return Encoded(self.rows[:count], self.features[:count])

    def without(self, rows: Int64[np.ndarray, "e"]) -> "Encoded":
        """Those that are none of `rows`."""
        others = ~np.isin(self.rows, rows)
        return Encoded(self.rows[others], self.features[others])


@dataclass(frozen=True)
class Reference:
    """Encoded images, and how near generated ones come to them.

    around, around_index: each generated image's nearest reference images, closest first, up to 50;
    indices within the m of `rows`. reverse_gamma: each reference image's nearest generated one.
    """

    rows: Int64[np.ndarray, "m"]
    features: Float32[np.ndarray, "m d"]
    around: Float32[np.ndarray, "n k"]
    around_index: Int64[np.ndarray, "n k"]
    reverse_gamma: Float32[np.ndarray, "m"]

    @property
    def gamma(self) -> Float32[np.ndarray, "n"]:
        """gamma to the nearest reference image."""
        return self.around[:, 0]

    @property
    def index(self) -> Int64[np.ndarray, "n"]:
        """The nearest reference image."""
        return self.around_index[:, 0]


@dataclass(frozen=True)
class Comparison:
    """One attack's images against everything they are compared with.

    queries: features of the generated images. references: `train`, `heldout` (equally many images
    that the model never saw) and, with fewer unseen images than training images, `train_equal` (as
    many training images as there are held out: a larger set is nearer to anything). real_gamma: of
    every real unseen image to its nearest training image. synthetic_*: of every synthetic image,
    which the attacker had before the attack, to its nearest training image.
    """

    metric: Metric
    queries: Float32[np.ndarray, "n d"]
    references: dict[str, Reference]
    real_gamma: Float32[np.ndarray, "u"]
    synthetic_gamma: Float32[np.ndarray, "s"]
    synthetic_index: Int64[np.ndarray, "s"]

    @property
    def train(self) -> Reference:
        return self.references["train"]

    @property
    def heldout(self) -> Reference:
        return self.references["heldout"]

    @property
    def equal(self) -> Reference:
        """The training images that the held-out ones are compared with: as many."""
        return self.references.get("train_equal", self.train)


def encode(encoder: Encoder, data: np.ndarray, rows: np.ndarray, device: str) -> Encoded:
    """The images in `rows` of data, encoded."""
    blocks = [rows[i : i + ENCODE_IMAGES] for i in range(0, len(rows), ENCODE_IMAGES)]
    features = [encoder.encode(data[block], device=device) for block in blocks]
    return Encoded(rows, np.concatenate(features))


def compare(
    queries: Float32[np.ndarray, "n d"],
    synthetic: Float32[np.ndarray, "s d"],
    train: Encoded,
    unseen: Encoded,
    metric: Metric,
    attacker_rows: Int64[np.ndarray, "a"] | None = None,
) -> Comparison:
    """Searches that every measure is made of. queries, synthetic: features of generated images.

    attacker_rows: unseen images that the attack learnt from, so no control of what it brings out.
    They are real images all the same, which say how near such come to training images.
    """
    control = unseen if attacker_rows is None else unseen.without(attacker_rows)
    sets = {"train": train, "heldout": control.first(len(train.rows))}
    if len(control.rows) < len(train.rows):
        sets["train_equal"] = train.first(len(control.rows))
    real_gamma, _ = nearest(unseen.features, train.features, metric)
    synthetic_gamma, synthetic_index = nearest(synthetic, train.features, metric)
    references = {name: _reference(queries, images, metric) for name, images in sets.items()}
    return Comparison(
        metric,
        queries,
        references,
        real_gamma[:, 0],
        synthetic_gamma[:, 0],
        synthetic_index[:, 0],
    )


def _reference(queries: np.ndarray, images: Encoded, metric: Metric) -> Reference:
    around, index = nearest(queries, images.features, metric, k=min(AROUND, len(images.rows)))
    reverse_gamma, _ = nearest(images.features, queries, metric)
    return Reference(images.rows, images.features, around, index, reverse_gamma[:, 0])
