"""Exact nearest neighbors: faiss finds candidates in float32, float64 decides among them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sidepipe.features import pairs
from sidepipe.features.pairs import Metric, blocks

# Some queries to rough losses and indices, (n, count) each, closest first.
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

SPARE_CANDIDATES = 16
GPU_MAX_CANDIDATES = 2048  # of one query: the limit of faiss on a GPU
MAX_CANDIDATES = 4_000_000  # at once: about 50 bytes each


def closest(
    queries: Float32[np.ndarray, "n d"],
    database: Float32[np.ndarray, "m d"],
    metric: Metric,
    k: int,
) -> tuple[Float64[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Losses and database indices of each query's k closest, closest first, ties by lower index."""
    count = min(k + SPARE_CANDIDATES, len(database))
    search = _search(database, metric, count)
    margin = 2 * pairs.rounding(queries, database, metric)
    losses, indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for some in blocks(len(queries), max(1, MAX_CANDIDATES // count)):
        rough, found = search(queries[some])
        # Whatever is truly among the k closest lies within two rounding errors of the k-th found.
        limit = rough[:, k - 1] + margin[some]
        found[rough > limit[:, None]] = -1
        losses[some], indices[some] = pairs.ranked(queries[some], database, found, metric, k)
        # Where even the last candidate lies within, more may.
        for i in some.start + np.flatnonzero((rough[:, -1] <= limit) & (count < len(database))):
            close = pairs.candidates(queries[i : i + 1], database, metric, limit[[i - some.start]])
            row = np.concatenate([j for _, j in close])[None]
            losses[i], indices[i] = pairs.ranked(queries[i : i + 1], database, row, metric, k)
    return losses, indices


def _search(database: Float32[np.ndarray, "m d"], metric: Metric, count: int) -> Search:
    """A search for the `count` closest of all, on every GPU if faiss has any.

    On a CPU it makes no second copy of `database`.
    """
    faiss = import_faiss()
    kind = faiss_metric(metric)
    # Some CPU builds of faiss lack get_num_gpus.
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    index: Any = None
    if gpus > 0 and count <= GPU_MAX_CANDIDATES:
        index = faiss.index_cpu_to_all_gpus(faiss.IndexFlat(database.shape[1], kind))
        index.add(database)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if index is None:
            values, indices = faiss.knn(queries, database, count, kind)
        else:
            values, indices = index.search(queries, count)
        return (-values if metric == "cosine" else values), indices

    return search


def faiss_metric(metric: Metric) -> int:
    faiss = import_faiss()
    return faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2


def import_faiss() -> Any:
    """faiss, with as many threads as torch has: it brings an OpenMP library of its own."""
    import torch

    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "faiss is needed to search; pip install -e '.[cpu]' or, for NVIDIA GPUs, '.[gpu]'"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
