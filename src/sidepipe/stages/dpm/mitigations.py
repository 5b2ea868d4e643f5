"""Settings of `dpm` by which a model memorizes less at the same number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from sidepipe.base.settings import require
from sidepipe.engine.stage import Runtime, Stage
from sidepipe.stages.data.stage import Data

WEIGHTING = {"t_min", "t_max", "weight"}


@dataclass(frozen=True, kw_only=True)
class Mitigations(Stage):
    """Changes of training against memorization; `random_flip` is another one.

    random_shift: most pixels by which images move at random. loss_weighting: None, or the weight of
    the loss from t_min to t_max (Dodson et al., arXiv 2602.17846). ambient_t: None, or the timestep
    above which training uses one noisy version of each image alone (Shah et al., arXiv 2502.21278).
    """

    random_shift: int = 0
    loss_weighting: dict[str, Any] | None = None
    ambient_t: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        shift, weighting, t = self.random_shift, self.loss_weighting, self.ambient_t
        require(shift >= 0, "dpm.random_shift", ">= 0", shift)
        name, rule = "dpm.loss_weighting", "null, or {t_min: ..., t_max: ..., weight: ...}"
        require(weighting is None or set(weighting) == WEIGHTING, name, rule, weighting)
        if weighting is not None:
            rule = "0 <= t_min <= t_max, and a weight in [0, 1)"
            fits = 0 <= weighting["t_min"] <= weighting["t_max"] and 0 <= weighting["weight"] < 1
            require(fits, name, rule, weighting)
        if t is not None:
            require(t >= 0, "dpm.ambient_t", ">= 0 or null", t)
            rule = "null with dpm.random_flip, dpm.random_shift or dpm.loss_weighting"
            moves = shift or getattr(self, "random_flip", False) or weighting is not None
            remedy = "a moved image has another noisy version"
            require(not moves, "dpm.ambient_t", rule, t, remedy)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        if shift := self.random_shift:
            data = upstream["data"]
            assert isinstance(data, Data)
            require(shift < data.size, "dpm.random_shift", f"< data.size = {data.size}", shift)

    @property
    def timesteps(self) -> dict[str, int]:
        """The timesteps among these settings, by name."""
        of = {"dpm.ambient_t": self.ambient_t}
        of["dpm.loss_weighting.t_max"] = (self.loss_weighting or {}).get("t_max")
        return {name: t for name, t in of.items() if t is not None}

    @property
    def shaping(self) -> dict[str, Any]:
        """The arguments of `DenoisingModule`."""
        return {"random_shift": self.random_shift, "loss_weighting": self.loss_weighting}


def fixed_noise(
    count: int, rows: Int64[np.ndarray, "n"], shape: tuple[int, int, int], seed: int
) -> Float32[np.ndarray, "count c h w"]:
    """The one noise of each image in `rows` of `count`; 0 for the others, which train nothing."""
    from sidepipe.diffusion.noise import image_noise

    found = np.zeros((count, *shape), np.float32)
    found[rows] = image_noise(seed, "ambient", rows.tolist(), shape)().numpy()
    return found
