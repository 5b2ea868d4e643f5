"""Approximate nearest neighbors among very many vectors, with a measured recall."""

import logging
import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sidepipe.features import exact, pairs
from sidepipe.features.exact import faiss_metric, import_faiss
from sidepipe.features.pairs import Metric, blocks

log = logging.getLogger(__name__)

TRAINING_VECTORS = 40  # of each cell; faiss warns below 39
MAX_CODES = 128  # of one vector, half a byte each
BLOCK_VECTORS = 65_536
NUM_CANDIDATES = 256  # of each query beyond k
RECALL_QUERIES = 1000
MIN_RECALL = 0.95


def closest(
    queries: Float32[np.ndarray, "n d"],
    database: Float32[np.ndarray, "m d"],
    metric: Metric,
    k: int,
) -> tuple[Float64[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Exact losses and database indices of each query's k closest, of which some may be missed.

    As many cells are probed as reach `MIN_RECALL` on `RECALL_QUERIES` of the queries, or all cells;
    a warning reports the recall.
    """
    index = _build_cells(database, metric)
    num_cells = import_faiss().extract_index_ivf(index).nlist
    size = min(len(queries), RECALL_QUERIES)
    sample = queries[np.random.default_rng(0).choice(len(queries), size, replace=False)]
    truth, _ = exact.closest(sample, database, metric, k)
    share, probed = 0.0, 0
    while share < MIN_RECALL and probed < num_cells:
        probed = min(max(1, 2 * probed), num_cells)
        share = recall(_probe(index, sample, database, metric, k, probed)[0], truth)
    log.warning(
        "approximate search among %d vectors: recall@%d %.3f on %d queries, %d of %d cells probed",
        *(len(database), k, share, size, probed, num_cells),
    )
    losses, indices = _probe(index, queries, database, metric, k, probed)
    short = np.flatnonzero(np.isinf(losses[:, -1]))
    if len(short):
        losses[short], indices[short] = exact.closest(queries[short], database, metric, k)
    return losses, indices


def recall(losses: Float64[np.ndarray, "n k"], truth: Float64[np.ndarray, "n k"]) -> float:
    """Share found of the k truly closest: of losses no larger than the k-th of an exact search.

    By losses and not by indices, so that one of two equal vectors is as good as the other.
    """
    return float((losses <= truth[:, -1:]).mean())


def _probe(
    index: Any,
    queries: Float32[np.ndarray, "n d"],
    database: Float32[np.ndarray, "m d"],
    metric: Metric,
    k: int,
    probed: int,
) -> tuple[Float64[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """The k closest of the candidates in the `probed` closest cells; loss inf where none is."""
    import_faiss().extract_index_ivf(index).nprobe = probed
    losses, indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    count = k + NUM_CANDIDATES
    for some in blocks(len(queries), max(1, exact.MAX_CANDIDATES // count)):
        found = index.search(queries[some], count)[1]
        losses[some], indices[some] = pairs.ranked(queries[some], database, found, metric, k)
    return losses, indices


def _build_cells(database: Float32[np.ndarray, "m d"], metric: Metric) -> Any:
    """faiss's IVF-PQ: the vectors in `nlist` cells, about 4 sqrt(m), of which a search probes some.

    Within a cell they are compared by up to `MAX_CODES` codes of half a byte (Andre et al. 2017,
    "Accelerated Nearest Neighbor Search with Quick ADC"), so candidates must be ranked again.
    """
    faiss = import_faiss()
    m, d = database.shape
    num_cells = round(4 * math.sqrt(m))
    step = math.ceil(d / MAX_CODES)
    codes = math.ceil(d / step)
    # Codes must divide the dimensions; padding by zeros changes neither metric.
    factory = f"Pad{codes * step},IVF{num_cells},PQ{codes}x4fs"
    index: Any = faiss.index_factory(d, factory, faiss_metric(metric))
    size = min(m, TRAINING_VECTORS * num_cells)
    sample = np.random.default_rng(0).choice(m, size, replace=False)
    index.train(database[np.sort(sample)])
    for some in blocks(m, BLOCK_VECTORS):
        index.add(database[some])
    return index
