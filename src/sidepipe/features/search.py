"""Exact search between two sets of vectors: nearest neighbours, and coverage of bands of gamma.

gamma is the cosine of unit vectors ("cosine", larger is closer) or the Euclidean distance ("l2",
smaller is closer). faiss finds the candidates, in float32 by |q|^2 + |x|^2 - 2 q.x, which cannot
tell a copy from a near copy; so gamma of every pair that rounding could misplace is computed again
in float64 from the two vectors. It depends neither on block sizes, nor on BLAS, nor on the device.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

Metric = Literal["cosine", "l2"]
METRICS = ("cosine", "l2")

SPARE_CANDIDATES = 16
GPU_MAX_CANDIDATES = 2048  # of one query: the limit of faiss on a GPU
MAX_RESULTS = 10_000_000  # of one range search: 12 bytes each, twice over inside faiss
MAX_EXACT_FLOATS = 4_000_000  # gathered at once for float64


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
    count = min(k + SPARE_CANDIDATES, len(database))
    index = _index(database, metric, on_gpu=count <= GPU_MAX_CANDIDATES)
    values, candidates = index.search(queries, count)
    rough = -values if metric == "cosine" else values
    # Whatever is truly among the k closest lies within two rounding errors of the k-th found.
    limit = rough[:, k - 1] + 2 * _rounding(queries, database, metric)
    losses = np.full(rough.shape, np.inf)
    i, column = np.nonzero(rough <= limit[:, None])
    losses[i, column] = _losses(queries, database, i, candidates[i, column], metric)
    order = np.lexsort((candidates, losses), axis=1)[:, :k]
    losses, indices = (np.take_along_axis(a, order, axis=1) for a in (losses, candidates))
    # Where even the last candidate lies within, more may: compare those queries with everything.
    everything = np.arange(len(database))
    for i in np.flatnonzero((rough[:, -1] < limit) & (count < len(database))):
        row = _losses(queries, database, np.full(len(database), i), everything, metric)
        indices[i] = np.argsort(row, kind="stable")[:k]
        losses[i] = row[indices[i]]
    return _gamma(losses, metric), indices.astype(np.int64)


def covered(
    queries: Float[np.ndarray, "n _"],
    database: Float[np.ndarray, "m _"],
    metric: Metric,
    bands: Sequence[Sequence[float]],
) -> Bool[np.ndarray, "b m"]:
    """For each band [low, high) of gamma: which database items have a query with gamma in it.

    All pairs count, not only nearest ones (SIDE, eq. 9). gamma and the edges are compared as
    float32, as a comparison of `nearest`'s values with the edges would. math.inf is an open end: a
    cosine can come out as 1.0000001, so a band that is to hold copies must not end at 1. Memory is
    bounded by `MAX_RESULTS`, even if every pair is in a band. Errors as in `nearest`.
    """
    queries, database = _checked(queries, database, metric)
    edges = _checked_bands(bands)
    ends = edges.astype(np.float64)
    if metric == "l2":  # faiss gives and takes squares; no distance is below 0
        ends = np.where(ends > 0, ends**2, -np.inf)
    margin = float(_rounding(queries, database, metric).max())
    radius = ends.min() - 2 * margin if metric == "cosine" else ends.max() + 2 * margin
    # Range search is not implemented on a GPU (faiss 1.14).
    index = _index(database, metric, on_gpu=False)
    mask = np.zeros((len(edges), len(database)), bool)
    block = max(1, MAX_RESULTS // len(database))
    for start in range(0, len(queries), block):
        starts, values, j = index.range_search(queries[start : start + block], radius)
        for b, (low, high) in enumerate(ends):
            sure = (values >= low + margin) & (values < high - margin)
            mask[b, j[sure]] = True
            near = (values >= low - margin) & (values < high + margin) & ~mask[b, j]
            near = np.flatnonzero(near)
            i = start + np.searchsorted(starts, near, side="right") - 1
            gamma = _gamma(_losses(queries, database, i, j[near], metric), metric)
            inside = (gamma >= edges[b, 0]) & (gamma < edges[b, 1])
            mask[b, j[near[inside]]] = True
    return mask


def _checked(
    queries: Float[np.ndarray, "n _"], database: Float[np.ndarray, "m _"], metric: str
) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "m d"]]:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    for name, array in (("queries", queries), ("database", database)):
        if array.ndim != 2 or array.size == 0:
            raise ValueError(f"{name} must be (items, dimensions), not empty, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got nan or inf; look at the encoder's input")
    if queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"queries and database must have equally many dimensions, got {queries.shape[1]} and "
            f"{database.shape[1]}; encode both with the same encoder"
        )
    return (
        np.ascontiguousarray(queries, np.float32),
        np.ascontiguousarray(database, np.float32),
    )


def _checked_bands(bands: Sequence[Sequence[float]]) -> Float32[np.ndarray, "b 2"]:
    if len(bands) == 0:
        raise ValueError("bands must hold at least one (low, high), got none")
    for low, high in bands:
        if not low < high:
            raise ValueError(f"bands must be (low, high) with low < high, got ({low}, {high})")
    return np.asarray(bands, np.float32)


def _index(database: Float32[np.ndarray, "m d"], metric: Metric, on_gpu: bool) -> Any:
    """An exact faiss index of `database`, on all GPUs if faiss has any and `on_gpu`."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "faiss is needed to search; pip install -e '.[cpu]' or, for NVIDIA GPUs, '.[gpu]'"
        ) from error
    kind = faiss.IndexFlatIP if metric == "cosine" else faiss.IndexFlatL2
    index: Any = kind(database.shape[1])
    # Some CPU builds of faiss lack get_num_gpus.
    if on_gpu and hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(database)
    return index


def _rounding(
    queries: Float32[np.ndarray, "n d"], database: Float32[np.ndarray, "m d"], metric: Metric
) -> Float64[np.ndarray, "n"]:
    """By how much faiss's cosine or squared distance of each query can be off."""
    q = np.einsum("nd,nd->n", queries, queries, dtype=np.float64)
    x = np.einsum("md,md->m", database, database, dtype=np.float64).max()
    # A float32 sum of d terms is off by at most d / 2 eps of their absolute sum; long ones are
    # summed in blocks and lanes. Twice that, and a little for d = 1.
    d = queries.shape[1]
    terms = min(d, 256 + d / 8) + 8
    return terms * np.finfo(np.float32).eps * (np.sqrt(q * x) if metric == "cosine" else q + x)


def _losses(
    queries: Float32[np.ndarray, "n d"],
    database: Float32[np.ndarray, "m d"],
    i: Int64[np.ndarray, "p"],
    j: Int64[np.ndarray, "p"],
    metric: Metric,
) -> Float64[np.ndarray, "p"]:
    """-cosine or squared distance, in float64, of the pairs (queries[i], database[j])."""
    losses = np.empty(len(i))
    step = math.ceil(MAX_EXACT_FLOATS / queries.shape[1])
    for start in range(0, len(i), step):
        some = slice(start, start + step)
        q, x = queries[i[some]].astype(np.float64), database[j[some]].astype(np.float64)
        losses[some] = -(q * x).sum(1) if metric == "cosine" else np.square(q - x).sum(1)
    return losses


def _gamma(losses: Float64[np.ndarray, "*s"], metric: Metric) -> Float32[np.ndarray, "*s"]:
    return (-losses if metric == "cosine" else np.sqrt(losses)).astype(np.float32)
