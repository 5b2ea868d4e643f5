"""Tables of rows: reading CSV and Parquet files, the kinds of their columns, and their checks.

A numeric column holds float64, with nan for a missing value. A categorical or ordinal column holds
text, with None for a missing value; whole numbers among its texts have no ".0".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sidepipe.base.files import whole_file
from sidepipe.base.records import csv_lines, text_in
from sidepipe.base.settings import require

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["numeric", "categorical", "ordinal"]
SUFFIXES = (".csv", ".parquet")
# Texts that stand for no value, in lower case.
MISSING = {"", "?", "na", "n/a", "nan", "null", "<na>"}
_WHOLE = re.compile(r"([+-]?\d+)\.0*")


@dataclass(frozen=True)
class Column:
    """One column. categories: the texts of a categorical or ordinal column, in order.

    decimals: of the values of a numeric column, None for float64. missing: whether values may be.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    decimals: int | None = None
    missing: bool = False


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in order, and the name of the one to predict, if any."""

    columns: tuple[Column, ...]
    target: str | None = None

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Schema:
        columns = [{**one, "categories": tuple(one["categories"])} for one in content["columns"]]
        return cls(tuple(Column(**one) for one in columns), content["target"])


def read_table(path: Path) -> pd.DataFrame:
    """The columns of a CSV file, all as text, or of a Parquet file.

    Raises FileNotFoundError without the file, ImportError for Parquet without pyarrow, and
    ValueError for another suffix, lines of unequal length, columns without a name or of one name.
    """
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; remedy: check the path")
    suffix = path.suffix.lower()
    require(suffix in SUFFIXES, str(path), f"a file of {' or '.join(SUFFIXES)}", suffix)
    if suffix == ".csv":
        frame = frame_of(path, text_in(path))
    else:
        try:
            frame = pd.read_parquet(path)
        except ImportError:
            raise ImportError(
                f"{path} needs pyarrow; remedy: pip install -e '.[tables]', or save it as CSV"
            ) from None
    require_names(str(path), frame)
    return frame


def frame_of(path: Path, text: str, names: Sequence[str] | None = None) -> pd.DataFrame:
    """The columns of CSV text, as text. names: of the columns, None where its first line has them.

    path: for messages.
    """
    import pandas as pd

    lines = [values for _, values in csv_lines(path, text)]
    if names is None:
        names, *lines = lines or [[]]
    fits = not lines or len(lines[0]) == len(names)
    require(fits, str(path), f"a table with {len(names)} columns", lines and len(lines[0]))
    return pd.DataFrame(lines, columns=[name.strip() for name in names], dtype=object)


def require_names(name: str, frame: pd.DataFrame) -> None:
    names = [str(column) for column in frame.columns]
    require(len(frame) > 0, name, "a table with rows below its header", f"{len(frame)} rows")
    index = "a table is written without its index by to_csv(..., index=False)"
    require("" not in names, name, "a table with a name for each column", names, index)
    double = sorted({one for one in names if names.count(one) > 1})
    require(not double, name, "a table with different names of columns", double, "rename one")


def texts_of(values: Any) -> pd.Series:
    """The values as text, None for missing ones; whole numbers have no ".0"."""
    import pandas as pd

    known: dict[Any, str | None] = {}
    found: list[str | None] = []
    for value in values.astype(object):
        if value not in known:
            known[value] = _text(value)
        found.append(known[value])
    return pd.Series(found, index=values.index, dtype=object)


def _text(value: Any) -> str | None:
    text = str(value).strip()
    if value is None or text.lower() in MISSING or text == "NaT":
        return None
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def parsed(texts: Any) -> np.ndarray:
    """Texts as float64, nan for those that are no number."""
    import pandas as pd

    found: Any = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce")
    return found.to_numpy(np.float64)


def numbers(where: str, values: Any) -> np.ndarray:
    """The values as float64, nan for missing ones; ValueError for text and infinite numbers."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values.dtype):
        found = values.to_numpy(np.float64, na_value=np.nan)
    else:
        texts = texts_of(values)
        found = parsed(texts)
        bad = np.flatnonzero(np.isnan(found) & texts.notna().to_numpy())
        if len(bad) > 0:
            name = f"column {values.name!r} of {where}, row {bad[0] + 1}"
            require(False, name, "a number", texts.iloc[bad[0]], "correct or empty it")
    infinite = np.flatnonzero(np.isinf(found))
    if len(infinite) > 0:
        name = f"column {values.name!r} of {where}, row {infinite[0] + 1}"
        require(False, name, "a finite number", str(found[infinite[0]]), "correct or empty it")
    return found


def require_columns(name: str, frame: pd.DataFrame, first: str, expected: list[str]) -> None:
    names = [str(column) for column in frame.columns]
    lacks, more = (sorted(set(expected) - set(names)), sorted(set(names) - set(expected)))
    difference = [f"without {', '.join(lacks)}"] if lacks else []
    difference += [f"with {', '.join(more)}"] if more else []
    remedy = "rename, add or remove columns, or check that it has a header"
    require(not difference, name, f"a table with the columns of {first}", difference, remedy)


def conform(name: str, frame: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """`frame` with the columns, order and types of the schema.

    Raises ValueError for other columns, text in a numeric column, a category that the schema does
    not have, and a missing value in a column without any. name: of the frame, in messages.
    """
    import pandas as pd

    require_names(name, frame)
    frame = frame.rename(columns=str)
    require_columns(name, frame, "the other tables", schema.names)
    values: dict[str, Any] = {}
    for column in schema.columns:
        if column.kind == "numeric":
            values[column.name] = numbers(name, frame[column.name])
            gone = np.isnan(values[column.name])
        else:
            texts = texts_of(frame[column.name])
            gone = texts.isna().to_numpy()
            unseen = ~gone & ~texts.isin(column.categories).to_numpy()
            _require_none(name, column, unseen, texts, "a known category")
            values[column.name] = texts.reset_index(drop=True)  # pandas 3 would change arrays
        if not column.missing:
            _require_none(name, column, gone, frame[column.name], "a value, as in other tables")
    return pd.DataFrame(values)


def _require_none(name: str, column: Column, wrong: np.ndarray, values: Any, rule: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        found = f"{values.iloc[row]} ({int(wrong.sum())} rows)"
        known = f"known: {', '.join(column.categories[:5])}; " if column.categories else ""
        remedy = f"{known}correct them, or on_unseen=keep compares them as they are"
        require(False, f"column {column.name!r} of {name}, row {row + 1}", rule, found, remedy)


def write_csv(path: Path, frame: pd.DataFrame, schema: Schema) -> None:
    """Writes conformed rows, numbers at the precision of their columns, missing values empty."""
    written = frame.copy()
    for column in schema.columns:
        if column.kind == "numeric":
            values = frame[column.name].to_numpy()
            written[column.name] = [_number(value, column.decimals) for value in values]
    with whole_file(path) as temporary:
        written.to_csv(temporary, index=False)


def _number(value: float, decimals: int | None) -> str:
    if np.isnan(value):
        return ""
    return repr(float(value)) if decimals is None else f"{value:.{decimals}f}"
