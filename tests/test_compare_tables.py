"""`sidepipe.compare` of tables: every number against loops over mixed rows, and bad input."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata
from tests.test_imports import heavy, probed

import sidepipe
from sidepipe.cli import main as command_line

NUM_TRAIN = NUM_HELDOUT = 150


def mixed(seed, n):
    """Rows with ties, missing values and, by few values, duplicates."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "cents": np.round(np.exp(rng.normal(size=n)), 1),
            "grade": rng.integers(1, 9, n),
            "color": rng.choice(["red", "green", "blue"], n, p=[0.7, 0.2, 0.1]),
            "label": rng.choice(["yes", "no"], n),
        }
    ).astype(object)
    for name in ("cents", "color"):
        frame.loc[rng.random(n) < 0.1, name] = None
    return frame


def tables(copies=40, n=120):
    train, heldout, generated = mixed(1, NUM_TRAIN), mixed(2, NUM_HELDOUT), mixed(3, n)
    generated.iloc[:copies] = train.iloc[:copies].to_numpy()
    return generated, train, heldout


def compared(generated, train, heldout, **options):
    return sidepipe.compare(generated, train=train, heldout=heldout, **options)


@pytest.fixture(scope="module")
def result():
    return compared(*tables(), false_positive_rate=0.2)


def brute_distances(some, others, real):
    """Distances of rows from their definition, with ranks of scipy."""
    values = real["cents"].dropna().astype(float).to_numpy()
    ranks = rankdata(values)
    order = np.unique(values)
    middle = np.array([ranks[values == v][0] for v in order])
    middle = (middle - middle.min()) / (middle.max() - middle.min())

    def squared(a, b):
        total = 0.0
        if (a["cents"] is None) != (b["cents"] is None):
            present = a["cents"] if b["cents"] is None else b["cents"]
            total += 1 + (np.interp(present, order, middle) - 0.5) ** 2
        elif a["cents"] is not None:
            total += (
                np.interp(a["cents"], order, middle) - np.interp(b["cents"], order, middle)
            ) ** 2
        total += ((a["grade"] - b["grade"]) / 7) ** 2
        return total + (a["color"] != b["color"]) + (a["label"] != b["label"])

    rows = [frame.where(frame.notna(), None).to_dict("records") for frame in (some, others)]
    return np.array([[squared(a, b) ** 0.5 for b in rows[1]] for a in rows[0]])


def test_every_number_is_that_of_loops_over_rows(result):
    generated, train, heldout = tables()
    real = pd.concat([train, heldout], ignore_index=True)
    to_train = brute_distances(generated, train, real)
    to_heldout = brute_distances(generated, heldout, real)
    control = brute_distances(heldout, train, real).min(axis=1)
    copies = int((control < 1e-9).sum())
    assert 0 < copies < 30  # ties at 0, fewer than a fifth of the held-out rows
    edge = np.sort(control)[30]
    nearest = to_train.min(axis=1)
    np.testing.assert_allclose(result.rows["distance"], nearest, atol=1e-6)
    np.testing.assert_allclose(result.rows["heldout_distance"], to_heldout.min(axis=1), atol=1e-6)
    assert result.threshold == pytest.approx(edge, abs=1e-6)
    hit = nearest < edge - 1e-6
    np.testing.assert_array_equal(result.hit, hit)
    np.testing.assert_array_equal(result.rows["hit"], hit)
    assert result.hits == hit.sum()
    heldout_hits = (to_heldout.min(axis=1) < edge - 1e-6).sum()
    assert result.heldout_hits == heldout_hits > 0
    assert result.excess.share == pytest.approx((hit.sum() - heldout_hits) / 120)
    low, high = result.excess.interval
    assert low < result.excess.share < high
    assert result.exact == (nearest < 1e-9).sum() >= 40
    assert result.exact_heldout == (to_heldout.min(axis=1) < 1e-9).sum() > 0
    closer = [
        0.5 if abs(a - b) < 1e-9 else float(a < b)
        for a, b in zip(nearest, to_heldout.min(axis=1), strict=True)
    ]
    np.testing.assert_allclose(result.rows["closer_to_train"], closer)
    assert result.closer.share == pytest.approx(np.mean(closer))
    rows = result.rows["train_row"].to_numpy() - 1
    np.testing.assert_allclose(to_train[np.arange(120), rows], nearest, atol=1e-9)


