"""gamma of pairs of vectors: roughly for all pairs of a tile, exactly for chosen pairs.

gamma is the cosine of unit vectors ("cosine", larger is closer) or the Euclidean distance ("l2",
smaller is closer). A search works on losses, of which the smallest is the closest: -cosine or the
squared distance. Rough losses come from float32 products of matrices, exact ones from float64.
"""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

Metric = Literal["cosine", "l2"]
METRICS = ("cosine", "l2")

# A tile of rough losses takes 32 MB, and its pairs 16 bytes each if all of them are candidates.
TILE_QUERIES = 4096
TILE_ITEMS = 2048
MAX_EXACT_FLOATS = 4_000_000  # gathered at once for float64


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices that cover range(length), each of at most `size`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def rough_losses(
    queries: Float32[np.ndarray, "n d"], database: Float32[np.ndarray, "m d"], metric: Metric
) -> Float32[np.ndarray, "n m"]:
    """-cosine or squared distance of all pairs, off by at most `rounding`."""
    if metric == "cosine":
        return -queries @ database.T
    losses = (-2 * queries) @ database.T
    losses += np.square(queries).sum(1)[:, None]
    losses += np.square(database).sum(1)
    return losses


def rounding(
    queries: Float32[np.ndarray, "n d"], database: Float32[np.ndarray, "m d"], metric: Metric
) -> Float64[np.ndarray, "n"]:
    """The largest error of each query's rough losses, ours or faiss's."""
    q = np.einsum("nd,nd->n", queries, queries, dtype=np.float64)
    x = np.einsum("md,md->m", database, database, dtype=np.float64).max()
    # A float32 sum of d terms is off by at most d / 2 eps of their absolute sum; long ones are
    # summed in blocks and lanes. Twice that, and a little for d = 1.
    d = queries.shape[1]
    terms = min(d, 256 + d / 8) + 8
    return terms * np.finfo(np.float32).eps * (np.sqrt(q * x) if metric == "cosine" else q + x)


def candidates(
    queries: Float32[np.ndarray, "n d"],
    database: Float32[np.ndarray, "m d"],
    metric: Metric,
    limit: Float64[np.ndarray, "n"],
) -> Iterator[tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"]]]:
    """Tile by tile, the pairs (i, j) whose rough loss is at most `limit[i]`."""
    for some in blocks(len(queries), TILE_QUERIES):
        for part in blocks(len(database), TILE_ITEMS):
            rough = rough_losses(queries[some], database[part], metric)
            rows = np.flatnonzero(rough.min(1) <= limit[some])  # few, as a rule
            row, j = np.nonzero(rough[rows] <= limit[some][rows, None])
            yield some.start + rows[row], part.start + j


def exact_losses(
    queries: Float32[np.ndarray, "n d"],
    database: Float32[np.ndarray, "m d"],
    i: Int64[np.ndarray, "p"],
    j: Int64[np.ndarray, "p"],
    metric: Metric,
) -> Float64[np.ndarray, "p"]:
    """-cosine or squared distance, in float64, of the pairs (queries[i], database[j])."""
    losses = np.empty(len(i))
    for some in blocks(len(i), math.ceil(MAX_EXACT_FLOATS / queries.shape[1])):
        q, x = queries[i[some]].astype(np.float64), database[j[some]].astype(np.float64)
        losses[some] = -(q * x).sum(1) if metric == "cosine" else np.square(q - x).sum(1)
    return losses


def ranked(
    queries: Float32[np.ndarray, "n d"],
    database: Float32[np.ndarray, "m d"],
    found: Int64[np.ndarray, "n c"],
    metric: Metric,
    k: int,
) -> tuple[Float64[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Exact losses and indices of each query's k closest of its candidates, ties by lower index.

    found: database indices, -1 where there is no candidate; where fewer than k are, losses are inf.
    """
    losses = np.full(found.shape, np.inf)
    i, column = np.nonzero(found >= 0)
    losses[i, column] = exact_losses(queries, database, i, found[i, column], metric)
    order = np.lexsort((found, losses), axis=1)[:, :k]
    return np.take_along_axis(losses, order, axis=1), np.take_along_axis(found, order, axis=1)


def loss_of(gamma: Float[np.ndarray, "*s"], metric: Metric) -> Float64[np.ndarray, "*s"]:
    """The loss at which a pair has this gamma; -inf for a negative distance."""
    gamma = gamma.astype(np.float64)
    return -gamma if metric == "cosine" else np.where(gamma >= 0, gamma**2, -np.inf)


def gamma_of(losses: Float64[np.ndarray, "*s"], metric: Metric) -> Float32[np.ndarray, "*s"]:
    return (-losses if metric == "cosine" else np.sqrt(losses)).astype(np.float32)


def distance(gamma: Float[np.ndarray, "*s"], metric: Metric) -> Float64[np.ndarray, "*s"]:
    """gamma as a Euclidean distance: itself for l2, that of unit vectors for a cosine."""
    gamma = gamma.astype(np.float64)
    return gamma if metric == "l2" else np.sqrt(np.maximum(2 - 2 * gamma, 0))
