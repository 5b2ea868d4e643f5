"""The result of an owner's audit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from sidepipe.api.naming import as_new_file
from sidepipe.api.result import Estimate
from sidepipe.base.files import whole_file, write_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Audit:
    """Training images that a model returns to. ``sidepipe.audit`` makes it.

    The model returns to an image where the refined image is at least as close to the image itself
    as ``threshold``, which ``false_positive_rate`` of the held-out images reach for a training
    image.

    Attributes:
        num_train: number of training images.
        num_heldout: number of held-out images, at most as many.
        flagged: indices in ``train`` of the images that the model returns to, the closest first.
        heldout_flagged: number of held-out images that the model returns to.
        excess: the share of training images less the share of held-out images.
        extraction: the expected number of images of both kinds that ``budget`` refined images hit,
            with their intervals, as in results.json; ``None`` with ``sampled=0``.
        inference: the p-value that the set ``train`` was used to train the model, and the power by
            the size of a set; ``None`` with fewer than 10 images, or subjects, of a kind.
        scores: a pandas DataFrame with a row per image; docs/audit.md has the columns.
        subjects: a DataFrame with a row per subject of ``groups``, ``None`` without.
        threshold: a distance (``metric`` ``"l2"``) or a similarity (``"cosine"``).
        false_positive_rate: the share of held-out images that may reach the threshold.
        metric: ``"l2"``, where smaller is closer, or ``"cosine"``, where larger is closer.
        features: name and version of the encoder.
        evaluations_per_image: evaluations of the network.
        warnings: limitations of the numbers, as sentences; they are also logged.
    """

    num_train: int
    num_heldout: int
    flagged: Int64[np.ndarray, "k"]
    heldout_flagged: int
    excess: Estimate
    extraction: dict[str, Any] | None = field(repr=False)
    inference: dict[str, Any] | None = field(repr=False)
    scores: pd.DataFrame = field(repr=False)
    subjects: pd.DataFrame | None = field(repr=False)
    threshold: float
    false_positive_rate: float
    metric: str
    features: str
    evaluations_per_image: int
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        low, high = (100 * end for end in self.excess.interval)
        lines = [
            f"the model returns to {len(self.flagged):,} of {self.num_train:,} training images and "
            f"to {self.heldout_flagged:,} of {self.num_heldout:,} held-out images",
            f"excess: {100 * self.excess.share:.1f} % (95 % interval {low:.1f} to {high:.1f} %)",
        ]
        if (found := self.extraction) is not None:
            ends = "{:,.0f} to {:,.0f}".format(*found["interval"])
            lines.append(
                f"expected to be extracted by {found['budget']:,} refined images: "
                f"{found['expected']:,.0f} training images (95 % interval {ends}) "
                f"and {found['heldout_expected']:,.0f} held-out images"
            )
        if self.inference is not None:
            lines.append(f"p-value that the set was trained on: {self.inference['p_value']:.2g}")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def save(self, path: str | Path = "audit.csv") -> Path:
        """Write the scores as a CSV file.

        Args:
            path: the file to write or replace.

        Returns:
            The path.

        Raises:
            FileNotFoundError: where the folder of the file does not exist.

        Example:
            >>> import sidepipe
            >>> model = sidepipe.load(checkpoint)
            >>> found = sidepipe.audit(
            ...     model, train=train, heldout=heldout, steps=2, levels=(), sampled=0
            ... )
            >>> found.save(folder / "audit.csv").name
            'audit.csv'
        """
        file = as_new_file("path", path)
        with whole_file(file) as temporary:
            write_table(temporary, self.scores)
        return file
