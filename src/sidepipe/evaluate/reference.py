"""Images that an attack's images are compared with: the training images, and others as a control.

gamma is what `sidepipe.features.search` says of two feature vectors.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from sidepipe.features.encoders import Encoder
from sidepipe.features.search import Metric, nearest

ENCODE_IMAGES = 8192  # read at once: the data may be larger than memory


@dataclass(frozen=True)
class Encoded:
    """Places in the data's array, and the features of the images there."""

    rows: Int64[np.ndarray, "m"]
    features: Float32[np.ndarray, "m d"]

    def first(self, count: int) -> "Encoded":
        """The first `count` of them, or all where there are fewer."""
        return Encoded(self.rows[:count], self.features[:count])


@dataclass(frozen=True)
class Reference:
    """Encoded images, and how near generated ones come to them.

    gamma, index: each generated image's nearest reference image, index within the m of `rows`.
    reverse_gamma: each reference image's nearest generated one.
    """

    rows: Int64[np.ndarray, "m"]
    features: Float32[np.ndarray, "m d"]
    gamma: Float32[np.ndarray, "n"]
    index: Int64[np.ndarray, "n"]
    reverse_gamma: Float32[np.ndarray, "m"]


def encode(encoder: Encoder, data: np.ndarray, rows: np.ndarray, device: str) -> Encoded:
    """The images in `rows` of data, encoded."""
    blocks = [rows[i : i + ENCODE_IMAGES] for i in range(0, len(rows), ENCODE_IMAGES)]
    features = [encoder.encode(data[block], device=device) for block in blocks]
    return Encoded(rows, np.concatenate(features))


def references(
    queries: Float32[np.ndarray, "n d"], train: Encoded, unseen: Encoded, metric: Metric
) -> dict[str, Reference]:
    """`train`, and as `heldout` equally many images that the model never saw.

    With fewer unseen images than training images comes `train_equal`, as many training images as
    there are held out: a larger set is nearer to anything. queries: features of generated images.
    """
    sets = {"train": train, "heldout": unseen.first(len(train.rows))}
    if len(unseen.rows) < len(train.rows):
        sets["train_equal"] = train.first(len(unseen.rows))
    return {name: _compare(queries, images, metric) for name, images in sets.items()}


def _compare(queries: np.ndarray, images: Encoded, metric: Metric) -> Reference:
    gamma, index = nearest(queries, images.features, metric)
    reverse_gamma, _ = nearest(images.features, queries, metric)
    return Reference(images.rows, images.features, gamma[:, 0], index[:, 0], reverse_gamma[:, 0])
