"""Tables of a sweep against results.json, and the lines for a terminal."""

import json

import numpy as np
import pytest
from tests.stages.report.sweep.conftest import FAILED, QUEUED, SIZE, SIZES

from sidepipe.stages.report.sweep.points import Missing, Point, read
from sidepipe.stages.report.sweep.tables import means_table, models_table, runs_table, seeds_table
from sidepipe.stages.report.sweep.terminal import sweep_text
from sidepipe.stages.report.words import average


def results(outputs, name):
    return json.loads((outputs.inputs[name] / "results.json").read_text())


def cells(table, row):
    return dict(zip(table.columns, table.rows[row][1], strict=True))


def test_every_finished_run_is_a_row_with_its_own_intervals(seeded, planted):
    table = runs_table(read(seeded))
    order = [(n, s) for n in SIZES for s in (0, 1) if (n, s) in planted]
    assert [(name, *row[:2]) for name, row in table.rows] == [
        (name, f"{n:,}", str(s)) for n, s in order for name in ("unconditional", "early")
    ]
    found, row = results(planted[256, 1], "early"), cells(table, 7)
    hit = found["calibrated"][0]
    low, high = (100 * end for end in hit["excess"]["interval"])
    share = 100 * hit["excess"]["share"]
    number = average(60 * hit["excess"]["share"])
    assert row["excess over held-out (95 % interval)"] == (
        f"+{number} ({share:.0f} %; {low:.0f} to {high:.0f})"
    )
    assert row["on training images"].startswith(f"{hit['train']['count']} (")
    assert row["number (95 % interval)"].startswith(f"{hit['train']['unique']} (")
    assert row["% of all"] == f"{100 * hit['train']['unique'] / found['num_different']:.3g}"
    assert row["new"] == str(found["novelty"]["new"]["unique"])
    evaluations = found["cost"]["network_evaluations"]
    assert row["hits per 1,000"] == f"{1000 * hit['train']['count'] / evaluations:#.3g}"


def test_where_fewer_are_held_out_their_hits_are_scaled_to_as_many_as_were_trained_on(
    seeded, planted
):
    table = runs_table(read(seeded))
    found = results(planted[1024, 0], "early")
    hit, row = found["calibrated"][0], cells(table, len(table.rows) - 1)
    assert found["control"]["scale"] > 1
    assert hit["heldout"]["scaled"] > hit["heldout"]["count"]
    assert row["on held-out images"].startswith(f"{average(hit['heldout']['scaled'])} (")
    assert sum(span for _, span in table.groups) == len(table.columns)


def test_seeds_stand_side_by_side_in_their_order(seeded, planted):
    table = seeds_table(read(seeded))
    assert [(name, row[0]) for name, row in table.rows] == [
        (name, f"{n:,}") for n in SIZES for name in ("unconditional", "early")
    ]
    found = [results(planted[256, seed], "early") for seed in (0, 1)]
    hits = [one["calibrated"][0] for one in found]
    row = cells(table, 3)
    assert row["hits"] == "; ".join(str(hit["train"]["count"]) for hit in hits)
    assert row["held out"] == "; ".join(average(hit["heldout"]["count"]) for hit in hits)
    assert row["different (held out)"] == "; ".join(
        f"{hit['train']['unique']} ({average(hit['heldout']['unique'])})" for hit in hits
    )
    assert row["new"] == "; ".join(str(one["novelty"]["new"]["unique"]) for one in found)
    assert row["excess, % (95 % interval)"] == "; ".join(
        f"{100 * hit['excess']['share']:.0f} ({100 * low:.0f} to {100 * high:.0f})"
        for hit in hits
        for low, high in [hit["excess"]["interval"]]
    )
    assert row["network evaluations"].count(";") == 1
    assert cells(table, 5)["hits"].count(";") == 0  # of the largest one seed is finished


