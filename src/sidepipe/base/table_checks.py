"""Checks across tables: row numbers, one category in two notations, and categories of one table.

Each of these hides copies, because equal records then differ in a column.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from sidepipe.base.settings import require
from sidepipe.base.tables import EXACT_BELOW, Schema, parsed, texts_of

if TYPE_CHECKING:
    import pandas as pd

FEW_ROWS = 20
# Whole numbers that are drawn at random are all different with a chance of exp(-10).
MANY_REPEATS = 10
MOST_UNLIKE = 0.05  # of the rows of a table


def require_no_index(column: str, values: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where a column numbers the rows: it hides copies, or makes rows alike.

    values: numbers of the column by table, nan for missing ones.
    """
    for name, found in values.items():
        where, rule = f"column {column!r} of {name}", "a column of values"
        text = "row numbers or an id: different whole numbers, close together"
        remedy = f"remove it, or set kinds.{column}=numeric if it is none"
        require(not _is_index(found), where, rule, text, remedy)


def _is_index(values: np.ndarray) -> bool:
    """Whether different whole numbers lie so densely that random ones would repeat."""
    present = np.unique(values[~np.isnan(values)])
    n = len(present)
    if n <= FEW_ROWS or n < (~np.isnan(values)).sum() or (present % 1).any():
        return False
    if present[-1] - present[0] > EXACT_BELOW:
        return False
    step = np.gcd.reduce(np.diff(present).astype(np.int64))
    places = (present[-1] - present[0]) / step + 1
    return bool(n * n / 2 / places >= MANY_REPEATS)


def require_one_notation(frames: Mapping[str, pd.DataFrame], schema: Schema) -> None:
    """Raises ValueError where tables write the same categories differently, as true and True."""
    for column in schema.columns:
        if column.kind == "numeric":
            continue
        counts = {n: texts_of(frame[column.name]).value_counts() for n, frame in frames.items()}
        folds = {
            n: dict(zip(own.index, _folded(own.index), strict=True)) for n, own in counts.items()
        }
        for one, other in permutations(counts, 2):
            texts = {fold: text for text, fold in folds[other].items()}
            alone = {text: fold for text, fold in folds[one].items() if text not in folds[other]}
            twins = {text: texts[fold] for text, fold in alone.items() if fold in texts}
            if counts[one][list(twins)].sum() > MOST_UNLIKE * counts[one].sum():
                text = next(iter(twins))
                rule, found = f"written alike in {one} and {other}", f"{text} and {twins[text]}"
                where, remedy = f"categories of column {column.name!r}", "write them in one way"
                require(False, where, rule, found, remedy)


def _folded(texts: Any) -> list[str]:
    """Texts without their notation: case, spaces and forms of letters; numbers for 01 and true."""
    found: list[str] = []
    for text, number in zip(texts, parsed(list(texts)), strict=True):
        plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        plain = {"true": "1", "false": "0"}.get(plain, plain)
        found.append(f"{number:.17g}" if np.isfinite(number) else plain)
    return found


def doubts(rows: Mapping[str, pd.DataFrame], schema: Schema, given: Collection[str]) -> list[str]:
    """Warnings of columns that may hide copies. rows: in the form of `conform`."""
    found = []
    for column in schema.columns:
        values = {name: frame[column.name].dropna() for name, frame in rows.items()}
        if column.kind != "numeric":
            found += _apart(column.name, values)
        elif column.name not in given and all(_rises(one) for one in values.values()):
            found.append(
                f"column {column.name!r} has whole numbers that rise from row to row in each "
                "table: if it is an id or numbers the rows, it hides copies, so remove it"
            )
    return found


def _rises(values: Any) -> bool:
    array = values.to_numpy()
    return len(array) > FEW_ROWS and not (array % 1).any() and bool((np.diff(array) > 0).all())


def _apart(name: str, values: Mapping[str, Any]) -> list[str]:
    (first, one), *others = [(table, set(texts)) for table, texts in values.items()]
    return [
        f"column {name!r} has no category that both {first} and {table} have: no row of one is "
        "a copy of a row of the other; are its values written alike?"
        for table, other in others
        if one and other and not one & other
    ]
