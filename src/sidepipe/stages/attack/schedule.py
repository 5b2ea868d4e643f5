"""The factor of lambda at each timestep, from a name or from points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Float64

from sidepipe.base.settings import require

if TYPE_CHECKING:
    from torch import Tensor

# The list is of points [t, factor].
Schedule = Literal["constant", "classifier_quality"] | list[Any]


def check_points(schedule: Schedule) -> None:
    """Raises ValueError for a list that is not one of points."""
    if isinstance(schedule, list):
        name = "extract.guidance.guidance_schedule"
        points = len(schedule) > 0 and all(map(_is_point, schedule))
        require(points, name, "a list of points [t, factor] with factor >= 0", schedule)
        ascending = all(a[0] < b[0] for a, b in itertools.pairwise(schedule))
        require(ascending, name, "points [t, factor] with ascending t", schedule)


def _is_point(point: Any) -> bool:
    if not isinstance(point, list | tuple) or len(point) != 2:
        return False
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in point)
    return numbers and all(map(math.isfinite, point)) and point[1] >= 0


def schedule_factors(
    schedule: Schedule,
    quality: Sequence[Mapping[str, int | float]],
    num_train_timesteps: int,
) -> Float[Tensor, "T"]:
    """The factor of every timestep. quality: of the classifier, for its own schedule alone."""
    import torch

    if schedule == "classifier_quality":
        return quality_factors(quality, num_train_timesteps)
    points = [[0, 1]] if isinstance(schedule, str) else schedule
    return torch.from_numpy(factors_between(points, num_train_timesteps))


def factors_between(
    points: Sequence[Sequence[float]], num_train_timesteps: int
) -> Float64[np.ndarray, "T"]:
    """Linear between points (t, factor) with ascending t, constant beyond them."""
    t, factors = np.array(points, np.float64).T
    return np.interp(np.arange(num_train_timesteps), t, factors)


def quality_factors(
    quality: Sequence[Mapping[str, int | float]], num_train_timesteps: int
) -> Float[Tensor, "T"]:
    """max(0, 1 - CE(t) / H(labels)): 1 for a certain classifier, 0 for one at chance.

    quality: rows of the classifier's quality.csv, constant from t_from to t_to (exclusive).
    """
    import torch

    factors = torch.zeros(num_train_timesteps)
    for row in quality:
        share = 1 - row["cross_entropy"] / row["label_entropy"]
        factors[int(row["t_from"]) : int(row["t_to"])] = max(0.0, share)
    return factors
