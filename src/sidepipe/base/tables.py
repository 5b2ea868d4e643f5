"""Tables of rows: reading CSV and Parquet files, the kinds of their columns, and their checks.

A numeric column holds float64, with nan for a missing value. A categorical or ordinal column holds
text, with None for a missing value; whole numbers among its texts have no ".0".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sidepipe.base.files import whole_file
from sidepipe.base.records import csv_lines, text_in
from sidepipe.base.settings import require

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["numeric", "categorical", "ordinal"]
SUFFIXES = (".csv", ".tsv", ".parquet")
# Texts that stand for no value, in lower case.
MISSING = {"", "?", "na", "n/a", "nan", "null", "<na>"}
_WHOLE = re.compile(r"([+-]?\d+)(\.0*)?")
EXACT_BELOW = 2**53  # float64 does not hold all larger whole numbers
# 100,05 and 1.234,5 and 1,234.5 and 1 234: groups of digits, and a decimal comma or point.
_GROUPS = r"\d{1,3}(?P<group>[.,' \u00a0\u202f])\d{3}(?:(?P=group)\d{3})*(?:(?!(?P=group))[.,]\d+)?"
_SEPARATED = re.compile(rf"[+-]?(?:{_GROUPS}|\d*,\d+)")


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

    def ranks(self, values: Any) -> np.ndarray:
        """Numbers as they are, and places among the categories; float64, nan for missing values."""
        if self.kind == "numeric":
            return values.to_numpy(np.float64)
        place = {text: float(i) for i, text in enumerate(self.categories)}
        return values.map(place).to_numpy(np.float64)


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in order, and the name of the one to predict, if any."""

    columns: tuple[Column, ...]
    target: str | None = None

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def has_classes(self) -> bool:
        """Whether the target has classes: it is a column of categories or of ordinal values."""
        return any(c.name == self.target and c.kind != "numeric" for c in self.columns)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Schema:
        columns = [{**one, "categories": tuple(one["categories"])} for one in content["columns"]]
        return cls(tuple(Column(**one) for one in columns), content["target"])


def read_table(path: Path) -> pd.DataFrame:
    """The columns of a CSV or TSV file, all as text, or of a Parquet file.

    Raises FileNotFoundError without the file, ImportError for Parquet without pyarrow, and
    ValueError for another suffix, lines of unequal length, columns without a name or of one name.
    """
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; remedy: check the path")
    suffix = path.suffix.lower()
    rule = f"a file of {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    require(suffix in SUFFIXES, str(path), rule, suffix)
    if suffix != ".parquet":
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
    levels, remedy = frame.columns.nlevels, "set frame.columns to one name per column"
    require(levels == 1, name, "a table with one name per column", f"{levels} levels", remedy)
    names = [str(column) for column in frame.columns]
    require(len(frame) > 0, name, "a table with rows below its header", f"{len(frame)} rows")
    index = "a table is written without its index by to_csv(..., index=False)"
    require("" not in names, name, "a table with a name for each column", names, index)
    double = sorted({one for one in names if names.count(one) > 1})
    rule, found = "a table whose columns have different names", f"several {', '.join(double)}"
    require(not double, name, rule, found, "rename or remove them")


def texts_of(values: Any) -> pd.Series:
    """The values as text, None for missing ones; whole numbers have no ".0", and no "-0"."""
    import pandas as pd

    known: dict[Any, str | None] = {}
    found: list[str | None] = []
    for row, value in enumerate(values.astype(object)):
        key = type(value), value  # True is not 1
        try:
            if key not in known:
                known[key] = _text(value)
        except TypeError:
            name = f"column {values.name!r}, row {row + 1}"
            rule, kind = "a number, a text or empty", type(value).__name__
            require(False, name, rule, f"a {kind}", "make columns of its parts, or remove it")
        found.append(known[key])
    return pd.Series(found, index=values.index, dtype=object, name=values.name)


def _text(value: Any) -> str | None:
    text = unicodedata.normalize("NFC", str(value).strip())
    if value is None or text.lower() in MISSING or text == "NaT":
        return None
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        return text
    return "0" if whole[1] in ("-0", "+0") else whole[1]


def separated(text: str) -> bool:
    """Whether a text is a number with a decimal comma or with separators of thousands."""
    return _SEPARATED.fullmatch(text) is not None


def plain_number(text: str) -> str:
    """How to write a number of `separated`; both readings of 1,234."""
    marks = [character for character in text if not character.isdigit() and character not in "+-"]
    whole, _, rest = text.rpartition(marks[-1])
    digits = re.sub(r"[^\d+-]", "", whole)
    if (len(marks) > 1 and len(set(marks)) == 1) or marks[-1] not in ",.":
        return digits + rest
    unclear = len(marks) == 1 and len(rest) == 3
    return f"{digits}.{rest}" + (f" or {digits}{rest}" if unclear else "")


def parsed(texts: Any) -> np.ndarray:
    """Texts as float64, nan for those that are no number."""
    import pandas as pd

    found: Any = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce")
    return found.to_numpy(np.float64)


def numbers(where: str, values: Any) -> np.ndarray:
    """The values as float64, nan for missing ones.

    ValueError for text, infinite numbers, and whole numbers that float64 would round.
    """
    import pandas as pd

    given = values
    if pd.api.types.is_numeric_dtype(values.dtype):
        found = values.to_numpy(np.float64, na_value=np.nan)
    else:
        given = texts_of(values)
        found = parsed(given)
        _require_no(np.isnan(found) & given.notna().to_numpy(), where, given, "a number")
    infinite = np.isinf(found)
    _require_no(infinite, where, given, "a finite number")
    rounded = np.zeros(len(found), bool)
    for row in np.flatnonzero(np.abs(found) > EXACT_BELOW):
        rounded[row] = _is_rounded(str(given.iloc[row]), float(found[row]))
    remedy = f"remove the column if it is an id, or set kinds.{values.name}=categorical"
    _require_no(rounded, where, given, "a number that float64 holds exactly", remedy)
    return found + 0.0  # -0.0 is 0.0


def _is_rounded(text: str, number: float) -> bool:
    """Whether float64 holds neither the number of the text nor all its digits."""
    return Decimal(text) not in (Decimal(number), Decimal(repr(number)))


def _require_no(wrong: np.ndarray, where: str, values: Any, rule: str, remedy: str = "") -> None:
    if wrong.any():
        row = int(wrong.argmax())
        value = str(values.iloc[row])
        write = f"write {plain_number(value)}" if separated(value) else "correct or empty it"
        require(
            False, f"column {values.name!r} of {where}, row {row + 1}", rule, value, remedy or write
        )


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
            found = f"{texts.iloc[int(unseen.argmax())]} ({unseen.sum()} rows)"
            _require_none(name, column, unseen, "a known category", found)
            values[column.name] = texts.reset_index(drop=True)  # pandas 3 would change arrays
        if not column.missing:
            rule, found = "a value, as in all real rows", f"nothing in {gone.sum()} rows"
            _require_none(name, column, gone, rule, found)
    return pd.DataFrame(values)


def _require_none(name: str, column: Column, wrong: np.ndarray, rule: str, found: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        known = f"known: {', '.join(column.categories[:5])}; " if "category" in rule else ""
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
