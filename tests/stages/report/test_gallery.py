"""What the page's script is told of the pairs."""

import json
import re

import pytest
from tests.stages.report.conftest import NASTY

from sidepipe.stages.report import gallery
from sidepipe.stages.report.comparison import read_attacks
from sidepipe.stages.report.stage import page_path


@pytest.fixture
def told(made, folder):
    text = page_path(folder).read_text()
    return json.loads(re.search(r'id="pair-data">(.*?)</script>', text)[1])


def test_the_script_knows_the_pairs_in_the_order_of_the_page(told, outputs):
    shown = gallery.pairs(read_attacks(outputs.inputs))
    assert told["attacks"] == list(outputs.inputs)
    assert len(told["pairs"]) == len(shown) == 18
    for pair, one in zip(told["pairs"], shown, strict=True):
        assert pair == {name: one[name] for name in pair}
        assert "shots" not in pair  # pictures stand on the page once


@pytest.mark.parametrize("which", ["outputs", "similar"])
def test_the_slider_starts_where_it_hides_nothing(which, request):
    found = request.getfixturevalue(which)
    outputs = found[0] if which == "similar" else found
    attacks = read_attacks(outputs.inputs)
    shown = gallery.pairs(attacks)
    ends = gallery.slider(attacks, shown)
    gammas = [pair["train_gamma"] for pair in shown]
    assert ends["min"] <= min(gammas) < max(gammas) <= ends["max"]
    assert ends["start"] == ends["min" if which == "similar" else "max"]


@pytest.mark.parametrize("side", [4, 8, 16, 28, 32, 47, 48, 64, 128, 256])
def test_the_held_out_image_is_the_smaller_one_and_small_images_keep_whole_pixels(side):
    shown = gallery.sides(side)
    assert 32 <= shown["small"] < shown["large"] <= 128
    if side < 48:
        assert shown["small"] % side == shown["large"] % side == 0


def test_a_hostile_name_cannot_end_the_script(similar):
    made, _, _ = similar
    text = page_path(made.folder / "report").read_text()
    told = re.search(r'id="pair-data">(.*?)</script>', text)[1]
    assert "<" not in told
    assert json.loads(told)["attacks"] == [NASTY]