def published(queries, train, heldout, by_query):
    """Ratios of Fang et al. by pandas; a missing number is the mean of training."""
    filled = [frame[["cents", "grade"]].astype(float) for frame in (queries, train)]
    means = filled[1].mean()
    numeric = [frame.fillna(means) for frame in filled]
    texts = [frame[["color", "label"]].fillna("none") for frame in (queries, train)]
    span = 1 if by_query else numeric[1].max() - numeric[1].min()
    found = []
    for i in range(len(queries)):
        distance = (((numeric[1] - numeric[0].iloc[i]) / span) ** 2).sum(axis=1) ** 0.5
        if by_query:
            distance = (distance - distance.min()) / (distance.max() - distance.min())
        distance += (texts[1] != texts[0].iloc[i]).sum(axis=1)
        one, two = distance.nsmallest(2)
        found.append(one / two if two > 0 else 1.0)
    return np.array(found)


def test_published_measures_and_their_heldout_values_are_those_of_pandas(result):
    generated, train, heldout = tables()
    for name, measure, by_query in (
        ("ratio", result.ratio, True),
        ("scaled_ratio", result.scaled_ratio, False),
    ):
        own, control = (published(some, train, heldout, by_query) for some in (generated, heldout))
        np.testing.assert_allclose(result.rows[name], own, atol=1e-9)
        assert measure.generated.share == pytest.approx((own < 1 / 3 - 1e-9).mean())
        assert measure.heldout.share == pytest.approx((control < 1 / 3 - 1e-9).mean())
        assert measure.excess.share == pytest.approx(
            measure.generated.share - measure.heldout.share
        )
        assert measure.area.share == pytest.approx(1 - own.mean())
        assert measure.heldout_area.share == pytest.approx(1 - control.mean())


def test_copies_are_found_and_an_honest_generator_has_no_excess():
    copied = compared(*tables(copies=60), false_positive_rate=0.1)
    assert "training rows are reproduced" in str(copied).splitlines()[0]
    assert copied.excess.interval[0] > 0
    assert copied.exact_excess.interval[0] > 0.2
    assert copied.closer.interval[0] > 0.5
    honest = compared(*tables(copies=0, n=400), false_positive_rate=0.1)
    assert honest.excess.interval[0] <= 0 <= honest.excess.interval[1]
    assert honest.closer.interval[0] <= 0.5 <= honest.closer.interval[1]
    assert "reproduced;" not in str(honest).splitlines()[0]


def test_the_first_line_says_that_rows_are_too_few():
    few = compared(*tables(copies=2, n=20))
    assert str(few).startswith("Too few rows for a conclusion: ")
    assert "20 generated rows" in str(few)
    assert few.table().splitlines()[0] == str(few).splitlines()[0]


def test_equal_rows_raise_the_false_positive_rate_and_a_warning_names_it():
    generated, train, heldout = tables()
    heldout.iloc[:30] = train.iloc[:30].to_numpy()
    found = compared(generated, train, heldout, false_positive_rate=0.01)
    assert found.false_positive_rate >= 0.2
    assert found.hits >= found.exact >= 40
    assert any("by itself no evidence" in text for text in found.warnings)
    assert any("are they the same records?" in text for text in found.warnings)
    dropped = compared(generated, train, heldout, false_positive_rate=0.01, on_duplicates="drop")
    assert dropped.false_positive_rate == pytest.approx(1 / 97)  # 53 of 150 are copies
    with pytest.raises(ValueError, match="heldout must hold no copies of train: 53"):
        compared(generated, train, heldout, on_duplicates="error")


def test_copies_alone_cannot_be_a_control():
    generated, train, _ = tables()
    for on_duplicates in ("keep", "drop"):
        with pytest.raises(ValueError, match="heldout must be rows that are not all in train"):
            compared(generated, train, train, on_duplicates=on_duplicates)


def test_a_generator_that_repeats_one_row_has_collapsed():
    generated, train, heldout = tables()
    found = compared(pd.concat([generated.iloc[[100]]] * 60), train, heldout)
    assert found.excess is None
    assert str(found).startswith("No finding: nearly all rows are alike.")
    # Here a third of the real rows are equal to one of the other set by chance.
    found = compared(pd.concat([train.iloc[[0]]] * 60), train, heldout)
    assert found.exact == 60
    assert str(found).startswith("No finding: nearly all rows are alike.")


