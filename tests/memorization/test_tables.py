"""Published measures of tables, against loops over pairs of rows."""

import numpy as np
import pytest

from sidepipe.features.search import nearest
from sidepipe.memorization import tables as m

RNG = np.random.default_rng(0)


def rows(n, seed):
    rng = np.random.default_rng(seed)
    thousands = np.round(rng.normal(size=n) * 1000, -2)
    numeric = np.stack([thousands, rng.integers(0, 4, n)], axis=1)
    return m.Plain(numeric, rng.integers(0, 3, (n, 2)))


TRAIN = rows(60, 1)
# A third are training rows, some of which occur twice, and some differ in a category alone.
QUERIES = m.Plain(
    np.concatenate([TRAIN.numeric[:20], rows(40, 2).numeric]),
    np.concatenate([TRAIN.codes[:10], TRAIN.codes[10:20, ::-1], rows(40, 2).codes]),
)
DOUBLE = m.Plain(
    np.concatenate([TRAIN.numeric, TRAIN.numeric[:5]]),
    np.concatenate([TRAIN.codes, TRAIN.codes[:5]]),
)


def looped(queries, train, by_query):
    found = []
    span = [max(column) - min(column) for column in train.numeric.T]
    for numbers, codes in zip(queries.numeric, queries.codes, strict=True):
        scale = [1, 1] if by_query else span
        euclid = [
            sum(((a - b) / s) ** 2 for a, b, s in zip(numbers, other, scale, strict=True)) ** 0.5
            for other in train.numeric
        ]
        if by_query:
            low, high = min(euclid), max(euclid)
            euclid = [(d - low) / (high - low) for d in euclid]
        mismatch = [sum(a != b for a, b in zip(codes, c, strict=True)) for c in train.codes]
        one, two = sorted(d + e for d, e in zip(euclid, mismatch, strict=True))[:2]
        found.append(one / two if two > 0 else 1.0)
    return found


@pytest.mark.parametrize("train", [TRAIN, DOUBLE], ids=["ties", "duplicates"])
def test_ratios_are_those_of_loops_over_pairs(train, monkeypatch):
    monkeypatch.setattr(m, "MOST_PAIRS", 7 * len(train))  # several blocks
    found = m.published_ratios(QUERIES, train), m.global_ratios(QUERIES, train)
    np.testing.assert_allclose(found[0], looped(QUERIES, train, True), atol=1e-9)
    np.testing.assert_allclose(found[1], looped(QUERIES, train, False), atol=1e-9)
    assert (found[1][:5] == (1 if train is DOUBLE else 0)).all()


def test_by_query_the_nearest_row_of_a_numeric_table_always_counts():
    """The fault of the published measure: unrelated rows are all memorized."""
    train, others = (m.Plain(RNG.normal(size=(n, 3)), np.empty((n, 0), int)) for n in (200, 100))
    assert (m.published_ratios(others, train) == 0).all()
    assert (m.global_ratios(others, train) < m.RATIO).mean() < 0.2


def test_categories_alone_and_constant_numbers_have_ratios():
    codes = np.array([[0, 0], [0, 1], [1, 1]])
    none, constant = np.empty((3, 0)), np.ones((3, 1))
    for numeric in (none, constant):
        plain = m.Plain(numeric, codes)
        assert m.published_ratios(plain, plain).tolist() == [0, 0, 0]
        assert m.global_ratios(plain, plain).tolist() == [0, 0, 0]


def test_mem_auc_is_the_area_under_the_share_below_a_threshold():
    ratios = RNG.random(200)
    grid = np.linspace(0, 1, 20001)
    area = np.trapezoid([(ratios < threshold).mean() for threshold in grid], grid)
    assert m.mem_auc(ratios) == pytest.approx(area, abs=1e-4)


def test_the_share_closer_to_training_rows_is_that_of_loops():
    rng = np.random.default_rng(3)
    train, heldout, queries = (rng.integers(0, 3, (n, 2)).astype(np.float32) for n in (6, 6, 50))
    expected = []
    for q in queries:
        one, other = (min(((q - x) ** 2).sum() for x in some) for some in (train, heldout))
        expected.append(0.5 if one == other else float(one < other))
    assert {0, 0.5, 1} <= set(expected)
    np.testing.assert_array_equal(m.closer_to_train(queries, train, heldout), expected)


def test_a_larger_set_does_not_look_closer():
    rng = np.random.default_rng(4)
    queries = rng.normal(size=(2000, 2)).astype(np.float32)
    one, other = (rng.normal(size=(n, 2)).astype(np.float32) for n in (900, 100))
    raw = [nearest(queries, some, "l2")[0][:, 0] for some in (one, other)]
    assert (raw[0] < raw[1]).mean() > 0.8
    assert abs(m.closer_to_train(queries, one, other).mean() - 0.5) < 0.1
    assert abs(m.closer_to_train(queries, other, one).mean() - 0.5) < 0.1


def test_copies_of_training_rows_are_closer_to_them():
    rng = np.random.default_rng(5)
    train, heldout = (rng.normal(size=(300, 3)).astype(np.float32) for _ in range(2))
    queries = np.concatenate([train[:150], rng.normal(size=(150, 3)).astype(np.float32)])
    scores = m.closer_to_train(queries, train, heldout)
    assert (scores[:150] == 1).all()
    row = nearest(queries, np.concatenate([train, heldout]), "l2")[1][:, 0]
    assert m.share_interval(scores, row, 600)[0] > 0.6


@pytest.mark.parametrize(("num_train", "num_heldout"), [(100, 100), (200, 50)])
def test_the_interval_covers_one_half_without_memorization(num_train, num_heldout):
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sizes = (num_train, num_heldout, 500)
        train, heldout, queries = (rng.normal(size=(n, 3)).astype(np.float32) for n in sizes)
        scores = m.closer_to_train(queries, train, heldout)
        row = nearest(queries, np.concatenate([train, heldout]), "l2")[1][:, 0]
        low, high = m.share_interval(scores, row, num_train + num_heldout)
        covered += low <= 0.5 <= high
    assert covered >= 181  # 95 % of 200, less three standard deviations
