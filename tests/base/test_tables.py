import numpy as np
import pandas as pd
import pytest

from sidepipe.base.table_kinds import schema_of
from sidepipe.base.tables import Column, Schema, conform, read_table, write_csv

CSV = """age,income,job,grade,member,price
31,<=50K,nurse,1,True,10.25
44,>50K,?,3,False,
31,<=50K,cook,2,True,7.5
"""


def written(tmp_path, text=CSV, name="table.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def kinds_of(frame, **options):
    return {c.name: c.kind for c in schema_of({"train": frame}, **options).columns}


def test_kinds_missing_values_and_decimals_of_a_file_are_detected(tmp_path):
    schema = schema_of({"train": read_table(written(tmp_path))}, target="income")
    assert schema.columns == (
        Column("age", "categorical", ("31", "44")),
        Column("income", "categorical", ("<=50K", ">50K")),
        Column("job", "categorical", ("cook", "nurse"), missing=True),
        Column("grade", "ordinal", ("1", "2", "3")),
        Column("member", "categorical", ("False", "True")),
        Column("price", "numeric", decimals=2, missing=True),
    )
    assert schema.target == "income"


def test_whole_numbers_are_ranks_where_few_classes_in_the_target_and_numbers_otherwise():
    frame = pd.DataFrame({"few": np.arange(60) % 20, "many": np.arange(60) % 21})
    assert kinds_of(frame) == {"few": "ordinal", "many": "numeric"}
    assert kinds_of(frame, target="few")["few"] == "categorical"


def test_kinds_can_be_given_and_an_order_is_that_given(tmp_path):
    frame = read_table(written(tmp_path))
    given = {"age": "numeric", "grade": "categorical", "job": ["nurse", "cook", "king"]}
    schema = schema_of({"train": frame}, kinds=given)
    by_name = {c.name: c for c in schema.columns}
    assert by_name["age"].kind == "numeric"
    assert by_name["grade"].kind == "categorical"
    assert by_name["job"] == Column("job", "ordinal", ("nurse", "cook", "king"), missing=True)


def test_an_ordered_category_of_pandas_keeps_its_order():
    sizes = pd.Categorical(["small", "large", "small"], ["small", "large"], ordered=True)
    assert schema_of({"train": pd.DataFrame({"size": sizes})}).columns[0].categories == (
        *("small", "large"),
    )


def test_a_schema_survives_json(tmp_path):
    schema = schema_of({"train": read_table(written(tmp_path))}, target="income")
    assert Schema.from_json(schema.to_json()) == schema


def test_a_frame_and_its_csv_file_conform_to_equal_rows(tmp_path):
    frame = pd.DataFrame(
        {"a": [1.5, np.nan, -2.25], "b": [1.0, 2.0, np.nan], "c": [True, False, True]}
    )
    frame.to_csv(tmp_path / "frame.csv", index=False)
    schema = schema_of({"train": frame}, kinds={"b": "categorical"})
    read = conform("file", read_table(tmp_path / "frame.csv"), schema)
    pd.testing.assert_frame_equal(read, conform("frame", frame, schema))
    assert read["b"].tolist() == ["1", "2", None]


def test_columns_may_come_in_another_order(tmp_path):
    frame = read_table(written(tmp_path))
    schema = schema_of({"train": frame})
    turned = conform("turned", frame[frame.columns[::-1]], schema)
    pd.testing.assert_frame_equal(turned, conform("train", frame, schema))


def test_written_rows_come_back_at_their_precision(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "cents": np.round(rng.normal(size=50) * 100, 2),
            "whole": rng.integers(-1000, 1000, 50),
            "floats": rng.normal(size=50),
            "text": rng.choice(["a, b", 'c "d"', "é"], 50),
        }
    )
    frame.loc[3, ["cents", "text"]] = None
    schema = schema_of({"train": frame})
    rows = conform("train", frame, schema)
    write_csv(tmp_path / "rows.csv", rows, schema)
    again = conform("file", read_table(tmp_path / "rows.csv"), schema)
    pd.testing.assert_frame_equal(again, rows)
    assert (tmp_path / "rows.csv").read_text().split("\n")[1].split(",")[1].lstrip("-").isdecimal()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a table with rows"),
        ("a,b\n", "a table with rows"),
        ("a,b\n1\n", "line 2 must have 2 values"),
        (",b\n0,1\n", r"index=False"),
        ("a,a\n0,1\n", "different names"),
    ],
)
def test_files_that_are_no_table_are_refused(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        read_table(written(tmp_path, text))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        read_table(written(tmp_path, name="table.txt"))


def test_parquet_needs_pyarrow_and_the_error_names_the_extra(tmp_path, monkeypatch):
    def absent(path):
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pd, "read_parquet", absent)
    with pytest.raises(ImportError, match=r"\[tables\]"):
        read_table(written(tmp_path, name="table.parquet"))


