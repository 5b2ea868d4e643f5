"""Figures: what is drawn where, read off the drawn lines themselves."""

import json

import numpy as np
import pytest

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.comparison import read_attacks
from sidepipe.stages.report.curves import excess_figure, scores_figure
from sidepipe.stages.report.figures import line_style, our_style
from sidepipe.stages.report.plots import labels_figure, rarefaction_figure, roc_figure

ENDS = ("num_images", "low", "high")


@pytest.fixture(scope="module")
def attacks(outputs):
    return read_attacks(outputs.inputs)


@pytest.fixture(autouse=True)
def style():
    with our_style():
        yield


def lines(axis):
    return [(line.get_xdata(), line.get_ydata()) for line in axis.get_lines()]


def test_a_panel_shows_training_solid_and_held_out_dashed_at_every_threshold(attacks):
    axis = scores_figure(attacks, "ams").axes[1]
    curve = attacks[1].results["curve"]
    drawn = {line.get_linestyle(): line for line in axis.get_lines() if len(line.get_xdata()) > 2}
    for style, which in (("-", "train"), ("--", "heldout")):
        ams = 100 * np.array(curve[which]["ams"])
        assert list(drawn[style].get_xdata()) == curve["thresholds"]
        assert np.array_equal(drawn[style].get_ydata()[ams > 0], ams[ams > 0])
        assert np.isnan(drawn[style].get_ydata()[ams == 0]).all()
    assert axis.get_title(loc="left") == "side"


def test_a_share_of_images_ends_at_all_of_them_and_ums_names_its_unit(attacks):
    axis = scores_figure(attacks, "ams").axes[0]
    assert axis.get_ylim()[1] <= 100
    assert "% of generated images" in axis.get_ylabel()
    assert scores_figure(attacks, "ums").axes[0].get_ylabel().endswith("per 100 generated")


def test_the_threshold_of_a_hit_stands_in_every_panel(attacks):
    for figure in (scores_figure(attacks, "ums"), excess_figure(attacks)):
        for axis in figure.axes:
            ends = [list(x) for x, _ in lines(axis)]
            assert [attacks[0].threshold] * 2 in ends


def test_the_excess_lies_in_its_band(attacks):
    axis = excess_figure(attacks).axes[2]
    excess = attacks[2].results["curve"]["excess"]
    band = axis.collections[0].get_paths()[0].get_extents()
    assert band.ymin == pytest.approx(100 * min(excess["low"]))
    assert band.ymax == pytest.approx(100 * max(excess["high"]))
    _, y = max(lines(axis), key=lambda line: len(line[0]))
    assert np.allclose(y, 100 * np.array(excess["share"]))


def test_rarefaction_is_solid_up_to_the_images_made_and_dashed_beyond(attacks):
    axis = rarefaction_figure(attacks).axes[0]
    first = [line for line in axis.get_lines() if line.get_color() == line_style(0)["color"]]
    solid = next(line for line in first if line.get_linestyle() == "-")
    dashed = next(line for line in first if line.get_linestyle() == "--")
    assert solid.get_xdata().max() == dashed.get_xdata().min() == attacks[0].num_images == 200
    assert solid.get_ydata()[-1] == pytest.approx(attacks[0].unique)
    assert dashed.get_xdata().max() == 800


def test_rarefaction_has_its_intervals_as_bars(attacks):
    axis = rarefaction_figure(attacks).axes[0]
    found = attacks[1].results["rarefaction"]
    ends = {x: (low, high) for x, low, high in zip(*map(found.get, ENDS), strict=True)}
    bars = axis.containers[1][2][0].get_segments()
    assert len(bars) >= 4
    for (x, low), (_, high) in bars:
        assert (low, high) == pytest.approx(ends[x])


def test_attacks_in_one_panel_differ_in_mark_and_dashes_not_in_color_alone():
    styles = [line_style(number) for number in range(7)]
    for kind in ("color", "marker", "linestyle"):
        assert len({str(style[kind]) for style in styles}) == len(styles)


def test_a_ranking_without_hits_has_no_curve_and_the_others_keep_their_marks(attacks):
    results = json.loads(json.dumps(attacks[0].results))
    results["blind"]["roc"] = None
    without = Attack("none", attacks[0].folder, results, attacks[0].manifests)
    axis = roc_figure([without, attacks[1]]).axes[0]
    diagonal, curve = axis.get_lines()
    assert list(diagonal.get_xdata()) == [0, 1]
    assert curve.get_marker() == line_style(1)["marker"]


def test_names_are_no_formulas_and_none_is_left_out(attacks):
    renamed = [
        Attack(name, attack.folder, attack.results, attack.manifests)
        for name, attack in zip(("_one", "$x^", "a_b$c$"), attacks, strict=True)
    ]
    legend = rarefaction_figure(renamed).legends[0]
    assert [text.get_text().strip() for text in legend.get_texts()][:3] == ["_one", "$x^", "a_b$c$"]
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_a_cluster_is_a_filled_mark_only_where_it_gave_something_new():
    rows = [
        {"cohesion": 0.9, "images": 10, "hits": 4, "new": 1},
        {"cohesion": 0.8, "images": 20, "hits": 5, "new": 0},
        {"cohesion": 0.7, "images": 5, "hits": 0, "new": 0},
        {"cohesion": 0.6, "images": 8, "hits": 0, "new": 0},
    ]
    filled, hollow, crosses = (
        labels_figure([("side", rows)], "cohesion", "cohesion").axes[0].collections
    )
    assert filled.get_offsets().tolist() == [[0.9, 40]]
    assert hollow.get_offsets().tolist() == [[0.8, 25]]
    assert hollow.get_facecolor().size == 0
    assert crosses.get_offsets().tolist() == [[0.7, 0], [0.6, 0]]