def test_means_say_of_how_many_runs_and_how_far_these_lie_apart(seeded, planted):
    table = means_table(read(seeded))
    assert [row[:2] for _, row in table.rows] == [
        [f"{n:,}", "1 of 2" if n == 1024 else "2"] for n in SIZES for _ in range(2)
    ]
    hits = [results(planted[64, s], "early")["calibrated"][0]["train"] for s in (0, 1)]
    shares = [100 * hit["count"] / 60 for hit in hits]
    row = cells(table, 1)
    assert row["hits, % of images"] == (
        f"{np.mean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
    )
    assert len(set(shares)) == 2


def test_a_model_comes_once_with_its_losses_and_what_plain_samples_hit(seeded, planted):
    table = models_table(read(seeded))
    assert table.head == "model"
    assert [name for name, _ in table.rows] == [
        f"{SIZE}={n}, seed={s}" for n in SIZES for s in (0, 1) if (n, s) in planted
    ]
    row = table.rows[1][1]
    assert row[:5] == ["64", "750", "0.0312", "0.0451", "44.6"]
    hit = results(planted[64, 1], "unconditional")["calibrated"][0]
    assert row[5] == "60"
    assert row[6].startswith(f"{hit['train']['count']} (")
    assert row[7].startswith(f"{hit['heldout']['count']} (")


def test_without_plain_sampling_the_synthetic_images_say_what_a_model_gives_away(planted):
    early = planted[64, 0].inputs["early"]
    table = models_table(read([Point({"scale": n}, {"early": early}) for n in (1, 2)]))
    found = results(planted[64, 0], "early")["novelty"]["synthetic_hits"]
    assert [name for name, _ in table.rows] == ["dp"]  # the scale is not the model's
    assert table.rows[0][1][5:7] == ["120", f"{found} ({100 * found / 120:.1f} %)"]
    assert table.rows[0][1][7:] == ["–", "–"]  # noqa: RUF001


# For a terminal


def test_the_text_is_narrow_and_plain_and_has_every_attack_of_every_place(seeded, planted):
    text = sweep_text(read(seeded))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 110
    head, *lines = text.splitlines()
    assert "lowest to highest" in head
    assert [line for line in lines if line.startswith(SIZE)] == [f"{SIZE}={n}" for n in SIZES]
    hits = [results(planted[256, s], "early")["calibrated"][0]["train"]["count"] for s in (0, 1)]
    row = lines[lines.index(f"{SIZE}=256") + 2].split()
    assert row[:4] == ["early", "2", "60", f"{100 * np.mean(hits) / 60:.2f}"]
    assert "missing: 1 failed, 1 queued" in lines
    assert f"  {SIZE}=1024, seed=1 early: {FAILED.state}" in lines


def test_one_run_has_its_interval_and_one_that_waits_its_state(sizes, planted):
    running = {"unconditional": planted[64, 0].inputs["unconditional"]}
    running["early"] = Missing("0", "running step 300/2000, 0:12:00 left")
    lines = sweep_text(read([*sizes[2:], Point({SIZE: 64}, running)])).splitlines()
    low, high = results(planted[64, 0], "unconditional")["calibrated"][0]["excess"]["interval"]
    assert "95 % interval" in lines[0]
    assert f"{100 * low:.2f} to {100 * high:.2f}" in lines[2]
    assert lines[3] == "  early  running step 300/2000, 0:12:00 left"


def test_the_states_of_several_runs_are_counted_and_only_the_first_failures_are_told():
    points = [Point({"seed": n}, {"side": FAILED if n < 12 else QUEUED}) for n in range(20)]
    lines = sweep_text(read(points)).splitlines()
    assert lines[1:4] == ["  side  12 failed, 8 queued", "", "missing: 12 failed, 8 queued"]
    assert lines[4] == f"  seed=0 side: {FAILED.state}"
    assert lines[-1] == "  and 2 more"


@pytest.mark.parametrize("repeated", [True, False])
def test_the_legend_says_what_the_numbers_are_of(seeded, sizes, repeated):
    text = " ".join(sweep_text(read(seeded if repeated else sizes)).split())
    assert ("means over runs that differ in the seed" in text) == repeated
    assert "as 1 % of real held-out images do" in text
