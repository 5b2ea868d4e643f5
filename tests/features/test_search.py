import builtins
import math
import tracemalloc

import numpy as np
import pytest

from sidepipe.features import exact, pairs, search
from sidepipe.features.search import covered, nearest, pairs_within

PIXEL = 1 / 255 / math.sqrt(3072)  # RMS of one value in 3072 off by one gray level


def brute(queries, database, metric):
    """gamma of all pairs, by a double loop in Python's own floats."""
    gamma = np.empty((len(queries), len(database)))
    for i, q in enumerate(queries.tolist()):
        for j, x in enumerate(database.tolist()):
            pairs = list(zip(q, x, strict=True))
            if metric == "cosine":
                gamma[i, j] = math.fsum(a * b for a, b in pairs)
            else:
                gamma[i, j] = math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs))
    return gamma.astype(np.float32)


def vectors(n, d, metric, seed):
    x = np.random.default_rng(seed).standard_normal((n, d))
    if metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)


def photographs(n, seed):
    """(n, 3072) RMS-scaled vectors as of 32x32 images, with the large mean that real ones have."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072))
    return (pixels / (255 * math.sqrt(3072))).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 3, 23])
def test_nearest_is_brute_force_on_asymmetric_data(metric, k):
    queries, database = vectors(7, 5, metric, 0), vectors(23, 5, metric, 1)
    database[[4, 9]] = queries[2]  # a copy, twice
    gamma = brute(queries, database, metric)
    order = np.argsort(-gamma if metric == "cosine" else gamma, axis=1, kind="stable")[:, :k]
    values, indices = nearest(queries, database, metric, k)
    assert values.dtype == np.float32
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(gamma, order, 1))
    assert indices[2, 0] == 4


def test_nearest_is_not_symmetric_in_its_arguments():
    queries, database = vectors(7, 5, "l2", 0), vectors(23, 5, "l2", 1)
    assert nearest(queries, database, "l2")[0].shape == (7, 1)
    assert nearest(database, queries, "l2")[0].shape == (23, 1)


@pytest.mark.parametrize("num_queries", [2, 120])  # faiss computes few and many differently
def test_l2_tells_an_identical_image_from_one_gray_level_in_one_pixel(num_queries):
    database = photographs(60, 0)
    queries = np.tile(database, (2, 1))[:num_queries].copy()
    queries[1::2, 5] += np.float32(1 / 255 / math.sqrt(3072))
    values, indices = nearest(queries, database, "l2")
    np.testing.assert_array_equal(indices[:, 0], np.arange(num_queries) % 60)
    np.testing.assert_array_equal(values[::2, 0], 0)
    np.testing.assert_allclose(values[1::2, 0], PIXEL, rtol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("copies", [9, 80])  # fewer and more than there are candidates
def test_a_copy_is_found_among_near_copies(metric, copies):
    image = photographs(1, 0)[0]
    database = np.tile(image, (copies, 1))
    database[np.arange(copies), np.arange(copies)] += np.float32(PIXEL)
    database[copies - 2] = image
    database = np.concatenate([database, photographs(30, 1)])
    if metric == "cosine":
        database /= np.linalg.norm(database.astype(np.float64), axis=1, keepdims=True)
    values, indices = nearest(np.tile(database[copies - 2], (50, 1)), database, metric)
    assert (indices == copies - 2).all()
    np.testing.assert_allclose(values, 0 if metric == "l2" else 1, atol=1e-7)


def test_near_ties_are_decided_for_near_and_for_far_queries():
    near, far = photographs(2, 0)
    database = np.repeat(photographs(2, 0), 40, axis=0)
    database[np.arange(80), np.arange(80)] += np.float32(PIXEL)
    queries = np.stack([near, far])
    queries[1, 100:110] += 50 * np.float32(PIXEL)
    values, indices = nearest(queries, database, "l2", k=3)
    squares = np.square(queries[:, None].astype(np.float64) - database).sum(2)
    np.testing.assert_array_equal(indices, np.argsort(squares, axis=1, kind="stable")[:, :3])
    np.testing.assert_array_equal(
        values, np.sqrt(np.sort(squares, axis=1)[:, :3]).astype(np.float32)
    )


def test_a_zero_vector_has_cosine_zero_with_all():
    database = vectors(40, 5, "cosine", 0)
    values, _ = nearest(np.zeros((2, 5), np.float32), database, "cosine", k=40)
    assert (values == 0).all()


BANDS = {
    "cosine": [(0.2, 0.5), (0.5, 0.8), (0.8, math.inf), (-math.inf, -0.5), (-math.inf, math.inf)],
    "l2": [(0.0, 1.0), (1.0, 1.5), (1.5, 2.5), (2.5, math.inf), (-math.inf, math.inf)],
}


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("tile", [(1, 1), (2, 29), (4, 3), (4096, 2048)])
def test_covered_is_brute_force_whatever_the_tiles(metric, tile, monkeypatch):
    monkeypatch.setattr(pairs, "TILE_QUERIES", tile[0])
    monkeypatch.setattr(pairs, "TILE_ITEMS", tile[1])
    queries, database = vectors(11, 4, metric, 2), vectors(29, 4, metric, 3)
    queries[3] = database[5]
    gamma = brute(queries, database, metric)
    bands = BANDS[metric]
    expected = [((gamma >= low) & (gamma < high)).any(0) for low, high in bands]
    mask = covered(queries, database, metric, bands)
    assert mask.shape == (5, 29)
    np.testing.assert_array_equal(mask, expected)
    assert mask[0].any()
    assert not mask[0].all()
    copies = 2 if metric == "cosine" else 0
    assert mask[copies, 5]
    assert mask[-1].all()


def test_covered_counts_all_pairs_and_not_nearest_ones_alone():
    database = np.array([[0.0], [0.3], [0.9]], np.float32)
    mask = covered(np.array([[0.1]], np.float32), database, "l2", [(0.0, 0.5)])
    assert mask.tolist() == [[True, True, False]]


def test_a_band_holds_its_lower_edge_and_not_its_upper_one():
    # 3-4-5 triangles: distances of exactly 5 and 10, cosines of exactly 0.5 and 0.25.
    l2 = np.array([[3, 4], [6, 8]], np.float32)
    mask = covered(np.zeros((1, 2), np.float32), l2, "l2", [(0.0, 5.0), (5.0, 10.0), (10.0, 20.0)])
    assert mask.tolist() == [[False, False], [True, False], [False, True]]
    cosine = np.array([[0.5, math.sqrt(0.75)], [0.25, math.sqrt(0.9375)]], np.float32)
    bands = [(0.1, 0.25), (0.25, 0.5), (0.5, 0.6)]
    mask = covered(np.array([[1, 0]], np.float32), cosine, "cosine", bands)
    assert mask.tolist() == [[False, False], [False, True], [True, False]]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_an_edge_at_a_value_of_nearest_splits_exactly_there(metric, monkeypatch):
    monkeypatch.setattr(pairs, "TILE_QUERIES", 3)
    queries, database = photographs(40, 0), photographs(30, 1)
    if metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        database /= np.linalg.norm(database, axis=1, keepdims=True)
    values, indices = nearest(queries, database, metric, k=30)
    edge = values[7, 4]
    expected = np.zeros((2, 30), bool)
    for row, inside in enumerate((values < edge, values >= edge)):
        expected[row, indices[inside]] = True
    mask = covered(queries, database, metric, [(-math.inf, float(edge)), (float(edge), math.inf)])
    np.testing.assert_array_equal(mask, expected)
    only = covered(
        queries, database, metric, [(float(edge), float(np.nextafter(edge, np.float32(9))))]
    )
    assert np.flatnonzero(only).tolist() == sorted(set(indices[values == edge]))


def test_items_that_a_band_holds_already_do_not_hide_those_it_does_not(monkeypatch):
    monkeypatch.setattr(pairs, "TILE_QUERIES", 1)
    database = np.arange(6, dtype=np.float32)[:, None]
    mask = covered(database[::-1], database, "l2", [(0.0, 0.5), (4.0, 9.0), (5.0, 9.0)])
    assert mask[0].all()
    assert mask[1].tolist() == [True, True, False, False, True, True]
    assert mask[2].tolist() == [True, False, False, False, False, True]


def test_a_near_copy_is_not_covered_as_a_copy():
    database = photographs(60, 0)
    queries = database.copy()
    queries[30:, 5] += np.float32(PIXEL)
    copies, near = covered(queries, database, "l2", [(0.0, PIXEL / 2), (PIXEL / 2, 2 * PIXEL)])
    assert copies[:30].all()
    assert not copies[30:].any()
    np.testing.assert_array_equal(near, ~copies)


def brute_pairs(gamma, metric, threshold):
    """The pairs above the diagonal, by a double loop."""
    n, edge = len(gamma), np.float32(threshold)
    close = gamma >= edge if metric == "cosine" else gamma <= edge
    return [(i, j) for i in range(n) for j in range(i + 1, n) if close[i, j]]


@pytest.mark.parametrize(
    ("metric", "threshold"), [("cosine", 0.3), ("cosine", -math.inf), ("l2", 2.2), ("l2", 0)]
)
@pytest.mark.parametrize("tile", [(1, 1), (4, 3), (4096, 2048)])
def test_pairs_within_are_brute_force_whatever_the_tiles(metric, threshold, tile, monkeypatch):
    monkeypatch.setattr(pairs, "TILE_QUERIES", tile[0])
    monkeypatch.setattr(pairs, "TILE_ITEMS", tile[1])
    features = vectors(23, 5, metric, 4)
    features[[3, 17]] = features[11]
    gamma = brute(features, features, metric)
    i, j, found = pairs_within(features, metric, threshold)
    expected = brute_pairs(gamma, metric, threshold)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected
    assert {(3, 11), (3, 17), (11, 17)} <= set(expected)
    np.testing.assert_array_equal(found, gamma[i, j])
    assert found.dtype == np.float32


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_pairs_within_split_exactly_at_a_gamma_of_theirs(metric):
    features = photographs(40, 2)
    if metric == "cosine":
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    gamma = brute(features, features, metric)
    edge = gamma[7, 21]
    i, j, _ = pairs_within(features, metric, float(edge))
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == brute_pairs(gamma, metric, edge)
    assert (7, 21) in zip(i, j, strict=True)
    stricter = np.nextafter(edge, np.float32(2 if metric == "cosine" else 0))
    i, j, _ = pairs_within(features, metric, float(stricter))
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == brute_pairs(gamma, metric, stricter)
    assert (7, 21) not in zip(i, j, strict=True)


def test_no_pairs_are_three_empty_arrays():
    i, j, gamma = pairs_within(vectors(9, 64, "cosine", 0), "cosine", 0.9)
    assert len(i) == len(j) == len(gamma) == 0
    assert len(pairs_within(np.ones((1, 4), np.float32), "l2", 1.0)[0]) == 0


def test_too_many_pairs_are_refused_before_memory_is_gone(monkeypatch):
    monkeypatch.setattr(search, "MAX_PAIRS", 44)
    same = np.ones((10, 4), np.float32)
    with pytest.raises(
        ValueError, match=r"threshold must be .*at most 44 pairs.*, got 0.5; use a strict"
    ):
        pairs_within(same, "l2", 0.5)
    monkeypatch.setattr(search, "MAX_PAIRS", 45)
    assert len(pairs_within(same, "l2", 0.5)[0]) == 45
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        pairs_within(same, "l2", math.nan)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_memory_does_not_grow_with_the_number_of_pairs(metric, monkeypatch):
    monkeypatch.setattr(pairs, "TILE_QUERIES", 128)
    monkeypatch.setattr(pairs, "TILE_ITEMS", 128)
    monkeypatch.setattr(pairs, "MAX_EXACT_FLOATS", 10_000)
    monkeypatch.setattr(exact, "MAX_CANDIDATES", 10_000)
    monkeypatch.setattr(search, "CHECKED_AT_ONCE", 128)
    queries, database = vectors(3000, 16, metric, 0), vectors(4000, 16, metric, 1)
    few = (0.97, math.inf) if metric == "cosine" else (0.0, 0.5)  # 12 million pairs in the other
    searches = (
        lambda: nearest(queries, database, metric, 3),
        lambda: covered(queries, database, metric, [few, (-math.inf, math.inf)]),
        lambda: pairs_within(database, metric, few[metric == "l2"]),
    )
    for run in searches:
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_500_000  # a byte a pair would be 12 MB


@pytest.mark.parametrize("d", [3, 64, 700, 3072])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_allowed_rounding_holds_for_faiss_and_for_tiles(metric, d):
    gray = np.random.default_rng(0).random((200, 1)).repeat(d, 1)  # the worst: biased sums
    noisy = gray + np.random.default_rng(1).random((200, d)) / 100
    for x in (gray, noisy):
        x = (x / math.sqrt(d)).astype(np.float32)
        i, j = np.divmod(np.arange(200 * 200), 200)
        truth = pairs.exact_losses(x, x, i, j, metric).reshape(200, 200)
        found, indices = exact._search(x, metric, 200)(x)
        allowed = pairs.rounding(x, x, metric)[:, None]
        assert (np.abs(found - np.take_along_axis(truth, indices, 1)) <= allowed).all()
        assert (np.abs(pairs.rough_losses(x, x, metric) - truth) <= allowed).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"database": np.ones((4, 3))}, "equally many dimensions, got 2 and 3"),
        ({"queries": np.ones((0, 2))}, "queries must be"),
        ({"database": np.ones((0, 2))}, "database must be"),
        ({"queries": np.full((3, 2), np.nan)}, "queries must be finite"),
        ({"metric": "l1"}, "metric"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    # TypeError where annotations are checked at run time.
    good = {"queries": np.ones((3, 2)), "database": np.ones((4, 2)), "metric": "l2"}
    with pytest.raises((ValueError, TypeError), match=message):
        nearest(**good | change)
    with pytest.raises((ValueError, TypeError), match=message):
        covered(**good | change, bands=[(0.0, 1.0)])


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_database_is_refused(k):
    with pytest.raises(ValueError, match="k must be 1 to the size of the database, 4"):
        nearest(np.ones((3, 2)), np.ones((4, 2)), "l2", k)


@pytest.mark.parametrize("bands", [[], [(0.5, 0.5)], [(0.0, 1.0), (0.6, 0.5)], [(0.0, math.nan)]])
def test_bands_without_extent_are_refused(bands):
    with pytest.raises(ValueError, match="bands must"):
        covered(np.ones((3, 2)), np.ones((4, 2)), "l2", bands)


def test_without_faiss_the_error_names_both_extras(monkeypatch):
    real = builtins.__import__

    def without_faiss(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ImportError, match=r"\.\[cpu\].*\.\[gpu\]"):
        nearest(np.ones((3, 2)), np.ones((4, 2)), "l2")
