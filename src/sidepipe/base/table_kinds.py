"""The kinds of a table's columns, detected or given, and refusals of columns of no use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sidepipe.base.settings import require, require_known
from sidepipe.base.table_checks import require_no_index, require_one_notation
from sidepipe.base.tables import (
    Column,
    Kind,
    Schema,
    numbers,
    parsed,
    plain_number,
    require_columns,
    require_names,
    separated,
    texts_of,
)

if TYPE_CHECKING:
    import pandas as pd

Kinds = Mapping[str, str | Sequence[object]]
KINDS = ("numeric", "categorical", "ordinal")
FEW = 20  # different whole numbers are ranks, or classes in the target column
MOST_CATEGORIES = 1000  # each is an entry of the encoding
MOST_DECIMALS = 12
NEARLY_ALL = 0.9
DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{2}|\d{4}))([T ].*)?")


def schema_of(
    frames: Mapping[str, pd.DataFrame], *, target: str | None = None, kinds: Kinds | None = None
) -> Schema:
    """The columns of all frames together.

    Text is categorical, and so are true and false, and whole numbers with at most 2 values. Whole
    numbers with at most `FEW` values are ordinal, or categorical in the target column; so is an
    ordered category of pandas. All other numbers are numeric. kinds: the kind of columns by name,
    or the values of an ordinal column in their order. Raises ValueError where frames have different
    columns, and for columns that no comparison can use.
    """
    import pandas as pd

    (first, frame), *others = frames.items()
    for name, one in frames.items():
        require_names(name, one)
    for name, other in others:
        require_columns(name, other, first, [str(column) for column in frame.columns])
    frames = {name: one.rename(columns=str) for name, one in frames.items()}
    whole = pd.concat(frames.values(), ignore_index=True)
    if target is not None:
        require_known("target", target, whole.columns)
    for name in kinds or {}:
        require_known("kinds", name, whole.columns)
    columns = tuple(
        _column(frames, whole[name], (kinds or {}).get(name), name == target)
        for name in whole.columns
    )
    schema = Schema(columns, target)
    require_one_notation(frames, schema)
    varied = any(texts_of(whole[name]).nunique(dropna=False) > 1 for name in whole.columns)
    rule = "columns with different values"
    require(varied, " and ".join(frames), rule, "one value in every column")
    return schema


def _column(frames: Mapping[str, pd.DataFrame], values: Any, given: Any, is_target: bool) -> Column:
    """The column of `values`, which are those of all frames."""
    import pandas as pd

    name = str(values.name)
    texts = texts_of(values)
    present = texts.dropna()
    where = f"column {name!r}"
    require(len(present) > 0, where, "a column with values", "missing values alone", "remove it")
    missing = len(present) < len(texts)
    distinct = present.unique().tolist()
    if given is not None and not isinstance(given, str):
        order = tuple(texts_of(pd.Series(list(given), dtype=object)).dropna())
        unlisted = sorted(set(distinct) - set(order))
        require(not unlisted, f"kinds[{name!r}]", "all values of the column, in order", unlisted)
        return Column(name, "ordinal", order, missing=missing)
    if given is not None:
        require_known(f"kinds[{name!r}]", given, KINDS)
    is_number = not np.isnan(parsed(distinct)).any()
    if given is None and not is_number:
        _require_text(name, frames)
    ordered = isinstance(values.dtype, pd.CategoricalDtype) and bool(values.dtype.ordered)
    kind: Any = given or _detected(values, distinct, is_number, ordered, is_target)
    if kind == "numeric":
        found = {table: numbers(table, frame[name]) for table, frame in frames.items()}
        together = np.concatenate(list(found.values()))
        if given is None:
            require_no_index(name, {**found, " and ".join(frames): together})
        return Column(name, kind, decimals=_decimals(together), missing=missing)
    if ordered:
        categories = [text for text in texts_of(values.cat.categories.to_series()) if text]
    elif is_number:
        categories = sorted(distinct, key=float)
    else:
        rule, remedy = "a column with an order", "give its values in order, as kinds={...: [a, b]}"
        require(kind != "ordinal", where, rule, "text", remedy)
        categories = sorted(distinct)
    _require_few(where, categories, len(present))
    return Column(name, kind, tuple(categories), missing=missing)


def _require_few(where: str, categories: Sequence[str], num_values: int) -> None:
    """Raises ValueError for names, which are all different, and for too many categories."""
    names = len(categories) == num_values > FEW
    rule = f"a column with at most {MOST_CATEGORIES} categories, fewer than rows"
    found, remedy = f"{len(categories)} categories", "remove the column, or group its values"
    if all(DATE.fullmatch(text) for text in categories):
        found = f"{len(categories)} dates, such as {categories[0]}"
        remedy = "write a number, such as the year or the days since a date, or remove the column"
    require(len(categories) <= MOST_CATEGORIES and not names, where, rule, found, remedy)


def _detected(
    values: pd.Series, distinct: list[str], is_number: bool, ordered: bool, is_target: bool
) -> Kind:
    if ordered:
        return "ordinal"
    if not is_number or values.dtype == bool:
        return "categorical"
    if len(distinct) > FEW or not all(float(text).is_integer() for text in distinct):
        return "numeric"
    return "categorical" if is_target or len(distinct) <= 2 else "ordinal"


def _require_text(name: str, frames: Mapping[str, pd.DataFrame]) -> None:
    """Raises ValueError for numbers with separators, and where most values are numbers."""
    texts = {table: texts_of(frame[name]) for table, frame in frames.items()}
    present = [text for some in texts.values() for text in some.dropna()]
    wrong = np.isnan(parsed(present))
    written = [text for text, is_wrong in zip(present, wrong, strict=True) if is_wrong]
    number = [text for text in written if separated(text)]
    share = (len(present) - len(written) + len(number)) / len(present)
    if number and share >= NEARLY_ALL:
        clear = next((text for text in number if " or " not in plain_number(text)), number[0])
        rule = "numbers with a decimal point and no other separator"
        remedy = f"write {plain_number(clear)}, or set kinds.{name}=categorical"
        require(False, f"column {name!r}", rule, clear, remedy)
    if wrong.mean() < 0.5:
        known = set(written)
        table = next(table for table, some in texts.items() if some.isin(known).any())
        row = int(texts[table].isin(known).to_numpy().argmax())
        where = f"column {name!r} of {table}, row {row + 1}"
        remedy = f"leave missing values empty, or set kinds.{name}=categorical"
        require(False, where, "a number, as in most rows", texts[table].iloc[row], remedy)


def _decimals(values: np.ndarray) -> int | None:
    """The fewest decimals that hold all values; None where more than `MOST_DECIMALS`."""
    present = values[~np.isnan(values)]
    for decimals in range(MOST_DECIMALS + 1):
        if np.array_equal(np.round(present, decimals), present):
            return decimals
    return None


def widened(schema: Schema, name: str, frame: pd.DataFrame) -> Schema:
    """The schema with the categories and the missing values that a frame adds to it.

    Numbers among the categories of an ordinal column stay in order. ValueError for text in one.
    name: of the frame, in messages.
    """
    require_names(name, frame)
    frame = frame.rename(columns=str)
    require_columns(name, frame, "the other tables", schema.names)
    return replace(
        schema,
        columns=tuple(_widened(column, name, frame[column.name]) for column in schema.columns),
    )


def _widened(column: Column, name: str, values: Any) -> Column:
    texts = texts_of(values)
    missing = column.missing or bool(texts.isna().any())
    if column.kind == "numeric":
        return replace(column, missing=missing)
    added = sorted(set(texts.dropna()) - set(column.categories))
    categories = [*column.categories, *added]
    if column.kind == "ordinal" and added:
        unordered = np.isnan(parsed(categories)).any()
        rule, remedy = "values of the real rows, in their order", "correct them"
        require(not unordered, f"column {column.name!r} of {name}", rule, added, remedy)
        categories.sort(key=float)
    return replace(column, categories=tuple(categories), missing=missing)
