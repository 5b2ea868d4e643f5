import numpy as np
import pandas as pd
import pytest

from sidepipe.base.table_encoding import MISMATCH, Encoding
from sidepipe.base.table_kinds import schema_of
from sidepipe.base.tables import conform


def mixed(rng, n=200):
    """Rows of every kind, with ties, duplicates and missing values."""
    frame = pd.DataFrame(
        {
            "cents": np.round(np.exp(rng.normal(size=n) * 3), 2),
            "zeros": np.where(rng.random(n) < 0.9, 0, rng.integers(1, 99999, n)),
            "floats": rng.normal(size=n) * 1e-3,
            "grade": rng.integers(1, 8, n),
            "color": rng.choice(["red", "green", "blue", "ochre"], n, p=[0.6, 0.2, 0.15, 0.05]),
        }
    )
    for name in ("cents", "grade", "color"):
        frame[name] = frame[name].astype(object)
        frame.loc[rng.random(n) < 0.1, name] = None
    frame.iloc[n // 2 : n // 2 + 20] = frame.iloc[:20].to_numpy()
    return frame.convert_dtypes().astype(object).where(frame.notna(), None)


@pytest.fixture
def rows():
    frame = mixed(np.random.default_rng(0))
    schema = schema_of({"train": frame})
    return conform("train", frame, schema), schema


def test_fitted_rows_come_back_exactly_from_float32(rows):
    frame, schema = rows
    assert [c.kind for c in schema.columns] == ["numeric"] * 3 + ["ordinal", "categorical"]
    encoding = Encoding.fit(frame, schema)
    vectors = encoding.encode(frame)
    assert vectors.dtype == np.float32
    assert vectors.shape == (200, encoding.width) == (200, 2 + 1 + 1 + 2 + 5)
    pd.testing.assert_frame_equal(encoding.decode(vectors), frame)
    np.testing.assert_array_equal(encoding.project(vectors), vectors)


def test_numbers_are_mid_ranks_between_minus_one_and_one():
    frame = pd.DataFrame({"a": [0.0, 0, 0, 5.5, 7, 7, np.nan]})
    schema = schema_of({"train": frame}, kinds={"a": "numeric"})
    vectors = Encoding.fit(frame, schema).encode(frame)
    # Mid-ranks 1.5, 3.5 and 5 of 6 values, stretched.
    expected = 2 * (np.array([1.5, 1.5, 1.5, 3.5, 5, 5]) - 1.5) / 3.5 - 1
    np.testing.assert_allclose(vectors[:6, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(vectors[:, 1], [-1] * 6 + [1])
    assert vectors[6, 0] == 0


def test_numbers_stay_in_order_beyond_the_fitted_ones_and_decode_to_their_range():
    frame = pd.DataFrame({"a": [1.0, 2.5, 4.0, 11.0]})
    schema = schema_of({"train": frame})
    encoding = Encoding.fit(frame, schema)
    more = pd.DataFrame({"a": [-9.0, 1, 2, 3, 11, 16, 21]})
    vectors = encoding.encode(more)
    assert (np.diff(vectors[:, 0]) > 0).all()
    np.testing.assert_allclose(vectors[[0, -1], 0], [-3, 3])
    assert encoding.decode(vectors)["a"].tolist() == [1, 1, 2, 3, 11, 11, 11]


def test_one_mismatch_of_a_category_costs_the_range_of_a_number():
    frame = pd.DataFrame({"a": [0.5, 1.5, 0.5], "b": ["x", "x", "y"], "c": ["1", "2", "3"]})
    schema = schema_of({"train": frame}, kinds={"b": "categorical", "c": ["1", "2", "3"]})
    x = Encoding.fit(frame, schema).encode(frame)
    assert np.linalg.norm(x[0, :1] - x[1, :1]) == pytest.approx(MISMATCH)
    assert np.linalg.norm(x[0, 1:3] - x[2, 1:3]) == pytest.approx(MISMATCH)
    assert x[:, 3].tolist() == [-1, 0, 1]


def test_the_projection_is_the_nearest_of_all_valid_rows():
    """Whole numbers between fitted ones are valid: brute force over all rows of a small table."""
    frame = pd.DataFrame({"n": [0.0, 1, 4, 9, np.nan], "c": ["x", "y", "z", None, "x"]})
    kinds = {"n": "numeric", "c": "categorical"}
    schema = schema_of({"train": frame}, kinds=kinds)
    encoding = Encoding.fit(conform("train", frame, schema), schema)
    numbers, texts = [*map(float, range(10)), np.nan], ["x", "y", "z", None]
    every = pd.DataFrame([(n, c) for n in numbers for c in texts], columns=["n", "c"])
    valid = encoding.encode(conform("every", every, schema)).astype(np.float64)
    rng = np.random.default_rng(1)
    noisy = rng.uniform(-1, 1, (300, encoding.width))
    # A mask of +-1 and a value decode apart: the nearest present number, where the mask is < 0.
    noisy[:, 1] = np.sign(noisy[:, 1])
    nearest = valid[((noisy[:, None] - valid) ** 2).sum(axis=2).argmin(axis=1)]
    np.testing.assert_allclose(encoding.project(noisy), nearest, atol=1e-6)


def test_columns_with_one_value_have_a_place():
    frame = pd.DataFrame({"a": [2.0, 2.0], "b": ["x", "y"], "c": ["k", "k"], "d": [3, 3]})
    schema = schema_of({"train": frame}, kinds={"a": "numeric", "d": [3]})
    encoding = Encoding.fit(conform("train", frame, schema), schema)
    vectors = encoding.encode(conform("train", frame, schema))
    assert np.isfinite(vectors).all()
    pd.testing.assert_frame_equal(encoding.decode(vectors), conform("train", frame, schema))


def test_a_column_without_values_to_fit_is_refused():
    frame = pd.DataFrame({"a": [1.5, 2.5, None], "b": ["x", "y", "x"]})
    schema = schema_of({"train": frame})
    with pytest.raises(ValueError, match="column 'a' must be with values to fit"):
        Encoding.fit(conform("train", frame[2:], schema), schema)


def test_entries_that_are_not_finite_are_refused(rows):
    encoding = Encoding.fit(*rows)
    with pytest.raises(ValueError, match="rows must be finite"):
        encoding.decode(np.full((1, encoding.width), np.nan))


def test_an_encoding_comes_back_from_its_files_without_a_pickle(rows, tmp_path):
    frame, schema = rows
    encoding = Encoding.fit(frame, schema)
    encoding.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"schema.json", "encoding.safetensors"}
    again = Encoding.load(tmp_path)
    assert again.schema == schema
    np.testing.assert_array_equal(again.encode(frame), encoding.encode(frame))


def test_a_table_of_categories_alone_is_saved(tmp_path):
    frame = pd.DataFrame({"a": ["x", "y"]})
    encoding = Encoding.fit(frame, schema_of({"train": frame}))
    encoding.save(tmp_path)
    np.testing.assert_array_equal(Encoding.load(tmp_path).encode(frame), encoding.encode(frame))
