"""The use of generated rows and impossible rows, on tables where both are known."""

import numpy as np
import pandas as pd
import pytest

from sidepipe.base.table_encoding import Encoding
from sidepipe.base.table_kinds import schema_of
from sidepipe.base.tables import conform
from sidepipe.memorization.table_utility import impossible, measured, utility


def table(n, seed, target="kind", numeric=False):
    """A class that follows a number; or the number as the target."""
    rng = np.random.default_rng(seed)
    x = rng.random(n)
    frame = pd.DataFrame(
        {
            "x": [f"{value:.3f}" for value in x],
            "noise": [f"{value:.3f}" for value in rng.random(n)],
            "kind": np.where(x + 0.05 * rng.normal(size=n) > 0.5, "a", "b"),
        }
    )
    schema = schema_of({"train": frame}, target="x" if numeric else target)
    return conform("train", frame, schema), schema


@pytest.mark.parametrize("numeric", [False, True])
def test_rows_with_the_rule_are_of_use_and_shuffled_ones_are_not(numeric):
    train, schema = table(150, 0, numeric=numeric)
    heldout, _ = table(150, 1, numeric=numeric)
    encoding = Encoding.fit(train, schema)
    good = utility(train, heldout, encoding)
    shuffled = train.assign(
        **{schema.target: train[schema.target].sample(frac=1, random_state=0).to_numpy()}
    )
    bad = utility(shuffled, heldout, encoding)
    assert good > (0.5 if numeric else 0.95)
    assert bad < (0.1 if numeric else 0.65)


def test_no_target_and_a_single_class_have_no_utility():
    train, schema = table(60, 0, target=None)
    assert utility(train, train, Encoding.fit(train, schema)) is None
    train, schema = table(60, 0)
    one = train.assign(kind="a")
    assert utility(one, train, Encoding.fit(train, schema)) is None


def test_impossible_rows_are_those_of_a_plain_loop():
    rng = np.random.default_rng(2)

    def frame(n):
        pairs = rng.integers(3, size=(n, 2))
        return pd.DataFrame(
            {
                "color": np.array(["red", "green", ""])[pairs[:, 0]],
                "shape": np.array(["round", "square", "flat"])[pairs[:, 1]],
                "size": [f"{value:.1f}" if value > -2 else "" for value in rng.normal(size=n)],
            }
        )

    train, rows = frame(12), frame(80)
    schema = schema_of({"train": train, "rows": rows})
    train, rows = conform("train", train, schema), conform("rows", rows, schema)
    expected = []
    for row in rows.itertuples():
        same_color = train[train["color"].fillna("") == (row.color or "")]
        same_shape = train[train["shape"] == row.shape]
        bad = len(same_color[same_color["shape"] == row.shape]) == 0
        for same in (same_color, same_shape):
            if not np.isnan(row.size):
                sizes = same["size"].dropna()
                inside = len(sizes) > 0 and sizes.min() <= row.size <= sizes.max()
                bad = bad or not inside
        expected.append(bad)
    found = impossible(rows, train, schema)
    assert 0 < sum(expected) < len(expected)
    np.testing.assert_array_equal(found, expected)
    assert not impossible(train, train, schema).any()


def test_measures_of_training_rows_are_those_of_training_rows():
    train, schema = table(80, 0)
    heldout, _ = table(80, 1)
    found = measured(train, train, heldout, Encoding.fit(train, schema))
    assert found["utility"] == found["train_utility"]
    assert found["impossible"] == 0
    assert found["score"] == "AUC"
