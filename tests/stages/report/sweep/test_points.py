"""Points: which setting is drawn how, what stands at one place, and what is refused."""

import json

import pytest
from tests.stages.report.sweep.conftest import FAILED, QUEUED, SIZE

from sidepipe.stages.report.sweep.points import Point, read, value_words


def unfinished(*axes):
    return read([Point(one, {"side": QUEUED}) for one in axes])


def grid(**axes):
    first, *others = axes.items()
    rest = [{}] if not others else grid(**dict(others))
    return [{first[0]: value, **more} for value in first[1] for more in rest]


def test_numbers_ascend_and_all_else_keeps_its_order():
    sweep = unfinished(*grid(scale=[8, 0.5, 1], dpm=["unet16_250", "unet16"]))
    assert sweep.axes == {"scale": [0.5, 1, 8], "dpm": ["unet16_250", "unet16"]}
    assert [spot.point.axes["scale"] for spot in sweep.spots] == [0.5, 0.5, 1, 1, 8, 8]


def test_the_setting_of_most_numbers_is_drawn_to_the_right_and_the_others_are_panels():
    sweep = unfinished(*grid(kind=["a", "b", "c"], size=[1, 2], clusters=[5, 10, 20]))
    assert sweep.x == "clusters"
    assert sweep.panels == [f"kind={k}, size={n}" for k in "abc" for n in (1, 2)]
    assert sorted({spot.x for spot in sweep.spots}) == [5, 10, 20]


@pytest.mark.parametrize("values", [["b", "a"], [None, 5], [True, False], [[32], [32, 64]]])
def test_what_is_no_number_is_drawn_by_its_place_in_the_order(values):
    sweep = unfinished(*grid(kind=values))
    assert not sweep.is_numeric("kind")
    assert [spot.x for spot in sweep.spots] == [0, 1]


@pytest.mark.parametrize("name", ["seed", "dpm.seed"])
def test_a_seed_is_a_repetition_and_never_an_axis(name):
    sweep = unfinished(*grid(**{name: list(range(9)), "size": [1, 2]}))
    assert (sweep.x, sweep.repeated, sweep.panels) == ("size", [name], [""])
    assert [len(spot.missing) for spot in sweep.spots] == [9, 9]


def test_a_setting_of_one_value_is_no_axis():
    sweep = unfinished(*grid(data=["celeba"], seed=[3], size=[1, 2]))
    assert (sweep.swept, sweep.repeated, sweep.x) == (["size"], [], "size")


def test_without_a_setting_attacks_stand_side_by_side():
    sweep = read([Point({"seed": n}, {"plain": QUEUED, "side": QUEUED}) for n in (0, 1)])
    assert sweep.x is None
    assert [(spot.attack, spot.x) for spot in sweep.spots] == [("plain", 0), ("side", 1)]


def test_a_spot_holds_the_runs_that_differ_in_the_seed_alone(seeded):
    sweep = read(seeded)
    found = {(s.attack, s.point.axes[SIZE]): (len(s.finished), s.missing) for s in sweep.spots}
    assert found == {
        ("unconditional", 64): (2, []),
        ("early", 64): (2, []),
        ("unconditional", 256): (2, []),
        ("early", 256): (2, []),
        ("unconditional", 1024): (1, [QUEUED]),
        ("early", 1024): (1, [FAILED]),
    }
    assert [missing for _, _, missing in sweep.waiting] == [FAILED, QUEUED]


def test_an_artifact_that_points_share_is_read_once(planted):
    shared = planted[64, 0].inputs
    sweep = read([Point({"scale": n}, shared) for n in (1, 2)])
    assert len(sweep.attacks) == len(shared)
    assert len(sweep.runs) == 2 * len(shared)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "points must be at least one"),
        (
            [Point({"a": 1}, {}), Point({"b": 1}, {})],
            "the settings of every point must",
        ),
        ([Point({"a": 1}, {}), Point({"a": 1}, {})], "points must be different .* got .'a=1'."),
    ],
)
def test_points_that_make_no_sweep_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        read(points)


def test_an_artifact_that_is_not_finished_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="not a finished artifact"):
        read([Point({}, {"side": tmp_path})])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform": "pixels-rms-v2"}, "the measure of all points must be one and the same"),
        ({"truth": "none"}, "evaluate.truth of ev0 must be train"),
    ],
)
def test_points_that_are_not_measured_alike_are_refused(planted, changes, message):
    paths = [planted[n, 0].inputs["unconditional"] for n in (64, 256)]
    path = paths[1] / "results.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), **changes}))
        with pytest.raises(ValueError, match=message):
            read([Point({"n": n}, {"plain": folder}) for n, folder in enumerate(paths)])
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("value", "text"),
    [(162770, "162,770"), (0.25, "0.25"), (50.0, "50"), (None, "null"), (True, "true"), ("a", "a")],
)
def test_values_are_written_as_people_write_them(value, text):
    assert value_words(value) == text
