"""Search between two sets of vectors: nearest neighbors, coverage of bands, close pairs.

gamma is the cosine of unit vectors ("cosine", larger is closer) or the Euclidean distance ("l2",
smaller is closer). Candidates are found in float32 by |q|^2 + |x|^2 - 2 q.x, which cannot tell a
copy from a near copy; so gamma of every pair that rounding could misplace is computed again in
float64 from the two vectors. It depends neither on block sizes, nor on BLAS, nor on the device. All
results are exact, except `nearest` among more than `EXACT_VECTORS` vectors, which logs its recall.
Beyond float32 features, memory is bounded whatever their number.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from sidepipe.base.settings import require
from sidepipe.features import approximate, exact, pairs
from sidepipe.features.pairs import METRICS, Metric, blocks

EXACT_VECTORS = 1_000_000  # beyond them `nearest` is approximate
MAX_PAIRS = 20_000_000  # of `pairs_within`: 20 bytes each, three times over while they are sorted
CHECKED_AT_ONCE = 8192


def closer(
    gamma: Float[np.ndarray, "n"], threshold: float, metric: Metric
) -> Bool[np.ndarray, "n"]:
    """Which of gamma are at least as close as `threshold`: gamma >= it for cosine, <= for l2."""
    return gamma >= threshold if metric == "cosine" else gamma <= threshold


def nearest(
    queries: Float[np.ndarray, "n _"],
    database: Float[np.ndarray, "m _"],
    metric: Metric,
    k: int = 1,
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """gamma and database index of each query's k closest, closest first, ties by lower index.

    queries: (n, d), database: (m, d); unit vectors for "cosine". Distances are not squared.
    ValueError: shapes that do not fit, nothing to search, values that are not finite, k > m.
    """
    queries, database = _checked(queries, database, metric)
    if not 1 <= k <= len(database):
        raise ValueError(f"k must be 1 to the size of the database, {len(database)}, got {k}")
    # An exact search of few queries is quicker than building an approximate index, which needs it.
    few = len(database) <= EXACT_VECTORS or len(queries) <= approximate.RECALL_QUERIES
    losses, indices = (exact if few else approximate).closest(queries, database, metric, k)
    return pairs.gamma_of(losses, metric), indices


def covered(
    queries: Float[np.ndarray, "n _"],
    database: Float[np.ndarray, "m _"],
    metric: Metric,
    bands: Sequence[Sequence[float]],
) -> Bool[np.ndarray, "b m"]:
    """For each band [low, high) of gamma: which database items have a query with gamma in it.

    All pairs count, not only nearest ones (SIDE, eq. 9). gamma and the edges are compared as
    float32, as a comparison of `nearest`'s values with the edges would. math.inf is an open end: a
    cosine can come out as 1.0000001, so a band that is to hold copies must not end at 1. Errors as
    in `nearest`.
    """
    queries, database = _checked(queries, database, metric)
    edges = _checked_bands(bands)
    margin = 2 * float(pairs.rounding(queries, database, metric).max())
    mask = np.zeros((len(edges), len(database)), bool)
    for part in blocks(len(database), pairs.TILE_ITEMS):
        for some in blocks(len(queries), pairs.TILE_QUERIES):
            # Items that are in every band already need no further query.
            left = part.start + np.flatnonzero(~mask[:, part].all(0))
            if len(left) == 0:
                break
            q, x = queries[some], database[left]
            rough = pairs.rough_losses(q, x, metric)
            low, high = rough.min(0), rough.max(0)
            for row, edge in zip(mask, edges, strict=True):
                near, far = np.sort(pairs.loss_of(edge, metric))
                within = (low <= far + margin) & (high >= near - margin)
                column = np.flatnonzero(within & ~row[left])
                row[left[column]] = _reached(rough[:, column], q, x[column], metric, edge, margin)
    return mask


def _reached(
    rough: Float32[np.ndarray, "n m"],
    queries: Float32[np.ndarray, "n d"],
    database: Float32[np.ndarray, "m d"],
    metric: Metric,
    edge: Float32[np.ndarray, "2"],
    margin: float,
) -> Bool[np.ndarray, "m"]:
    """Which items have a query with gamma in [edge[0], edge[1]).

    margin: twice the error of rough losses; gamma decides within it.
    """
    near, far = np.sort(pairs.loss_of(edge, metric))
    reached = ((rough >= near + margin) & (rough <= far - margin)).any(0)
    unsure = np.flatnonzero(~reached)
    rough = rough[:, unsure]
    i, column = np.nonzero((rough >= near - margin) & (rough <= far + margin))
    j = unsure[column]
    gamma = pairs.gamma_of(pairs.exact_losses(queries, database, i, j, metric), metric)
    reached[j[(gamma >= edge[0]) & (gamma < edge[1])]] = True
    return reached


def pairs_within(
    features: Float[np.ndarray, "n _"], metric: Metric, threshold: float
) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"], Float32[np.ndarray, "p"]]:
    """i, j and gamma of all pairs i < j of one set at least as close as `threshold`, by (i, j).

    At least as close: gamma >= threshold for "cosine", <= for "l2", compared as float32. ValueError
    beyond `MAX_PAIRS` pairs, and as in `nearest`.
    """
    features = _checked_set("features", features, metric)
    require(not math.isnan(threshold), "threshold", "a number", threshold)
    edge = np.float32(threshold)
    limit = pairs.loss_of(np.array([edge]), metric) + 2 * pairs.rounding(features, features, metric)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    count = 0
    for some in blocks(len(features), pairs.TILE_QUERIES):
        rest = features[some.start :]
        for i, j in pairs.candidates(features[some], rest, metric, limit[some]):
            i, j = i[j > i], j[j > i]
            gamma = pairs.gamma_of(pairs.exact_losses(rest, rest, i, j, metric), metric)
            close = closer(gamma, float(edge), metric)
            found.append((some.start + i[close], some.start + j[close], gamma[close]))
            count += len(found[-1][0])
            _require_few(count, threshold)
    i, j, gamma = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((j, i))
    return i[order], j[order], gamma[order]


def _require_few(num_pairs: int, threshold: float) -> None:
    rule = f"so strict that at most {MAX_PAIRS} pairs are as close"
    remedy = "use a stricter threshold or fewer vectors"
    require(num_pairs <= MAX_PAIRS, "threshold", rule, threshold, remedy)


def _checked(
    queries: Float[np.ndarray, "n _"], database: Float[np.ndarray, "m _"], metric: str
) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "m d"]]:
    checked = (_checked_set("queries", queries, metric), _checked_set("database", database, metric))
    if queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"queries and database must have equally many dimensions, got {queries.shape[1]} and "
            f"{database.shape[1]}; encode both with the same encoder"
        )
    return checked


def _checked_set(
    name: str, vectors: Float[np.ndarray, "n _"], metric: str
) -> Float32[np.ndarray, "n d"]:
    """The vectors as contiguous float32: themselves, and not a copy, if they are so already."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if vectors.ndim != 2 or vectors.size == 0:
        raise ValueError(f"{name} must be (items, dimensions), not empty, got {vectors.shape}")
    if not all(np.isfinite(vectors[b]).all() for b in blocks(len(vectors), CHECKED_AT_ONCE)):
        raise ValueError(f"{name} must be finite, got nan or inf; check the encoder's input")
    return np.ascontiguousarray(vectors, np.float32)


def _checked_bands(bands: Sequence[Sequence[float]]) -> Float32[np.ndarray, "b 2"]:
    if len(bands) == 0:
        raise ValueError("bands must hold at least one (low, high), got none")
    for low, high in bands:
        if not low < high:
            raise ValueError(f"bands must be (low, high) with low < high, got ({low}, {high})")
    return np.asarray(bands, np.float32)