def test_one_training_row_again_and_again_is_an_exact_copy():
    _, train, heldout = tables()
    rng = np.random.default_rng(4)
    train["amount"], heldout["amount"] = rng.normal(size=(2, NUM_TRAIN))
    copies = compared(pd.concat([train.iloc[[7]]] * 60), train, heldout)
    first = "1 training row is reproduced exactly (60 of 60 generated rows)."
    assert str(copies).startswith(first)
    assert copies.excess is None
    assert copies.table().startswith(first)
    assert not any("no finding" in text for text in copies.warnings)
    own = compared(pd.concat([heldout.iloc[[7]]] * 60), train, heldout)
    assert str(own).startswith("No finding: nearly all rows are alike.")


def test_each_measure_has_a_line_of_progress_and_values_keep_their_digits(tmp_path, caplog):
    caplog.set_level("INFO", "sidepipe.api.tables")
    _, train, heldout = tables()
    train.loc[7, "cents"] = 26182.75
    generated = pd.concat([train.iloc[[7]], heldout.iloc[:30]])
    found = compared(generated, train, heldout)
    for measure in ("threshold of a hit", "exact copies", "published ratios", "share closer"):
        assert sum(measure in line for line in caplog.messages) == 1
    assert "<td>26182.75</td>" in found.report(tmp_path / "page.html").read_text()


def test_files_and_frames_give_the_same_numbers(tmp_path, result):
    names = ("synthetic.csv", "train.csv", "heldout.csv")
    for name, frame in zip(names, tables(), strict=True):
        frame.to_csv(tmp_path / name, index=False)
    read = compared(*(tmp_path / name for name in names), false_positive_rate=0.2)
    pd.testing.assert_frame_equal(read.rows, result.rows)
    assert (read.hits, read.excess, read.closer) == (result.hits, result.excess, result.closer)


def test_a_result_is_saved_as_a_page_a_list_and_numbers(result, tmp_path):
    result.save(tmp_path / "out", command="made by a test")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.html",
        "rows.csv",
        "result.json",
    }
    numbers = json.loads((tmp_path / "out" / "result.json").read_text())
    assert numbers["hits"] == result.hits
    assert numbers["closer"]["share"] == result.closer.share
    assert numbers["ratio"]["heldout"]["share"] == result.ratio.heldout.share
    assert numbers["inputs"]["train"]["num_rows"] == NUM_TRAIN
    assert numbers["command"] == "made by a test"
    listed = pd.read_csv(tmp_path / "out" / "rows.csv")
    assert listed["hit"].sum() == result.hits
    page = (tmp_path / "out" / "report.html").read_text()
    assert str(result).splitlines()[0] in page
    assert page.count('<th scope="row">generated ') == 20


def without_column(frame):
    return frame.drop(columns="color")


def with_value(name, value):
    return lambda frame: frame.assign(**{name: [value, *frame[name][1:]]})


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"generated": without_column}, {}, "generated must be a table with the columns of"),
        ({"heldout": without_column}, {}, "heldout must be a table with the columns of train"),
        (
            {"generated": with_value("color", "pink")},
            {},
            "'color' of generated, row 1 must be a kn",
        ),
        ({"generated": with_value("label", None)}, {}, "'label' of generated, row 1 must be a val"),
        ({"generated": with_value("cents", "much")}, {}, "row 1 must be a number, got 'much'"),
        (
            {"generated": lambda f: f.assign(label=f["label"].str.upper())},
            {"on_unseen": "keep"},
            "'label' must be written alike in generated and train, got '(NO and no|YES and yes)'",
        ),
        (
            {"generated": lambda f: f.assign(cents=range(len(f)))},
            {},
            "column 'cents' of generated must be a column of values, got 'row numbers",
        ),
        ({"train": lambda f: f[:2]}, {}, "train must be >= 3 rows, got 2"),
        ({"generated": lambda f: f[:19]}, {}, "generated must be >= 20 rows, got 19"),
        ({"heldout": lambda f: f[:19]}, {}, "heldout must be >= 20 rows, got 19"),
        ({"heldout": lambda f: None}, {}, "heldout is required: rows of the same kind"),
        ({"train": lambda f: None}, {}, "train is required"),
        ({"heldout": lambda f: "folder/"}, {}, "heldout must be a CSV or Parquet file"),
        ({}, {"false_positive_rate": 1.0}, "false_positive_rate must be in"),
        ({}, {"size": 8}, "size must be left out for tables"),
        ({}, {"cache": "folder"}, "cache must be left out for tables"),
        ({}, {"on_unseen": "drop"}, "on_unseen does not accept 'drop'"),
        ({}, {"target": "colour"}, "did you mean 'color'"),
        ({}, {"kinds": {"color": "numeric"}}, "must be a number, got 'red'"),
    ],
)
def test_bad_input_is_refused_with_its_name_and_rule(change, options, says):
    frames = dict(zip(("generated", "train", "heldout"), tables(), strict=True))
    for name, function in change.items():
        frames[name] = function(frames[name])
    with pytest.raises(ValueError, match=says):
        compared(frames["generated"], frames["train"], frames["heldout"], **options)


