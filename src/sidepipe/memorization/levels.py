"""The most noise that keeps a model's memorized images apart, from the images alone.

Noise and denoising lead an image back to itself where the noise is small next to its distance from
the other images; at more noise images merge. The images that a model repeats stand for those that
it has memorized, so no training image is needed.

| here | Verma et al., arXiv 2610.11670, theorem 1 with R = 0 |
|---|---|
| noise_to_signal | q = (1 - ab_t) / ab_t |
| 1 - returning | A(0) |
"""

import numpy as np
from jaxtyping import Float, Float64

BLOCK = 512  # images whose distances to all others are in memory at a time


def returning(x_0: Float[np.ndarray, "n d"], noise_to_signal: float) -> Float64[np.ndarray, "n"]:
    """A lower bound of the probability that one cycle of noise and denoising returns each image.

    x_0: different images, of the model's own scale. The bound is 1 - min(1, 1/2 sum_j exp(-|x_i -
    x_j|^2 / (8 q))) for the optimal denoiser of these images.
    """
    x = x_0.astype(np.float64)
    squares = np.square(x).sum(1)
    merging = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        some = slice(start, min(start + BLOCK, len(x)))
        apart = squares[some, None] + squares - 2 * x[some] @ x.T
        closeness = np.exp(-np.maximum(apart, 0) / (8 * noise_to_signal))
        closeness[np.arange(some.stop - start), np.arange(start, some.stop)] = 0  # itself
        merging[some] = closeness.sum(1) / 2
    return 1 - np.minimum(1, merging)
