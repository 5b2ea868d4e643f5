"""The table that a command prints."""

import json
import re

from tests.stages.report.planted import ATTACKS

from sidepipe.stages.report.stage import load_table
from sidepipe.stages.report.terminal import aligned
from sidepipe.stages.report.words import average


def test_the_terminal_table_is_narrow_plain_and_right(made, outputs, folder):
    text = load_table(folder)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 110
    warning, empty, head, *rows = text.splitlines()[: 3 + len(ATTACKS)]
    assert warning.startswith("warning: 2 image files")
    assert empty == ""
    assert [row.split()[0] for row in rows] == list(ATTACKS)
    assert len({len(line) for line in (head, *rows)}) == 1
    assert head.split("  ")[0] == "attack"
    assert "hits at 0.1 % FP" in head
    results = json.loads((outputs.inputs["side"] / "results.json").read_text())
    row, new = results["calibrated"][0], results["novelty"]["new"]["unique"]
    low, high = row["excess"]["interval"]
    cells = [200, row["train"]["count"], average(row["heldout"]["count"])]
    assert rows[1].split()[1:] == [
        *map(str, cells),
        f"{100 * row['excess']['share']:.1f}",
        *f"{100 * low:.1f} to {100 * high:.1f}".split(),
        str(row["train"]["unique"]),
        str(new),
        "14,000",
    ]
    assert f"RMS pixel difference <= {row['threshold']:.3g}" in " ".join(text.split())


def test_without_truth_the_terminal_table_shows_candidates(blind):
    made, _, _ = blind
    text = load_table(made.folder / "report")
    head = text.splitlines()[0]
    assert re.split(r"\s{2,}", head) == [
        *("attack", "images", "candidates", "groups", "largest", "evaluations")
    ]
    assert "No truth was given" in text
    assert "hits" not in text


def test_a_name_without_room_has_a_line_of_its_own_and_is_never_cut():
    long = "classifier_t200_cohesive_" + "k800" * 30
    lines = "\n".join(aligned([long, "one"], [["1", "22"]])).splitlines()
    assert lines[0] == long
    assert [line.split()[-1] for line in lines[1:]] == ["1", "22"]
    assert len(lines[1]) == len(lines[2])
