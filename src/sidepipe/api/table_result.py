"""The result of a comparison of tables: hits, exact copies, published measures, controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.api.naming import as_path
from sidepipe.api.result import Estimate, Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Ratio:
    """A published measure of generated rows, and the same of held-out rows.

    A row counts as memorized where its nearest training row is less than a third as far as its
    second nearest one (Fang et al., ICML 2025, arXiv 2412.11044).

    Attributes:
        generated: the share of generated rows that count.
        heldout: the share of held-out rows that count, which no model has copied.
        excess: the difference. It is near 0 for a model that copies nothing.
        area: Mem-AUC of generated rows, the mean share over thresholds of 0 to 1.
        heldout_area: Mem-AUC of held-out rows.
        area_excess: the difference.
    """

    generated: Estimate
    heldout: Estimate
    excess: Estimate
    area: Estimate
    heldout_area: Estimate
    area_excess: Estimate


@dataclass(frozen=True, eq=False)
class TableResult(Result):
    """Hits on training rows and on held-out rows. ``sidepipe.compare`` makes it of tables.

    It has the attributes of ``Result``, in which images are rows, and ``pairs`` is empty.

    Attributes:
        exact: generated rows that are equal to a training row in every column.
        exact_heldout: generated rows that are equal to one of equally many held-out rows.
        exact_excess: the difference as a share of the generated rows.
        closer: the share of generated rows that are closer to training rows than to equally many
            held-out rows; a tie counts one half. It is near 0.5 for a model that copies nothing.
        ratio: the published measure, with its normalization by query.
        scaled_ratio: the same measure, with each numeric column in units of its range.
        rows: a data frame with a line per generated row: ``row`` (from 1), ``hit``, ``exact``,
            ``train_row`` and ``distance`` of the nearest training row, ``heldout_row`` and
            ``heldout_distance``, ``closer_to_train``, ``ratio`` and ``scaled_ratio`` (of at most
            2,000 rows, missing in others).
    """

    exact: int
    exact_heldout: float
    exact_excess: Estimate
    closer: Estimate
    ratio: Ratio
    scaled_ratio: Ratio
    rows: pd.DataFrame = field(repr=False)
    _real: Mapping[str, pd.DataFrame] = field(repr=False)

    def table(self) -> str:
        """The finding, the numbers with their intervals in plain text, and what a hit is."""
        from sidepipe.api.table_saving import table

        return table(self)

    def _page(self, title: str) -> str:
        from sidepipe.api.table_saving import page

        return page(self, title)

    def save(self, folder: str | Path, **arguments: object) -> Path:
        """Write the whole result: report.html, rows.csv and result.json.

        ``rows.csv`` is ``rows``. ``result.json`` has every number with its interval, versions, the
        seed, and the SHA-256 of the rows that were compared.

        Args:
            folder: a new or empty folder, which is made.
            arguments: further entries of ``result.json``, such as how the rows were made.

        Returns:
            The folder.

        Raises:
            FileExistsError: where the folder holds files.
        """
        from sidepipe.api.table_saving import save

        return save(self, as_path("folder", folder), arguments)

    def _numbers(self) -> dict[str, Any]:
        """The measures that images do not have, as plain numbers."""
        from dataclasses import asdict

        names = ("exact_excess", "closer", "ratio", "scaled_ratio")
        measures = {name: asdict(getattr(self, name)) for name in names}
        return {"exact": self.exact, "exact_heldout": self.exact_heldout, **measures}
