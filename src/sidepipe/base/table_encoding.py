"""Rows of a table as vectors, and back: the encoding that models and distances of tables use.

A numeric column is one entry, the quantile of the value in [-1, 1]: ties have their mid-rank, the
smallest fitted value is -1, the largest 1, and values between fitted ones are interpolated. An
ordinal column is one entry, its evenly spaced rank in [-1, 1]. Where a column has missing values, a
second entry is 1 for a missing value, whose first entry is 0, and -1 otherwise. A categorical
column has an entry per category, and one for a missing value; two different categories are at the
distance `MISMATCH`, which is that of the smallest and the largest value of a numeric column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32

from sidepipe.base.files import whole_file, write_json
from sidepipe.base.settings import require
from sidepipe.base.tables import Column, Schema

if TYPE_CHECKING:
    import pandas as pd

MISMATCH = 2.0
ONE_HOT = MISMATCH / 8**0.5  # entries are this or its negative
EXACT = 1e-6  # in positions: what float32 rounds a fitted value to
FILES = ("schema.json", "encoding.safetensors")
Map = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Encoding:
    """maps: of each numeric column, its different fitted values and their positions, ascending."""

    schema: Schema
    maps: Mapping[str, Map]

    @classmethod
    def fit(cls, frame: pd.DataFrame, schema: Schema) -> Encoding:
        """The encoding whose quantiles are those of `frame`, rows in the form of `conform`."""
        numeric = [column.name for column in schema.columns if column.kind == "numeric"]
        return cls(schema, {name: _fitted(name, frame[name].to_numpy()) for name in numeric})

    @property
    def slices(self) -> dict[str, slice]:
        """The entries of each column."""
        ends = np.cumsum([_width(column) for column in self.schema.columns]).tolist()
        starts = [0, *ends[:-1]]
        return dict(zip(self.schema.names, map(slice, starts, ends), strict=True))

    @property
    def width(self) -> int:
        return sum(_width(column) for column in self.schema.columns)

    def encode(self, frame: pd.DataFrame) -> Float32[np.ndarray, "n d"]:
        """Rows in the form of `conform`, encoded.

        Beyond the fitted values the position of a number grows linearly, by 2 per range of them.
        """
        parts = [self._entries(column, frame[column.name]) for column in self.schema.columns]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _entries(self, column: Column, values: Any) -> np.ndarray:
        codes = column.ranks(values)
        if column.kind == "numeric":
            return _masked(column, _position(self.maps[column.name], codes))
        if column.kind == "ordinal":
            return _masked(column, _spaced(codes, len(column.categories)))
        choices = np.arange(_width(column))
        chosen = np.where(np.isnan(codes), len(column.categories), codes)
        return np.where(chosen[:, None] == choices, ONE_HOT, -ONE_HOT)

    def decode(self, rows: Float[np.ndarray, "n *d"]) -> pd.DataFrame:
        """The nearest rows of the table: values within the fitted range, at their precision.

        rows: (n, d), or as images of one pixel.
        A row within the fitted range comes back as it was, to the precision of float32 between
        fitted values. Raises ValueError for entries that are not finite.
        """
        import pandas as pd

        require(bool(np.isfinite(rows).all()), "rows", "finite", "nan or infinite entries")
        rows, columns = np.asarray(rows).reshape(len(rows), -1), {}
        for column in self.schema.columns:
            values = self._values(column, rows[:, self.slices[column.name]])
            columns[column.name] = pd.Series(values, dtype=values.dtype)  # text as objects
        return pd.DataFrame(columns)

    def _values(self, column: Column, entries: np.ndarray) -> np.ndarray:
        entries = entries.astype(np.float64)
        if column.kind == "categorical":
            codes = entries.argmax(axis=1)
            return np.array([*column.categories, None], object)[codes]
        gone = entries[:, 1] > 0 if column.missing else np.zeros(len(entries), bool)
        if column.kind == "numeric":
            values = _value(self.maps[column.name], entries[:, 0], column.decimals)
            return np.where(gone, np.nan, values)
        last = len(column.categories) - 1
        codes = np.rint((np.clip(entries[:, 0], -1, 1) + 1) / 2 * last).astype(np.int64)
        values = np.array(column.categories, object)[codes]
        values[gone] = None
        return values

    def project(self, rows: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
        """The nearest vectors of rows of the table."""
        return self.encode(self.decode(rows))

    def save(self, folder: Path) -> None:
        """Writes schema.json and encoding.safetensors."""
        from safetensors.numpy import save_file

        write_json(folder / "schema.json", self.schema.to_json())
        arrays = {
            f"{self.schema.names.index(name)}.{part}": array
            for name, pair in self.maps.items()
            for part, array in zip(("values", "positions"), pair, strict=True)
        }
        with whole_file(folder / "encoding.safetensors") as temporary:
            save_file(arrays, temporary)

    @classmethod
    def load(cls, folder: Path) -> Encoding:
        """The encoding that `save` wrote."""
        from safetensors.numpy import load_file

        schema = Schema.from_json(json.loads((folder / "schema.json").read_text()))
        arrays: dict[str, Any] = load_file(folder / "encoding.safetensors")
        numeric = [(i, c.name) for i, c in enumerate(schema.columns) if c.kind == "numeric"]
        return cls(
            schema, {name: (arrays[f"{i}.values"], arrays[f"{i}.positions"]) for i, name in numeric}
        )


def _width(column: Column) -> int:
    if column.kind == "categorical":
        return len(column.categories) + column.missing
    return 1 + column.missing


def _fitted(name: str, values: np.ndarray) -> Map:
    present = values[~np.isnan(values)]
    remedy = "fit rows that have values in this column"
    require(len(present) > 0, f"column {name!r}", "with values to fit", "none", remedy)
    distinct, counts = np.unique(present, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    span = middle[-1] - middle[0]
    positions = 2 * (middle - middle[0]) / span - 1 if span > 0 else np.zeros(1)
    return distinct, positions


def _range(values: np.ndarray) -> float:
    """The range of the fitted values, or a scale for one value."""
    return float(values[-1] - values[0]) or max(1.0, abs(float(values[0])))


def _position(fitted: Map, values: np.ndarray) -> np.ndarray:
    known, positions = fitted
    beyond = values - np.clip(values, known[0], known[-1])
    return np.interp(values, known, positions) + 2 * beyond / _range(known)


def _value(fitted: Map, position: np.ndarray, decimals: int | None) -> np.ndarray:
    known, positions = fitted
    values = np.interp(position, positions, known)
    right = np.searchsorted(positions, position).clip(1, max(1, len(known) - 1))
    for near in (right - 1, right.clip(max=len(known) - 1)):
        values = np.where(np.abs(positions[near] - position) < EXACT, known[near], values)
    return values if decimals is None else np.round(values, decimals)


def _spaced(codes: np.ndarray, count: int) -> np.ndarray:
    return 2 * codes / (count - 1) - 1 if count > 1 else codes


def _masked(column: Column, entries: np.ndarray) -> np.ndarray:
    """The entries of a numeric or ordinal column, with the mask where it has missing values."""
    if not column.missing:
        return entries[:, None]
    gone = np.isnan(entries)
    return np.stack([np.where(gone, 0.0, entries), np.where(gone, 1.0, -1.0)], axis=1)
