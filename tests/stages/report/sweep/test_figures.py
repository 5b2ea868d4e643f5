"""Figures of a sweep: what is drawn where, read off the drawn lines, against results.json."""

import io
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binomtest
from tests.stages.report.sweep.conftest import SIZES

from sidepipe.stages.report.figures import line_style, our_style
from sidepipe.stages.report.sweep.figures import shortened, sweep_figure
from sidepipe.stages.report.sweep.points import Point, read
from sidepipe.stages.report.sweep.quantities import (
    COST,
    EXCESS,
    HELDOUT,
    HITS,
    NEW,
    QUANTITIES,
    UNIQUE,
)


@pytest.fixture(autouse=True)
def style():
    with our_style():
        yield


def line_of(axis, number):
    """The line of the `number`-th attack's means: the first in its color."""
    color = line_style(number)["color"]
    return next(line for line in axis.get_lines() if line.get_color() == color)


def told(outputs, name):
    """Every quantity, from the file alone."""
    found = json.loads((outputs.inputs[name] / "results.json").read_text())
    row, n = found["calibrated"][0], found["num_images"]
    return {
        EXCESS: 100 * row["excess"]["share"],
        HITS: 100 * row["train"]["count"] / n,
        HELDOUT: 100 * row["heldout"]["scaled"] / n,
        UNIQUE: row["train"]["unique"],
        NEW: found["novelty"]["new"]["unique"],
        COST: 1000 * row["train"]["count"] / found["cost"]["network_evaluations"],
    }


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.name)
def test_a_line_goes_through_the_numbers_of_the_results(sizes, planted, quantity):
    axis = sweep_figure(read(sizes), quantity).axes[0]
    for number, name in enumerate(("unconditional", "early")):
        line = line_of(axis, number)
        assert list(line.get_xdata()) == list(SIZES)
        expected = [told(planted[n, 0], name)[quantity] for n in SIZES]
        assert line.get_ydata() == pytest.approx(expected)
        assert len(set(expected)) > 1 or quantity is HELDOUT


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.name)
def test_with_seeds_the_line_joins_means_and_every_run_is_a_hollow_mark(seeded, planted, quantity):
    figure = sweep_figure(read(seeded), quantity)
    axis = figure.axes[0]
    runs = {n: [] for n in SIZES}
    for (n, _), outputs in planted.items():
        runs[n].append(told(outputs, "early")[quantity])
    assert line_of(axis, 1).get_ydata() == pytest.approx([np.mean(runs[n]) for n in SIZES])
    hollow = [line for line in axis.get_lines() if line.get_markerfacecolor() == "none"][1]
    drawn = [pair for pair in np.transpose(hollow.get_data()) if not np.isnan(pair).any()]
    assert np.allclose(drawn, [(n, value) for n in SIZES for value in runs[n]])
    assert axis.containers == []  # no interval of a single run
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "runs"


@pytest.mark.parametrize("quantity", [EXCESS, UNIQUE], ids=lambda quantity: quantity.name)
def test_without_seeds_bars_are_the_intervals_of_the_results(sizes, planted, quantity):
    axis = sweep_figure(read(sizes), quantity).axes[0]
    for number, name in enumerate(("unconditional", "early")):
        bars = axis.containers[number][2][0].get_segments()
        for bar, n in zip(bars, SIZES, strict=True):
            found = json.loads((planted[n, 0].inputs[name] / "results.json").read_text())
            if quantity is EXCESS:
                ends = 100 * np.array(found["calibrated"][0]["excess"]["interval"])
            else:
                at = found["rarefaction"]["num_images"].index(60)
                ends = [found["rarefaction"][end][at] for end in ("low", "high")]
            assert bar[:, 0].tolist() == [n, n]
            assert bar[:, 1] == pytest.approx(ends)


