"""A section of the report: what it brings to the page, to the files beside it and to a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sidepipe.stages.report.tables import Table

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """drawings: SVG and PDF of each figure. content: what else the page's templates name.

    numbers: rows of a CSV, unrounded, by its name. text: for a terminal. summary: for the manifest.
    """

    tables: Sequence[Table]
    drawings: Mapping[str, dict[str, bytes]]
    content: Mapping[str, Any]
    numbers: Mapping[str, Rows]
    text: str
    summary: Mapping[str, Any]
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def rows_of(table: pd.DataFrame) -> Rows:
    """The rows of a table by column."""
    rows: Any = table.to_dict("records")
    return rows
