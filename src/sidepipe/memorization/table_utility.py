"""Measures of generated table rows besides memorization: their use, and rows that cannot be.

Use: train on synthetic, test on real (Esteban et al., arXiv 1706.02633). A row is impossible where
two of its categories occur together in no training row, or where a number lies outside the range
that it has among the training rows with one of the row's categories.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.base.table_encoding import Encoding
    from sidepipe.base.tables import Schema

TREES = 100
MISSING = "\0"  # as a category


def utility(trained_on: pd.DataFrame, tested_on: pd.DataFrame, encoding: Encoding) -> float | None:
    """How well a random forest that is trained on rows predicts the target of other rows.

    The mean area under the ROC of each class against the others, or R2 for a numeric target. None
    without a target, and where the rows have one class, or a class is in the tested rows alone.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.metrics import r2_score, roc_auc_score

    schema = encoding.schema
    if schema.target is None:
        return None
    own = encoding.slices[schema.target]
    x, x_test = (np.delete(encoding.encode(f), own, axis=1) for f in (trained_on, tested_on))
    y, y_test = (f[schema.target].to_numpy() for f in (trained_on, tested_on))
    if not schema.has_classes:
        known, known_test = ~np.isnan(y), ~np.isnan(y_test)
        forest = RandomForestRegressor(TREES, random_state=0).fit(x[known], y[known])
        return float(r2_score(y_test[known_test], forest.predict(x_test[known_test])))
    y, y_test = y.astype(str), y_test.astype(str)
    classes = np.unique(y)
    if len(classes) < 2 or len(np.unique(y_test)) < 2 or not np.isin(y_test, classes).all():
        return None
    forest = RandomForestClassifier(TREES, random_state=0).fit(x, y)
    score = forest.predict_proba(x_test)
    areas = [
        roc_auc_score(y_test == label, score[:, k])
        for k, label in enumerate(classes)
        if 0 < (y_test == label).mean() < 1
    ]
    return float(np.mean(areas))


def impossible(rows: pd.DataFrame, train: pd.DataFrame, schema: Schema) -> Bool[np.ndarray, "n"]:
    """Whether each row is impossible by the training rows. A missing value is a category."""
    categories = [c.name for c in schema.columns if c.kind == "categorical"]
    numbers = [c for c in schema.columns if c.kind != "categorical"]
    found = np.zeros(len(rows), bool)
    for one, other in combinations(categories, 2):
        known = set(zip(*_texts(train, [one, other]), strict=True))
        found |= np.array(
            [pair not in known for pair in zip(*_texts(rows, [one, other]), strict=True)]
        )
    for column in numbers:
        values, seen = (column.ranks(frame[column.name]) for frame in (rows, train))
        for category in categories:
            (labels,), (seen_labels,) = _texts(rows, [category]), _texts(train, [category])
            found |= _outside(values, labels, seen, seen_labels)
    return found


def measured(
    generated: pd.DataFrame, train: pd.DataFrame, heldout: pd.DataFrame, encoding: Encoding
) -> dict[str, Any]:
    """Both measures of generated rows, next to those of real rows, for results.json."""
    schema = encoding.schema
    return {
        "target": schema.target,
        "score": "R2" if schema.target and not schema.has_classes else "AUC",
        "utility": utility(generated, heldout, encoding),
        "train_utility": utility(train, heldout, encoding),
        "impossible": float(impossible(generated, train, schema).mean()),
        "heldout_impossible": float(impossible(heldout, train, schema).mean()),
    }


def _texts(frame: pd.DataFrame, names: list[str]) -> list[list[str]]:
    return [frame[name].fillna(MISSING).astype(str).tolist() for name in names]


def _outside(
    values: np.ndarray, labels: list[str], seen: np.ndarray, seen_labels: list[str]
) -> np.ndarray:
    """Whether each value is beyond the range of the seen ones with its label; False for nan."""
    found, of, of_seen = np.zeros(len(values), bool), np.array(labels), np.array(seen_labels)
    for label in np.unique(of):
        own = seen[(of_seen == label) & ~np.isnan(seen)]
        some = of == label
        if len(own) == 0:
            found[some] = ~np.isnan(values[some])
        else:
            found[some] = (values[some] < own.min()) | (values[some] > own.max())
    return found
