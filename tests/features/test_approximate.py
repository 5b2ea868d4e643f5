import logging
import re

import numpy as np
import pytest

from sidepipe.features import approximate, exact, search
from sidepipe.features.search import nearest

N, M, D = 1500, 4000, 18


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def planted(metric):
    """Queries close to known vectors of a database that is otherwise random."""
    rng = np.random.default_rng(0)
    database = rng.standard_normal((M, D)).astype(np.float32)
    truth = rng.integers(M, size=N)
    queries = database[truth] + 0.05 * rng.standard_normal((N, D)).astype(np.float32)
    return (
        (unit(queries), unit(database), truth) if metric == "cosine" else (queries, database, truth)
    )


@pytest.fixture
def beyond(monkeypatch):
    """Makes every database too large for an exact search."""
    monkeypatch.setattr(search, "EXACT_VECTORS", M - 1)
    monkeypatch.setattr(approximate, "RECALL_QUERIES", 300)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_planted_neighbors_are_found_and_the_recall_is_logged(metric, beyond, caplog):
    queries, database, truth = planted(metric)
    gamma, indices = nearest(queries, database, metric)
    found = (indices[:, 0] == truth).mean()
    assert found >= 0.93
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    said = re.search(r"among 4000 vectors: recall@1 (\S+) on 300 queries", record.message)
    assert said
    assert float(said[1]) >= approximate.MIN_RECALL
    assert float(said[1]) == pytest.approx(found, abs=0.05)
    # gamma is exact for the neighbor that was found, even if it is not the nearest.
    i = indices[:, 0]
    q, x = queries.astype(float), database[i].astype(float)
    exact_gamma = (q * x).sum(1) if metric == "cosine" else np.linalg.norm(q - x, axis=1)
    np.testing.assert_array_equal(gamma[:, 0], exact_gamma.astype(np.float32))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_more_cells_are_probed_until_the_recall_suffices(metric, beyond, caplog, monkeypatch):
    queries, database, _ = planted(metric)
    cells = []
    for wanted in (0.3, 0.9):
        monkeypatch.setattr(approximate, "MIN_RECALL", wanted)
        caplog.clear()
        nearest(queries, database, metric, k=5)
        share, probed = re.search(r"recall@5 (\S+) .* (\d+) of 253 cells", caplog.text).groups()
        assert float(share) >= wanted
        cells.append(int(probed))
    assert cells[0] < cells[1] < 253


def test_all_cells_and_candidates_give_the_exact_neighbors(beyond, monkeypatch):
    monkeypatch.setattr(approximate, "MIN_RECALL", 1.01)  # never enough
    monkeypatch.setattr(approximate, "NUM_CANDIDATES", M - 5)
    queries, database, _ = planted("l2")
    losses, indices = exact.closest(queries[:400], database, "l2", 5)
    found = approximate.closest(queries[:400], database, "l2", 5)
    np.testing.assert_array_equal(found[0], losses)
    np.testing.assert_array_equal(found[1], indices)


def test_queries_whose_cells_hold_too_few_are_searched_exactly(beyond, monkeypatch):
    monkeypatch.setattr(approximate, "MIN_RECALL", 1e-6)
    queries, database, _ = planted("l2")
    losses, indices = approximate.closest(queries[:400], database, "l2", 200)  # of about 16 a cell
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(indices, exact.closest(queries[:400], database, "l2", 200)[1])


def test_the_search_is_exact_and_silent_for_few_queries_and_up_to_the_limit(beyond, caplog):
    queries, database, _ = planted("l2")
    for q, x in ((queries[:300], database), (queries, database[: M - 1])):
        losses, indices = exact.closest(q, x, "l2", 1)
        gamma, found = nearest(q, x, "l2")
        np.testing.assert_array_equal(found, indices)
        np.testing.assert_array_equal(gamma, np.sqrt(losses).astype(np.float32))
    assert not caplog.records


def test_recall_is_the_share_of_the_k_closest_that_were_found():
    truth = np.array([[1.0, 2.0], [1.0, 3.0]])
    assert approximate.recall(truth, truth) == 1
    assert approximate.recall(np.array([[1.0, 2.5], [3.0, 4.0]]), truth) == 0.5
    assert approximate.recall(np.array([[2.0, 2.0], [np.inf, np.inf]]), truth) == 0.5