def test_parquet_and_csv_of_one_frame_are_the_same_rows(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": [1.5, None, 3.0], "b": ["x", "y", None], "c": [1, 2, 3]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    tables = [read_table(tmp_path / f"t.{suffix}") for suffix in ("csv", "parquet")]
    schemas = [schema_of({"train": table}) for table in tables]
    assert schemas[0] == schemas[1]
    rows = [conform("t", table, schemas[0]) for table in tables]
    pd.testing.assert_frame_equal(*rows)


MANY = [f"name {i}" for i in range(21)]


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"a": [1, 1, 1], "b": ["x"] * 3}, {}, "different values"),
        ({"a": [None, None, "?"], "b": [1, 2, 3]}, {}, "'a' must be a column with values"),
        ({"a": ["1.5", "2", "3", "many"]}, {}, "numbers or of text, got 'many'"),
        ({"a": ["1.5", "many"], "b": [1, 2]}, {"kinds": {"a": "numeric"}}, "row 2 must be a numb"),
        ({"a": [1.5, np.inf, 2.5]}, {}, "row 2 must be a finite number"),
        ({"a": MANY, "b": range(0, 42, 2)}, {}, "fewer than rows"),
        ({"a": range(21), "b": range(0, 42, 2)}, {}, "row numbers"),
        ({"a": ["x", "y"]}, {"kinds": {"b": "numeric"}}, "kinds does not accept 'b'"),
        ({"a": ["x", "y"]}, {"kinds": {"a": "number"}}, "did you mean 'numeric'"),
        ({"a": ["x", "y"]}, {"kinds": {"a": "ordinal"}}, "give its values in order"),
        ({"a": ["x", "y"]}, {"kinds": {"a": ["x", "z"]}}, "all values of the column"),
        ({"a": ["x", "y"]}, {"target": "b"}, "target does not accept 'b'"),
    ],
)
def test_columns_of_no_use_are_refused(columns, options, says):
    with pytest.raises(ValueError, match=says):
        schema_of({"train": pd.DataFrame(columns)}, **options)


def test_a_given_kind_allows_numbers_with_some_text():
    frame = pd.DataFrame({"a": ["1.5", "2", "3", "many"]})
    assert kinds_of(frame, kinds={"a": "categorical"}) == {"a": "categorical"}


def test_one_constant_column_is_no_error():
    assert kinds_of(pd.DataFrame({"a": [1.5, 1.5], "b": ["x", "y"]}))["a"] == "numeric"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"b": None}, "without b"),
        ({"c": [1, 2]}, "with c"),
        ({"b": ["x", "z"]}, r"row 2 must be a known category, got 'z \(1 rows\)'; known: x, y"),
        ({"b": ["x", None]}, "row 2 must be a value"),
        ({"a": [1.5, None]}, "row 2 must be a value"),
        ({"a": [1.5, "old"]}, "row 2 must be a number, got 'old'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(changes, says):
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]})
    schema = schema_of({"train": frame})
    other = frame.astype(object).assign(**changes)
    if changes.get("b", "") is None:
        other = frame.drop(columns="b")
    with pytest.raises(ValueError, match=says):
        conform("synthetic", other, schema)


def test_files_with_different_columns_are_refused():
    one, other = pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"b": [1, 2]})
    with pytest.raises(ValueError, match=r"heldout must be a table with the columns of train, got"):
        schema_of({"train": one, "heldout": other})
