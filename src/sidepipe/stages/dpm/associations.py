"""How strongly the columns of a table depend on each other, and clusters of those that do.

Source: TabCutMixPlus (Fang et al., ICML 2025, arXiv 2412.11044): Pearson's correlation of two
numbers, Cramer's V of two categories, the correlation ratio of a number and a category, and
hierarchical clustering of 1 - |association|.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.base.tables import Column, Schema

APART = 0.5  # columns of one cluster have a mean association of 1 - APART or more


def associations(frame: pd.DataFrame, schema: Schema) -> Float64[np.ndarray, "c c"]:
    """The association of each two columns in [0, 1]; 0 with a column that is constant.

    An ordinal column counts as a number, its rank. Numbers that are missing are left out of their
    pair; a missing category is a category.
    """
    columns = [(column.kind, _values(column, frame[column.name])) for column in schema.columns]
    found = np.eye(len(columns))
    for i, (kind, a) in enumerate(columns):
        for j, (other, b) in enumerate(columns[:i]):
            if kind == other == "categorical":
                value = cramers_v(a, b)
            elif kind == "categorical":
                value = correlation_ratio(a, b)
            elif other == "categorical":
                value = correlation_ratio(b, a)
            else:
                value = _pearson(a, b)
            found[i, j] = found[j, i] = value
    return found


def column_clusters(
    association: Float64[np.ndarray, "c c"], apart: float = APART
) -> Int64[np.ndarray, "c"]:
    """The cluster of each column, by average linkage of 1 - association, cut at `apart`."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(association) < 2:
        return np.zeros(len(association), np.int64)
    distance = squareform(1 - association, checks=False)
    return fcluster(linkage(distance, "average"), apart, "distance").astype(np.int64) - 1


def cramers_v(a: Int64[np.ndarray, "n"], b: Int64[np.ndarray, "n"]) -> float:
    """sqrt(chi2 / (n (min(r, k) - 1))) of the table of counts; 0 where one is constant."""
    counts = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(counts, (a, b), 1)
    counts = counts[counts.any(1)][:, counts.any(0)]
    least = min(counts.shape) - 1
    if least == 0:
        return 0.0
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    chi2 = (np.square(counts - expected) / expected).sum()
    return float(np.sqrt(chi2 / (counts.sum() * least)))


def correlation_ratio(classes: Int64[np.ndarray, "n"], values: Float64[np.ndarray, "n"]) -> float:
    """eta: the root of the share of the variance of the values that is between the classes."""
    present = ~np.isnan(values)
    classes, values = classes[present], values[present]
    whole = np.square(values - values.mean()).sum() if len(values) else 0.0
    if whole == 0:
        return 0.0
    counts = np.bincount(classes)
    means = np.bincount(classes, values) / np.maximum(counts, 1)
    between = (counts * np.square(means - values.mean())).sum()
    return float(np.sqrt(min(1.0, between / whole)))


def _pearson(a: Float64[np.ndarray, "n"], b: Float64[np.ndarray, "n"]) -> float:
    present = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[present], b[present]
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(min(1.0, abs(np.corrcoef(a, b)[0, 1])))


def _values(column: Column, values: Any) -> np.ndarray:
    """Numbers, ranks of ordinal values, or the codes of categories, where missing is the last."""
    ranks = column.ranks(values)
    if column.kind != "categorical":
        return ranks
    return np.where(np.isnan(ranks), len(column.categories), ranks).astype(np.int64)