def test_a_share_has_wilson_s_interval(sizes):
    attack = read(sizes).runs[1][1]
    k, n = attack.hits(), attack.num_images
    low, high = HITS.interval(attack)
    assert 0 < k < n
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high))
    each = 1000 * n / attack.network_evaluations / 100
    assert COST.interval(attack) == pytest.approx((low * each, high * each))


def swept(planted, values, name="scale", **more):
    """Points of one model, so that only the setting differs."""
    inputs = planted[64, 0].inputs
    return read([Point({name: value, **more}, inputs) for value in values])


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1000, 5478, 25000], "log"), ([0, 0.5, 50], "symlog"), ([5, 20, 50], "linear")],
)
def test_the_scale_is_logarithmic_beyond_ten_times(planted, values, scale):
    axis = sweep_figure(swept(planted, values), EXCESS).axes[0]
    assert axis.get_xscale() == scale
    low, high = axis.get_xlim()
    assert low < values[0] < values[-1] < high
    assert list(axis.get_xticks()) == values


def test_what_is_no_number_has_marks_without_a_line(planted):
    axis = sweep_figure(swept(planted, ["uniform", "top_cohesion"]), EXCESS).axes[0]
    assert line_of(axis, 0).get_linestyle() == "None"
    assert list(line_of(axis, 0).get_xdata()) == [0, 1]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["uniform", "top_cohesion"]


def test_attacks_at_one_place_are_drawn_side_by_side_at_the_same_number(sizes):
    axis = sweep_figure(read(sizes), HELDOUT).axes[0]
    axis.figure.draw_without_rendering()
    one, other = (line_of(axis, number) for number in (0, 1))
    ends = [line.get_transform().transform((64, 0)) for line in (one, other)]
    assert one.get_xdata()[0] == other.get_xdata()[0] == 64
    assert ends[1][0] - ends[0][0] == pytest.approx(4 * axis.figure.dpi / 72)


def test_every_setting_that_is_not_drawn_is_a_panel(planted):
    inputs = planted[64, 0].inputs
    points = [Point({"a": a, "b": b}, inputs) for a in (1, 2, 3) for b in ("$x^", "y")]
    axes = sweep_figure(read(points), EXCESS).axes
    assert [axis.get_title(loc="left") for axis in axes] == ["b=$x^", "b=y"]
    assert [len(line_of(axis, 0).get_xdata()) for axis in axes] == [3, 3]


CROWDED = {
    "many numbers": [0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 50],
    "evenly": list(range(1000, 1030)),
    "names": [f"a_rather_long_name_{n}" for n in range(6)],
    "many names": [f"name_{n}" for n in range(40)],
    "sizes": [1000, 5478, 25000, 162770],
}


@pytest.mark.parametrize("values", CROWDED.values(), ids=CROWDED)
@pytest.mark.parametrize("others", [[0], [1, 2, 3]], ids=["one panel", "panels"])
def test_no_two_labels_of_ticks_overlap(planted, values, others):
    inputs = planted[64, 0].inputs
    points = [Point({"a": a, "b": str(b)}, inputs) for a in values for b in others]
    figure = sweep_figure(read(points), NEW)
    figure.savefig(io.BytesIO(), format="svg")
    for axis in figure.axes:
        texts = [text for text in axis.get_xticklabels() if text.get_text()]
        boxes = [text.get_window_extent() for text in texts]
        if any(text.get_rotation() for text in texts):
            # As boxes they overlap; they are parallel, and so far apart.
            across = math.sin(math.radians(30)) * 72 / figure.dpi
            gaps = [(now.x1 - one.x1) * across for one, now in pairwise(boxes)]
            assert min(gaps) >= texts[0].get_fontsize()
        else:
            assert all(now.x0 > one.x1 for one, now in pairwise(boxes))


def test_long_labels_that_differ_at_their_end_stay_apart():
    names = ["classifier_t200", "classifier_t200_cohesive", "one"]
    short = [shortened(name, 14) for name in names]
    assert len(set(short)) == 3
    assert max(map(len, short)) == 14
    assert short[2] == "one"
