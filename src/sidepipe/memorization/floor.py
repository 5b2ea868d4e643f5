"""The floor of every distance of a latent model: what its autoencoder alone does to an image.

A model that has memorized the code of a training image decodes it to the reconstruction of the
image, which is at some distance from the image itself.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32

from sidepipe.features.pairs import exact_losses, gamma_of
from sidepipe.features.search import Metric, closer

FLOOR_IMAGES = 1000  # training images that are reconstructed


def floor_gamma(
    images: Float32[np.ndarray, "n d"], reconstructed: Float32[np.ndarray, "n d"], metric: Metric
) -> Float32[np.ndarray, "n"]:
    """gamma of each image and its own reconstruction, from their features."""
    each = np.arange(len(images))
    return gamma_of(exact_losses(images, reconstructed, each, each, metric), metric)


def floor(gamma: Float32[np.ndarray, "n"], threshold: float, metric: Metric) -> dict[str, Any]:
    """The median of `floor_gamma`, the value that 95 % reach, and the share within the threshold.

    Images outside the threshold of a hit can be memorized and still give no hit.
    """
    far = 0.05 if metric == "cosine" else 0.95
    return {
        "num_images": len(gamma),
        "median": float(np.median(gamma)),
        "most": float(np.quantile(gamma, far)),
        "within_threshold": float(closer(gamma, threshold, metric).mean()),
    }
