"""Noise that belongs to an image: drawn from (seed, stream, index), whatever the batch or device.

Counter-based generators (Philox) keyed by all three. torch's CPU generator keeps 32 bits of its
seed, so among a million images about a hundred pairs would share their noise and look memorized.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# Streams keep apart what shares a seed: generate's image 7 and extract's image 7 differ.
STREAMS = {
    "generate": 1,
    "extract": 2,
    "targets": 3,
    "prompts": 4,
    "audit": 5,
    "refine": 6,
    "verdict": 7,
    "clock": 8,
    "alarm": 9,
    "ambient": 10,
    "divergence": 11,
    "calibration": 12,
    "inversion": 13,
}


def generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The generator of one image. Raises ValueError unless 0 <= seed < 2**32."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {seed}")
    key = np.array([(STREAMS[stream] << 32) | seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def image_noise(
    seed: int,
    stream: str,
    indices: Sequence[int],
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
) -> Callable[[], Float[Tensor, "n *shape"]]:
    """A function whose every call gives the images' next noise; the first call is their x_T."""
    generators = [generator(seed, stream, int(i)) for i in indices]

    def draw() -> Tensor:
        rows = [g.standard_normal(shape, dtype=np.float32) for g in generators]
        return torch.from_numpy(np.stack(rows)).to(device)

    return draw
