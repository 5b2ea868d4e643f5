"""Stage `reference`: the training images and unseen ones, encoded once for all attacks.

An attack's images are held against them by `evaluate`, whose encoder it takes. What no attack
changes is measured here: how near real unseen images come to training images, and each image to
the others of its set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Int64

from sidepipe.data.stage import load as load_images
from sidepipe.descriptor.stage import load as load_descriptor
from sidepipe.descriptor.stage import load_rows
from sidepipe.dpm.stage import load_subset
from sidepipe.features.choice import is_of_this_run
from sidepipe.settings import build
from sidepipe.stage import Runtime, Stage

if TYPE_CHECKING:
    from sidepipe.features.encoders import Encoder
    from sidepipe.features.real import Encoded, RealImages

NO_HELDOUT = (
    "evaluate needs held-out images, and the model is trained on all of data; remedy: lower "
    "dpm.num_train_images, or bring images outside the training set and set "
    "dpm.train_partitions=[train], or evaluate.truth=none for a blind ranking alone"
)
# The files of an artifact, by what is in them.
ROWS, FEATURES, OTHER_GAMMA = "{}_rows.npy", "{}.npy", "other_gamma_{}.npy"
REAL_GAMMA = "real_gamma.npy"


@dataclass(frozen=True, kw_only=True)
class Reference(Stage):
    """Real images as evaluate's encoder sees them.

    features, false_positive_rates: evaluate's. The rates change nothing here; that there are images
    enough for them is asked before anything is encoded.
    """

    name: ClassVar[str] = "reference"
    features: dict[str, Any]
    false_positive_rates: list

    @cached_property
    def _encoder(self) -> Encoder:
        return build(self.features)

    def inputs(self) -> tuple[str, ...]:
        descriptor = ("descriptor",) if is_of_this_run(self.features) else ()
        return ("data", "dpm", *descriptor)

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"features": settings["features"]}

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        from sidepipe.features.real import real_images
        from sidepipe.reference.encoding import encode_into

        rows = self._rows(inputs)
        encoder = load_descriptor(inputs["descriptor"]) if "descriptor" in inputs else self._encoder
        data = load_images(inputs["data"])
        for name, some in rows.items():
            np.save(folder / ROWS.format(name), some)
            encode_into(folder / FEATURES.format(name), encoder, data, some, runtime)
        real = real_images(*_encoded(folder), encoder.metric)
        np.save(folder / REAL_GAMMA, real.real_gamma)
        for name, gamma in real.other_gamma.items():
            np.save(folder / OTHER_GAMMA.format(name), gamma)
        return {
            "num_train": len(real.train.rows),
            "num_unseen": len(real.unseen.rows),
            "transform": encoder.transform,
            "dimensions": real.train.features.shape[1],
        }

    def _rows(self, inputs: Mapping[str, Path]) -> dict[str, Int64[np.ndarray, "_"]]:
        """Training images, and unseen ones that nothing was trained on; the best control first."""
        train, unseen = load_subset(inputs["dpm"])
        if "descriptor" in inputs:
            unseen = unseen[~np.isin(unseen, load_rows(inputs["descriptor"]))]
        if len(unseen) == 0:
            raise ValueError(NO_HELDOUT)
        self.require_enough(len(unseen), self.false_positive_rates)
        return {"train": train, "unseen": unseen}

    @staticmethod
    def require_enough(num_real: int, rates: Sequence[float]) -> None:
        """Raises ValueError where fewer than 1 / rate real images are there: no such quantile is.

        The rate that it suggests lets three of them pass: on one alone too much would hang.
        """
        from sidepipe.features.thresholds import allowed

        for rate in rates:
            if allowed(num_real, rate) < 1:
                raise ValueError(
                    f"evaluate.false_positive_rates must be >= 1 / {num_real} (there are {num_real}"
                    f" held-out images that nothing was trained on), got {rate:g}; remedy: bring at"
                    f" least {math.ceil(1 / rate)}, with features=copydet lower"
                    " descriptor.fraction, which takes its share of them, or"
                    f" evaluate.false_positive_rates=[{min(0.5, 3 / max(num_real, 1)):.1g}]"
                )


def _encoded(folder: Path) -> tuple[Encoded, Encoded]:
    """Training and unseen images, their features memory-mapped."""
    from sidepipe.features.real import Encoded

    train, unseen = (
        Encoded(
            np.load(folder / ROWS.format(name)),
            np.load(folder / FEATURES.format(name), mmap_mode="r"),
        )
        for name in ("train", "unseen")
    )
    return train, unseen


def load(folder: Path) -> RealImages:
    """The real images, their features memory-mapped."""
    from sidepipe.features.real import RealImages

    other = {
        name: np.load(path)
        for name in ("train", "heldout", "train_equal")
        if (path := folder / OTHER_GAMMA.format(name)).exists()
    }
    return RealImages(*_encoded(folder), np.load(folder / REAL_GAMMA), other)
