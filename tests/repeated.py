"""Features in which some originals come several times, nearly alike, and others once."""

import numpy as np
import pytest

METRICS = pytest.mark.parametrize("metric", ["cosine", "l2"])
THRESHOLD = {"cosine": 0.95, "l2": 0.4}


def repeated(metric, sizes=(9, 5, 2), alone=30, seed=0):
    """Far images repeated with a little noise, and images alone; and which original each is of."""
    rng = np.random.default_rng(seed)
    originals = rng.normal(size=(len(sizes) + alone, 24))
    of = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), len(sizes) + np.arange(alone)])
    of = rng.permutation(of)
    x = originals[of] + rng.normal(0, 0.02, (len(of), 24))
    if metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), of
