import numpy as np
import pandas as pd
import pytest

from sidepipe.base.table_checks import doubts
from sidepipe.base.table_kinds import schema_of
from sidepipe.base.tables import Column, Schema, conform, read_table, texts_of, write_csv

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
    with pytest.raises(ValueError, match=r"\.csv, \.tsv or \.parquet"):
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
DATES = [f"2020-03-{i:02d}" for i in range(1, 31)]


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"a": [1, 1, 1], "b": ["x"] * 3}, {}, "different values"),
        ({"a": [None, None, "?"], "b": [1, 2, 3]}, {}, "'a' must be a column with values"),
        (
            {"a": ["1.5", "2", "3", "many"]},
            {},
            "train, row 4 must be a number, as in most rows, got 'many'",
        ),
        ({"a": ["1.5", "many"], "b": [1, 2]}, {"kinds": {"a": "numeric"}}, "row 2 must be a numb"),
        ({"a": [1.5, np.inf, 2.5]}, {}, "row 2 must be a finite number"),
        ({"a": MANY, "b": range(0, 42, 2)}, {}, "fewer than rows"),
        ({"a": range(21), "b": range(0, 42, 2)}, {}, "row numbers"),
        (
            {"a": [2**60 + 1, 5]},
            {"kinds": {"a": "numeric"}},
            "train, row 1 must be a number that fl",
        ),
        ({"a": [f"{2**60 + 5 * i}" for i in range(30)]}, {}, "kinds.a=categorical"),
        ({"a": ["43,75", "1,5", "2"] * 9}, {}, "decimal point and no other separator.*write 43.75"),
        ({"a": ["21,741.41", "1,250", "2.5"] * 9}, {}, "write 21741.41"),
        ({"a": ["1.234,5", "2,5", "2"] * 9}, {}, "write 1234.5"),
        ({"a": ["12 500", "1,250", "700"] * 9}, {}, "write 12500"),
        ({"a": DATES}, {}, "30 dates, such as 2020-03-01'; write a number, such as"),
        ({"a": [[1], [2]]}, {}, "'a', row 1 must be a number, a text or empty, got 'a list'"),
        ({("a", "b"): [1, 2]}, {}, "train must be a table with one name per column, got '2 levels"),
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


@pytest.mark.parametrize("column", ["cut", "wrong"])
def test_errors_of_two_tables_name_the_table_and_its_row(column):
    values = {"cut": [1.5, np.inf, 2.5], "wrong": ["1.5", "many", "2.5"]}[column]
    frames = {"train": pd.DataFrame({"a": [1.5, 3.5, 7.0, 8.0]}, dtype=object)}
    with pytest.raises(ValueError, match="column 'a' of heldout, row 2 must be a"):
        schema_of({**frames, "heldout": pd.DataFrame({"a": values}, dtype=object)})


def test_numbers_with_as_many_digits_as_float64_holds_are_accepted():
    frame = pd.DataFrame({"a": ["1e25", "9007199254740992", "1.5", "1152921504606846976"]})
    assert kinds_of(frame) == {"a": "numeric"}
    ids = [f"{2**60 + i % 25}" for i in range(50)]
    assert kinds_of(pd.DataFrame({"a": ids}), kinds={"a": "categorical"})["a"] == "categorical"


@pytest.mark.parametrize("step", [1, 768])
@pytest.mark.parametrize("kept", [1.0, 0.3])
def test_an_index_that_was_split_at_random_is_refused_and_a_year_can_be_given(step, kept):
    rng = np.random.default_rng(0)
    index = step * rng.permutation(400)[: int(400 * kept)]
    frames = {
        n: pd.DataFrame({"a": part}) for n, part in zip("th", np.split(index, 2), strict=True)
    }
    with pytest.raises(ValueError, match=r"'a' of .* must be a column of values, got 'row numbers"):
        schema_of(frames)
    assert schema_of(frames, kinds={"a": "numeric"}).columns[0].kind == "numeric"


def test_an_index_of_small_tables_is_found_in_both_together():
    frames = {n: pd.DataFrame({"a": np.arange(15) * 2 + i}) for i, n in enumerate(("t", "h"))}
    with pytest.raises(ValueError, match="'a' of t and h must be a column of values"):
        schema_of(frames)


def test_whole_numbers_drawn_at_random_are_no_index():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        for values in (rng.integers(18, 90, 30), rng.integers(0, 10**6, 500)):
            assert kinds_of(pd.DataFrame({"a": values})) == {"a": "numeric"}


@pytest.mark.parametrize(
    ("one", "other"),
    [("True", "true"), ("M", "m"), ("1", "01"), ("3", "3e0"), (True, 1), ("a b", "a  B")],
)
def test_one_category_in_two_notations_is_refused_unless_all_tables_have_both(one, other):
    train = pd.DataFrame({"a": [one, "x", one, "y"]}, dtype=object)
    heldout = train.replace({"a": {one: other}})
    with pytest.raises(ValueError, match=rf"categories of column 'a' must .* '{one} and {other}'"):
        schema_of({"train": train, "heldout": heldout})
    both = pd.concat([train, heldout])
    assert schema_of({"train": both, "heldout": both}).columns[0].kind == "categorical"


def test_a_rare_other_notation_is_accepted():
    train = pd.DataFrame({"a": ["yes", "no"] * 20})
    heldout = pd.DataFrame({"a": ["Yes", *["yes", "no"] * 20]})
    assert len(schema_of({"train": train, "heldout": heldout}).columns[0].categories) == 3


def test_composed_and_decomposed_letters_and_signs_of_zero_are_alike():
    texts = pd.Series(["Zoe\u0308", "-0", "-0.0", 0.0, -0.0, "+0", "-05", True, 1], dtype=object)
    assert texts_of(texts).tolist() == ["Zo\u00eb", *["0"] * 5, "-05", "True", "1"]
    schema = Schema((Column("a", "numeric", decimals=0),))
    zero = conform("t", pd.DataFrame({"a": ["-0.0", "0"]}), schema)["a"]
    assert not np.signbit(zero).any()


def test_doubts_name_rising_numbers_and_categories_that_are_in_one_table_alone():
    rng = np.random.default_rng(0)
    parts = {}
    for name in ("train", "heldout"):
        rising = np.sort(rng.choice(10**6, 30, replace=False))
        parts[name] = pd.DataFrame({"a": rising, "b": ["c", name] * 15, "c": [name, None] * 15})
    schema = schema_of(parts)
    rows = {name: conform(name, frame, schema) for name, frame in parts.items()}
    rises, apart = doubts(rows, schema, {})
    assert "column 'a'" in rises
    assert apart.startswith("column 'c' has no category that both train and heldout have")
    assert doubts(rows, schema, {"a": "numeric"}) == [apart]


def test_tsv_is_read(tmp_path):
    text = CSV.replace(",", "\t")
    pd.testing.assert_frame_equal(
        read_table(written(tmp_path, text, "t.tsv")), read_table(written(tmp_path))
    )
