"""Tables for a paper, and the CSV of all numbers."""

import csv
import json
import re

import pytest
from tests.stages.report.planted import ATTACKS

from sidepipe.stages.report.files import escaped, latex, markdown
from sidepipe.stages.report.tables import Table


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def results(outputs, name):
    return json.loads((outputs.inputs[name] / "results.json").read_text())


def test_the_csv_has_every_attack_with_unrounded_numbers(made, outputs, folder):
    with (folder / "tables" / "attacks.csv").open(newline="") as file:
        rows = {row["attack"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(ATTACKS)
    found, row = results(outputs, "early"), rows["early"]
    assert float(row["tail_percentile_train"]) == found["tail_percentile"]["train"]
    assert float(row["bands_mid_heldout_ums"]) == found["bands"]["mid"]["heldout"]["ums"]
    first = found["calibrated"][0]
    assert float(row["calibrated_0.001_threshold"]) == first["threshold"]
    assert float(row["calibrated_0.001_excess_interval_high"]) == first["excess"]["interval"][1]
    assert float(row["quality_kid_train_std"]) == found["quality"]["kid"]["train"][1]
    assert row["bands_high_band_low"] == ""
    assert rows["unconditional"]["guidance_scale"] == ""
    assert row["t_min"] == "200"
    assert not [name for name in row if name.startswith(("curve", "blind_roc"))]


def test_a_table_is_written_as_the_page_has_it(page, folder):
    head, *rows = read_csv(folder / "tables" / "overlap.csv")
    assert head == [
        "attack",
        *(f"training images hit: {name}" for name in ("different", "only here", "shared")),
        *(f"hit by this attack and by: {name}" for name in ATTACKS),
    ]
    assert {name: cells for name, *cells in rows} == page.cells("Overlap of the attacks")


def test_no_two_columns_of_a_csv_have_one_name(made, folder):
    for path in (folder / "tables").glob("*.csv"):
        head = read_csv(path)[0]
        assert len(set(head)) == len(head), path.name


TABLE = Table(
    "name",
    "A caption",
    [("", 1), ("50 % & more", 2)],
    ["n_G", "≤ 0.5", "b"],
    [("a_{b}", ["1", "2 ± 1", "–"])],  # noqa: RUF001
)


def test_latex_is_a_tabular_with_rules_and_escaped_text():
    assert latex(TABLE).splitlines() == [
        "% A caption",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & \multicolumn{1}{c}{} & \multicolumn{2}{c}{50 \% \& more} \\",
        r"\cmidrule(lr){3-4}",
        r"attack & n\_G & $\leq$ 0.5 & b \\",
        r"\midrule",
        r"a\_\{b\} & 1 & 2 $\pm$ 1 & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_markdown_has_a_line_for_each_row_and_no_cell_that_ends_one():
    table = Table("n", "c", [("", 1), ("50 %", 1)], ["a|b", "c"], [("one\nrow", ["1|2", "±"])])
    assert markdown(table).splitlines() == [
        r"| attack | a\|b | 50 %: c |",
        "| --- | --- | --- |",
        r"| one row | 1\|2 | ± |",
    ]


def test_csv_and_markdown_have_the_same_cells(made, folder):
    for path in (folder / "tables").glob("*.md"):
        lines = [line[2:-2].split(" | ") for line in path.read_text().splitlines()]
        del lines[1]
        assert lines == read_csv(path.with_suffix(".csv")), path.name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("a\nb", "a b"),
        ("x^2~$1", r"x\textasciicircum{}2\textasciitilde{}\$1"),
        ("<#1>", r"$<$\#1$>$"),
    ],
)
def test_latex_prints_text_as_it_stands(text, shown):
    assert escaped(text) == shown


def test_every_row_of_every_table_has_its_columns_in_latex(made, folder):
    for path in (folder / "tables").glob("*.tex"):
        lines = path.read_text().splitlines()
        columns = len(re.search(r"\{(l?r*)\}", lines[1])[1])
        rows = [line for line in lines[5:] if line.endswith(r"\\")]
        assert len(rows) == 1 + len(ATTACKS)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}, path.name
