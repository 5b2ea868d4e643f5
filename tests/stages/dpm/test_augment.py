"""Augmented rows, and the associations of columns, compared with plain loops and with scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sidepipe.base.table_encoding import Encoding
from sidepipe.base.table_kinds import schema_of
from sidepipe.base.tables import conform
from sidepipe.stages.dpm.associations import (
    associations,
    column_clusters,
    correlation_ratio,
    cramers_v,
)
from sidepipe.stages.dpm.augment import augmented, cut_mixed, entries_of, mixed_up, partners, smoted

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(3, size=40)
CLASSES[-1] = 3  # alone
# Each entry names its row and column, so that its origin is known.
ROWS = np.arange(40)[:, None] + np.arange(6) / 100


def origin(made):
    return np.rint(made - np.arange(6) / 100).astype(int)


def test_partners_are_other_rows_of_the_class_each_as_often():
    draws = np.array([partners(CLASSES, np.random.default_rng(i)) for i in range(2000)])
    assert (CLASSES[draws] == CLASSES).all()
    assert (draws[:, -1] == 39).all(), "a row that is alone has no partner"
    own = np.flatnonzero(CLASSES[0] == CLASSES)
    others = own[own != 0]
    counts = np.bincount(draws[:, 0], minlength=40)[others]
    assert counts.sum() == 2000
    assert stats.chisquare(counts).pvalue > 0.001


def test_cut_mixed_rows_take_whole_groups_from_two_rows_of_one_class():
    groups = [np.array([0, 3]), np.array([1]), np.array([2, 4, 5])]
    made = origin(cut_mixed(ROWS, CLASSES, groups, np.random.default_rng(1)))
    for row, sources in enumerate(made):
        assert len(set(sources) - {row}) <= 1
        assert (CLASSES[sources] == CLASSES[row]).all()
        assert all(len(set(sources[group])) == 1 for group in groups)


def test_the_share_of_columns_that_stay_is_uniform():
    rows = np.tile(ROWS, (100, 1))
    classes = np.zeros(len(rows), np.int64)
    groups = [np.array([column]) for column in range(6)]
    rows[:, :] = np.arange(len(rows))[:, None]
    made = cut_mixed(rows, classes, groups, np.random.default_rng(2))
    stayed = (made == rows).sum(1)
    # Bernoulli with a uniform probability: every count from 0 to 6 is as probable.
    assert stats.chisquare(np.bincount(stayed, minlength=7)).pvalue > 0.001


@pytest.mark.parametrize("method", [mixed_up, smoted])
def test_interpolated_rows_lie_between_two_rows_of_one_class(method):
    rows = RNG.normal(size=(40, 6))
    made = method(rows, CLASSES, np.random.default_rng(3))
    np.testing.assert_array_equal(made[-1], rows[-1])
    for row in range(39):
        own = [i for i in range(40) if CLASSES[i] == CLASSES[row] and i != row]
        if method is smoted:
            distance = [np.linalg.norm(rows[i] - rows[row]) for i in own]
            own = [own[i] for i in np.argsort(distance)[:5]]
        gaps = []
        for i in own:
            step = rows[i] - rows[row]
            share = (made[row] - rows[row]) @ step / (step @ step)
            gaps.append(np.abs(rows[row] + share * step - made[row]).max() + (not 0 <= share <= 1))
        assert min(gaps) < 1e-9


def test_associations_are_those_of_scipy_and_of_plain_loops():
    n = 200
    color = RNG.integers(3, size=n)
    shape = np.where(RNG.random(n) < 0.7, color, RNG.integers(3, size=n))
    size = color * 2.0 + RNG.normal(size=n)
    weight = -size + RNG.normal(size=n)
    frame = pd.DataFrame(
        {
            "color": np.array(["red", "green", "blue"])[color],
            "shape": np.array(["a", "b", "c"])[shape],
            "size": [f"{value:.3f}" for value in size],
            "weight": [f"{value:.3f}" for value in weight],
        }
    )
    frame.loc[::17, "size"] = ""
    schema = schema_of({"train": frame})
    found = associations(conform("train", frame, schema), schema)
    table = pd.crosstab(frame["color"], frame["shape"])
    expected = stats.contingency.association(table.to_numpy(), method="cramer")
    assert found[0, 1] == pytest.approx(expected)
    present = frame["size"] != ""
    numbers = frame.loc[present, "size"].astype(float), frame.loc[present, "weight"].astype(float)
    assert found[2, 3] == pytest.approx(abs(stats.pearsonr(*numbers).statistic))
    whole = numbers[0]
    between = sum(
        len(part) * (part.mean() - whole.mean()) ** 2
        for _, part in whole.groupby(frame.loc[present, "color"])
    )
    eta = np.sqrt(between / ((whole - whole.mean()) ** 2).sum())
    assert found[0, 2] == pytest.approx(eta)
    np.testing.assert_array_equal(found, found.T)


def test_constant_columns_and_single_classes_have_no_association():
    assert cramers_v(np.zeros(9, np.int64), np.arange(9) % 3) == 0
    assert correlation_ratio(np.arange(9) % 3, np.ones(9)) == 0
    assert correlation_ratio(np.arange(3), np.full(3, np.nan)) == 0


def test_clusters_are_columns_with_a_strong_mean_association():
    association = np.array([[1, 0.9, 0.1, 0], [0.9, 1, 0.2, 0], [0.1, 0.2, 1, 0.6], [0, 0, 0.6, 1]])
    assert column_clusters(association).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert len(set(column_clusters(association, apart=0.05).tolist())) == 4
    assert column_clusters(np.ones((1, 1))).tolist() == [0]


def people():
    """Rows with a class, a number that follows it, and a category of its own."""
    rng, n = np.random.default_rng(5), 60
    grade = rng.integers(2, size=n)
    texts = {
        "grade": np.array(["low", "high"])[grade],
        "income": [f"{value:.2f}" for value in 10 * grade + rng.random(n)],
        "town": np.array(["A", "B", "C"])[rng.integers(3, size=n)],
    }
    frame = pd.DataFrame(texts)
    schema = schema_of({"train": frame}, target="grade")
    conformed = conform("train", frame, schema)
    return conformed, Encoding.fit(conformed, schema)


@pytest.mark.parametrize("method", ["tabcutmix", "tabcutmix_plus", "mixup", "smote"])
def test_augmented_rows_are_new_valid_rows_of_their_class(method):
    frame, encoding = people()
    made = augmented(method, frame, encoding, seed=0)
    assert made.shape == (60, encoding.width)
    np.testing.assert_array_equal(encoding.project(made), made)
    again = encoding.decode(made)
    assert (again["grade"].to_numpy() == frame["grade"].to_numpy()).all()
    of_class = again["income"].to_numpy() >= 5
    np.testing.assert_array_equal(of_class, (frame["grade"] == "high").to_numpy())
    known = {row.tobytes() for row in encoding.encode(frame)}
    assert sum(row.tobytes() not in known for row in made) >= 5, "one in five mixes two towns"


def test_associated_columns_are_one_cluster_of_entries():
    frame, encoding = people()
    cluster = column_clusters(associations(frame, encoding.schema))
    assert cluster[0] == cluster[1] != cluster[2]
    found = entries_of(cluster, encoding)
    assert sorted(map(len, found)) == [3, 3]
    assert sorted(np.concatenate(found)) == list(range(encoding.width))
