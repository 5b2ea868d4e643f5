import faiss
import numpy as np
import pytest
import torch

from sidepipe.features import exact


def vectors(n, seed):
    return np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_neighbors_do_not_depend_on_how_many_queries_are_searched_at_once(metric, monkeypatch):
    queries, database = vectors(37, 0), vectors(90, 1)
    losses, indices = exact.closest(queries, database, metric, 3)
    monkeypatch.setattr(exact, "MAX_CANDIDATES", 5 * (3 + exact.SPARE_CANDIDATES))
    in_blocks = exact.closest(queries, database, metric, 3)
    np.testing.assert_array_equal(in_blocks[0], losses)
    np.testing.assert_array_equal(in_blocks[1], indices)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_gpu_is_used_if_faiss_has_one_and_changes_nothing(metric, monkeypatch):
    queries, database = vectors(37, 0), vectors(90, 1)
    on_cpu = exact.closest(queries, database, metric, 3)
    moved = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_all_gpus", lambda i: moved.append(i) or i, raising=False
    )
    on_gpu = exact.closest(queries, database, metric, 3)
    assert [index.ntotal for index in moved] == [90]
    np.testing.assert_array_equal(on_gpu[0], on_cpu[0])
    np.testing.assert_array_equal(on_gpu[1], on_cpu[1])


def test_more_candidates_than_a_gpu_gives_are_searched_on_the_cpu(monkeypatch):
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.delattr(faiss, "index_cpu_to_all_gpus", raising=False)
    monkeypatch.setattr(exact, "GPU_MAX_CANDIDATES", 18)
    queries, database = vectors(5, 0), vectors(90, 1)
    _, indices = exact.closest(queries, database, "l2", 3)
    distances = np.square(queries[:, None] - database).sum(2)
    np.testing.assert_array_equal(indices, np.argsort(distances, axis=1)[:, :3])


def test_faiss_takes_as_many_threads_as_torch():
    before = torch.get_num_threads()
    try:
        for number in (2, 1):
            torch.set_num_threads(number)
            assert exact.import_faiss().omp_get_max_threads() == number
    finally:
        torch.set_num_threads(before)
