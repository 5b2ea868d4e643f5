"""Choosing how to guide without the training set: trials on a small budget, scored blindly.

What a model has memorised it makes again and again, so a setting is better the more of its images
have a near duplicate among themselves. Whether that is so the report shows beside the true hits.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from sidepipe.features.search import Metric, closer, nearest
from sidepipe.settings import require, require_known

# What may be tried: how to guide. What is sampled, and how finely, is the attack's to say.
TUNABLE = (
    *("guidance_scale", "guidance_schedule", "max_guidance_norm"),
    *("t_min", "t_max", "targets", "target_fraction"),
)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What to try: grid: setting -> values, all combinations of them; num_images: of each trial."""

    grid: dict[str, Any]
    num_images: int

    def __post_init__(self) -> None:
        require(self.num_images >= 2, "extract.tuning.num_images", ">= 2", self.num_images)
        require(bool(self.grid), "extract.tuning.grid", "settings with values to try", self.grid)
        for name, values in self.grid.items():
            require_known("extract.tuning.grid", name, TUNABLE)
            several = isinstance(values, list | tuple) and len(values) > 0
            require(several, f"extract.tuning.grid.{name}", "a list of values to try", values)

    @property
    def points(self) -> list[dict[str, Any]]:
        """All combinations of the grid, the last setting changing fastest."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]


def near_duplicate_rate(
    features: Float32[np.ndarray, "n d"], metric: Metric, threshold: float
) -> float:
    """Share of images to which another one is at least as close as `threshold`."""
    others = nearest(features, features, metric, k=2)[0][:, 1]
    return float(closer(others, threshold, metric).mean())


def best(trials: Sequence[Mapping[str, Any]]) -> int:
    """The place of the trial with the highest score; the first of equals."""
    return int(np.argmax([trial["score"] for trial in trials]))
