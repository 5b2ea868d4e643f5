"""The places of artifacts in a sweep, from a record as make sweep writes it."""

import pytest

from sidepipe.base import files
from sidepipe.engine.places import RECORD, axis_key, is_numeric, read_record, records

SCALE, SIZE = "extract.guidance.guidance_scale", "dpm.num_train_images"


def points():
    """Two sizes, two scales and two seeds; plain sampling is the same at both scales."""
    for size in (1000, 500):
        for scale in (1, 0.5):
            for seed in (0, 1):
                attacks = {"unconditional": f"u{size}{seed}", "side": f"s{size}{scale}{seed}"}
                keys = ["data", f"dpm{size}{seed}", *attacks.values()]
                axes = {SIZE: size, SCALE: scale, "seed": seed, "data.size": 8}
                yield {"axes": axes, "keys": keys, "attacks": attacks}


@pytest.fixture
def record(tmp_path):
    folder = tmp_path / "sweeps" / "mine"
    folder.mkdir(parents=True)
    content = {"overrides": [], "group": "mine", "tags": None, "points": list(points())}
    files.write_json(folder / RECORD, content)
    return records(tmp_path)["mine"]


def test_axes_are_the_swept_settings_without_seeds(record):
    assert record.axes == {SIZE: [1000, 500], SCALE: [1, 0.5]}


def test_a_guided_attack_is_one_point_and_one_line_over_each_axis(record):
    place = record.place("s5000.51")
    assert place.values == {SIZE: [500], SCALE: [0.5]}
    assert place.config() == {
        "point": f"side, {SIZE}=500, {SCALE}=0.5",
        "line/dpm/num_train_images": f"side, {SCALE}=0.5",
        "line/extract/guidance/guidance_scale": f"side, {SIZE}=500",
    }


def test_what_does_not_depend_on_an_axis_lies_at_all_of_its_values(record):
    place = record.place("u10000")
    assert place.values == {SIZE: [1000], SCALE: [1, 0.5]}
    assert place.config()["line/extract/guidance/guidance_scale"] == f"unconditional, {SIZE}=1000"
    assert place.config()["line/dpm/num_train_images"] == "unconditional"
    assert record.place("dpm5001").label([SIZE, SCALE]) == f"{SIZE}=500"
    assert record.place("data").label([SIZE, SCALE]) == ""


def test_an_artifact_that_no_point_needs_has_no_place(record):
    assert record.place("other") is None


def test_a_sweep_without_points_in_its_record_has_none(tmp_path):
    assert read_record(tmp_path) is None
    files.write_json(tmp_path / RECORD, {"overrides": []})
    assert read_record(tmp_path) is None


def test_a_damaged_record_is_an_error_with_its_remedy(tmp_path):
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ValueError, match=r"sweep.json .*remedy: run make sweep again"):
        read_record(tmp_path)


def test_keys_have_no_dots_or_signs_that_wandb_takes_for_its_own():
    assert axis_key(SCALE) == "sweep/extract/guidance/guidance_scale"
    assert axis_key("+features@evaluate.features") == "sweep/features/evaluate/features"


@pytest.mark.parametrize(("values", "numeric"), [([1, 0.5], 1), ([1, "a"], 0), ([True, 1], 0)])
def test_only_numbers_have_a_place_on_a_line(values, numeric):
    assert is_numeric(values) == bool(numeric)