def test_all_constant_columns_are_refused():
    frame = pd.DataFrame({"a": ["x"] * 30, "b": [1.5] * 30})
    with pytest.raises(ValueError, match="train and heldout must be columns with different values"):
        compared(frame, frame, frame)


def test_a_class_with_one_row_is_compared():
    generated, train, heldout = tables()
    train.loc[0, "label"] = "perhaps"
    found = compared(generated, train, heldout, target="label", false_positive_rate=0.2)
    assert found.num_images == 120


def test_values_that_no_real_row_has_can_be_kept():
    generated, train, heldout = tables()
    generated.loc[50:, "color"] = "pink"
    generated.loc[50, "label"] = None
    found = compared(generated, train, heldout, false_positive_rate=0.2, on_unseen="keep")
    assert (found.rows["distance"][50:] >= 1).all()
    np.testing.assert_allclose(found.rows["distance"][:40], 0)


def test_arguments_of_tables_are_refused_for_images():
    images = np.zeros((20, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="target must be left out for images"):
        sidepipe.compare(images, train=images, heldout=images, target="label")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on files of the tables; gives the exit code and the text."""
    for name, frame in zip(("synthetic", "train", "heldout"), tables(), strict=True):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["sidepipe", "compare", *arguments])
        try:
            command_line.main()
        except SystemExit as error:
            return error.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return command


def test_the_command_takes_three_files_in_order(run, tmp_path, result):
    code, out = run("synthetic.csv", "train.csv", "heldout.csv", "false_positive_rate=0.2")
    assert code == 0
    assert out.startswith(result.table())
    assert (tmp_path / "comparison" / "rows.csv").exists()
    named = run("heldout=heldout.csv", "synthetic.csv", "train=train.csv", "out=b", "target=label")
    assert named[0] == 0
    numbers = json.loads((tmp_path / "b" / "result.json").read_text())
    assert "target=label" in numbers["command"]


def test_a_fourth_file_is_refused(run):
    error, _ = run("synthetic.csv", "train.csv", "heldout.csv", "train.csv")
    assert error.startswith("train.csv needs a name")


def test_the_command_takes_kinds_of_columns(run, tmp_path):
    kinds = ("kinds.grade=numeric", "kinds.color=red,green,blue")
    assert run("synthetic.csv", "train.csv", "heldout.csv", *kinds)[0] == 0


def test_refusals_of_the_command_are_one_line_and_import_no_torch(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("x,y\n1,2\n")
    monkeypatch.chdir(tmp_path)
    done = probed("cli.main", "compare", "a.csv", "b.csv")
    assert "heldout is required: rows of the same kind" in done.stderr
    assert "heldout=heldout.csv" in done.stderr
    assert heavy(done) == []
    done = probed("cli.main", "compare", "a.csv", "b.csv", "b.csv")
    assert "generated must be >= 20 rows, got 1" in done.stderr
    assert "torch" not in heavy(done)


def test_the_table_counts_near_copies_apart_from_exact_ones(result):
    lines = {line[:32].strip(): line[32:].split() for line in result.table().splitlines()}
    assert lines["exact copies of training rows"][0] == str(result.exact)
    assert lines["near copies of training rows"][0] == str(result.hits - result.exact)
    assert result.hits > result.exact


def test_a_small_control_of_rows_of_few_values_is_not_called_swapped():
    def few(seed, n):
        rng = np.random.default_rng(seed)
        a = np.round(np.exp(1.5 * rng.normal(size=n)))  # some values are much likelier
        return pd.DataFrame({"a": a, "b": rng.choice(list("xyz"), n)})

    kinds = {"a": "numeric", "b": "categorical"}
    found = compared(few(1, 1000), few(2, 600), few(3, 60), kinds=kinds)
    assert found.excess.interval[0] <= 0
    assert not any("swapped" in text for text in found.warnings)


def test_categories_that_training_and_heldout_rows_do_not_share_are_named():
    generated, train, heldout = tables()
    heldout = heldout.assign(label=heldout["label"].map({"yes": "oui", "no": "non"}))
    found = compared(generated, train, heldout, false_positive_rate=0.2)
    assert any("column 'label' has no category that both" in text for text in found.warnings)
