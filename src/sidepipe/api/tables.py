"""Tables as arguments of `compare`: files or data frames, checked against the real rows."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.base.settings import require, require_known
from sidepipe.base.table_checks import doubts, require_no_index, require_one_notation
from sidepipe.base.table_kinds import Kinds, schema_of, widened
from sidepipe.base.tables import (
    SUFFIXES,
    Schema,
    conform,
    read_table,
    require_columns,
    require_names,
)

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.api.table_result import TableResult

log = logging.getLogger(__name__)

# Percentiles of the generated rows, two nearest training rows, and a threshold need so many.
LEAST = {"generated": 20, "train": 3, "heldout": 20}
NEEDED = {
    "train": "the rows that the generator was trained on",
    "heldout": (
        "rows of the same kind that the generator never saw; no count can be trusted without them, "
        "as they set the threshold of a hit"
    ),
}


@dataclass(frozen=True)
class Tables:
    """The rows of each argument in the form of `conform`, and where they come from.

    warnings: of columns that may hide copies.
    """

    rows: dict[str, pd.DataFrame]
    schema: Schema
    sources: dict[str, str]
    warnings: list[str]

    def summary(self, name: str) -> dict[str, object]:
        """Number and origin of the rows of an argument, and the SHA-256 of them as CSV."""
        rows = self.rows[name]
        text = rows.to_csv(index=False).encode()
        digest = hashlib.sha256(text).hexdigest()
        return {"source": self.sources[name], "num_rows": len(rows), "sha256": digest}


def is_table(value: object) -> bool:
    """Whether an argument is a data frame, or the name of a file that holds a table."""
    if isinstance(value, str | Path):
        return Path(value).suffix.lower() in SUFFIXES
    return type(value).__name__ == "DataFrame"


def compare_tables(
    given: Mapping[str, Any],
    false_positive_rate: float,
    on_duplicates: str,
    *,
    on_unseen: str,
    target: str | None,
    kinds: Kinds | None,
) -> TableResult:
    """The result of `sidepipe.compare` for tables. given: its first three arguments."""
    require_known("on_unseen", on_unseen, ["error", "keep"])
    tables = read_tables(given, on_unseen, target, kinds)
    log.info("%s", ", ".join(f"{len(rows):,} {name}" for name, rows in tables.rows.items()))

    from sidepipe.api.table_measuring import measured

    return measured(tables, false_positive_rate=false_positive_rate, on_duplicates=on_duplicates)


def read_tables(
    given: Mapping[str, Any], on_unseen: str, target: str | None, kinds: Kinds | None
) -> Tables:
    """The rows of `generated`, `train` and `heldout`; kinds and categories are those of real rows.

    on_unseen: "keep" adds the categories of generated rows that no real row has.
    """
    for name, meaning in NEEDED.items():
        if given[name] is None:
            raise ValueError(f"{name} is required: {meaning}; pass {name}=...")
    frames = {name: _frame(name, value) for name, value in given.items()}
    sources = {n: str(v) if isinstance(v, str | Path) else "frame" for n, v in given.items()}
    for name, least in LEAST.items():
        require(len(frames[name]) >= least, name, f">= {least} rows", len(frames[name]))
    real = {name: frames[name] for name in ("train", "heldout")}
    schema = schema_of(real, target=target, kinds=kinds)
    require_names("generated", frames["generated"])
    require_columns("generated", frames["generated"], "train", schema.names)
    named = {name: frame.rename(columns=str) for name, frame in frames.items()}
    require_one_notation(named, schema)
    if on_unseen == "keep":
        schema = widened(schema, "generated", frames["generated"])
    rows = {name: conform(name, frame, schema) for name, frame in frames.items()}
    for column in schema.columns:
        if column.kind == "numeric" and column.name not in (kinds or {}):
            require_no_index(column.name, {"generated": rows["generated"][column.name].to_numpy()})
    return Tables(rows, schema, sources, doubts(rows, schema, kinds or {}))


def _frame(name: str, value: Any) -> pd.DataFrame:
    rule = "a CSV or Parquet file or a DataFrame, as the generated rows"
    require(is_table(value), name, rule, str(value) if isinstance(value, Path) else value)
    return read_table(Path(value).expanduser()) if isinstance(value, str | Path) else value
