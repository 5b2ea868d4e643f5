"""A section of the report: its part of the page, of the files and of the terminal's text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sidepipe.stages.report.tables import Table

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """drawings: SVG and PDF of each figure. content: other values for the page's templates.

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
    """The rows of a table as dictionaries by column."""
    rows: Any = table.to_dict("records")
    return rows
