"""More training rows, made from the real ones: `dpm.augment`, against memorization.

All work on encoded rows (`base.table_encoding`): exchanging columns exchanges their entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int64

from sidepipe.stages.dpm.associations import associations, column_clusters

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.base.table_encoding import Encoding

NEIGHBORS = 5  # of SMOTE

Rows = Float[np.ndarray, "n d"]
Classes = Int64[np.ndarray, "n"]


def augmented(
    method: str, frame: pd.DataFrame, encoding: Encoding, seed: int
) -> Float32[np.ndarray, "n d"]:
    """As many encoded rows as `frame` has, each a valid row of the table.

    method: a choice of `dpm.augment`, but for "none". Rows are mixed within their class where the
    target has classes, and with all others where it has none.
    """
    rng, rows, schema = np.random.default_rng([seed, 1]), encoding.encode(frame), encoding.schema
    labels = frame[schema.target].astype(str) if schema.has_classes else [""] * len(frame)
    classes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    if method == "mixup":
        made = mixed_up(rows, classes, rng)
    elif method == "smote":
        made = smoted(rows, classes, rng)
    else:
        alone = np.arange(len(schema.columns))
        plus = method == "tabcutmix_plus"
        cluster = column_clusters(associations(frame, schema)) if plus else alone
        made = cut_mixed(rows, classes, entries_of(cluster, encoding), rng)
    return encoding.project(made)


def entries_of(cluster: Int64[np.ndarray, "c"], encoding: Encoding) -> list[np.ndarray]:
    """The entries of the columns of each cluster."""
    every = np.arange(encoding.width)
    of_columns = [every[entries] for entries in encoding.slices.values()]
    return [
        np.concatenate([of_columns[i] for i in np.flatnonzero(cluster == k)])
        for k in np.unique(cluster)
    ]


def cut_mixed(
    rows: Rows, classes: Classes, groups: Sequence[np.ndarray], rng: np.random.Generator
) -> Rows:
    """A row per row, whose columns come from it or from another one of its class.

    groups: the entries that are exchanged together, of one column for TabCutMix, and of a cluster
    of associated columns for TabCutMixPlus (Fang et al., arXiv 2412.11044, algorithm 1). Each group
    stays with probability lambda, which is uniform in [0, 1] for each row.
    """
    others, stay = partners(classes, rng), rng.random((len(rows), 1))
    made = rows.copy()
    kept = rng.random((len(rows), len(groups))) < stay
    for group, keep in zip(groups, kept.T, strict=True):
        made[:, group] = np.where(keep[:, None], rows[:, group], rows[others][:, group])
    return made


def mixed_up(rows: Rows, classes: Classes, rng: np.random.Generator) -> Rows:
    """lambda x + (1 - lambda) x' for each row and another one of its class, lambda uniform.

    Mixup (Zhang et al., arXiv 1710.09412, with alpha = 1) within classes.
    """
    others, share = partners(classes, rng), rng.random((len(rows), 1))
    return share * rows + (1 - share) * rows[others]


def smoted(
    rows: Rows, classes: Classes, rng: np.random.Generator, neighbors: int = NEIGHBORS
) -> Rows:
    """x + lambda (x' - x) for each row and one of its nearest neighbors in its class.

    SMOTE (Chawla et al., 2002), applied to every class alike; lambda is uniform in [0, 1]. A row
    that is alone in its class stays as it is.
    """
    from sklearn.neighbors import NearestNeighbors

    made = rows.copy()
    for label in np.unique(classes):
        own = np.flatnonzero(classes == label)
        count = min(neighbors, len(own) - 1)
        if count == 0:
            continue
        near = NearestNeighbors(n_neighbors=count).fit(rows[own]).kneighbors(return_distance=False)
        chosen = near[np.arange(len(own)), rng.integers(count, size=len(own))]
        share = rng.random((len(own), 1))
        made[own] = rows[own] + share * (rows[own[chosen]] - rows[own])
    return made


def partners(classes: Classes, rng: np.random.Generator) -> Int64[np.ndarray, "n"]:
    """For each row another row of its class, or itself where it is alone."""
    others = np.arange(len(classes))
    for label in np.unique(classes):
        own = np.flatnonzero(classes == label)
        if len(own) > 1:
            # 1 to n - 1 places further on: each other row is as probable.
            places = np.arange(len(own)) + rng.integers(1, len(own), size=len(own))
            others[own] = own[places % len(own)]
    return others
