"""The kinds of a table's columns, detected or given, and refusals of columns of no use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sidepipe.base.settings import require, require_known
from sidepipe.base.tables import (
    Column,
    Kind,
    Schema,
    numbers,
    parsed,
    require_columns,
    require_names,
    texts_of,
)

if TYPE_CHECKING:
    import pandas as pd

Kinds = Mapping[str, str | Sequence[object]]
KINDS = ("numeric", "categorical", "ordinal")
FEW = 20  # different whole numbers are ranks, or classes in the target column
MOST_CATEGORIES = 1000  # each is an entry of the encoding
MOST_DECIMALS = 12


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
    whole = pd.concat([one.rename(columns=str) for one in frames.values()], ignore_index=True)
    if target is not None:
        require_known("target", target, whole.columns)
    for name in kinds or {}:
        require_known("kinds", name, whole.columns)
    columns = tuple(
        _column(name, whole[name], (kinds or {}).get(name), name == target)
        for name in whole.columns
    )
    for name, one in frames.items():
        _require_no_index(name, one.rename(columns=str), columns)
    varied = any(texts_of(whole[name]).nunique(dropna=False) > 1 for name in whole.columns)
    rule = "columns with different values"
    require(varied, " and ".join(frames), rule, "one value in every column")
    return Schema(columns, target)


def _column(name: str, values: Any, given: Any, is_target: bool) -> Column:
    import pandas as pd

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
    ordered = isinstance(values.dtype, pd.CategoricalDtype) and bool(values.dtype.ordered)
    kind: Any = given or _detected(values, distinct, is_number, ordered, is_target)
    if kind == "numeric":
        return Column(name, kind, decimals=_decimals(numbers(name, values)), missing=missing)
    if ordered:
        categories = [text for text in texts_of(values.cat.categories.to_series()) if text]
    elif is_number:
        categories = sorted(distinct, key=float)
    else:
        rule, remedy = "a column with an order", "give its values in order, as kinds={...: [a, b]}"
        require(kind != "ordinal", where, rule, "text", remedy)
        categories = sorted(distinct)
    if given is None and not is_number:
        _require_text(where, present)
    names = len(categories) == len(present) > FEW
    fits = len(categories) <= MOST_CATEGORIES and not names
    rule = f"a column with at most {MOST_CATEGORIES} categories, fewer than rows"
    require(fits, where, rule, len(categories), "remove the column, or group its values")
    return Column(name, kind, tuple(categories), missing=missing)


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


def _require_text(where: str, present: Any) -> None:
    """Raises ValueError where most values are numbers, and some are text."""
    wrong = np.isnan(parsed(present))
    remedy = "leave missing values empty, or give its kind, as kinds={...: categorical}"
    text = present.iloc[int(wrong.argmax())]
    require(wrong.mean() >= 0.5, where, "a column of numbers or of text", text, remedy)


def _require_no_index(name: str, frame: pd.DataFrame, columns: Sequence[Column]) -> None:
    """Raises ValueError where a column numbers the rows: rows of two files would match by it."""
    for column in columns:
        if column.kind == "numeric" and len(frame) > FEW:
            steps = np.diff(numbers(name, frame[column.name]))
            rule, remedy = "a column of values", "remove the column"
            is_index = bool(np.all(steps == 1))
            require(not is_index, f"column {column.name!r} of {name}", rule, "row numbers", remedy)


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
