"""Long computations in parts: whole ones are kept, and the cut changes nothing."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from sidepipe.engine.resuming import in_parts


def squares(items):
    return {"square": np.array([i * i for i in items]), "row": np.array([[i, -i] for i in items])}


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_the_cut_does_not_change_what_comes_out(tmp_path, size):
    found = in_parts(tmp_path, 10, size, squares, "item")
    np.testing.assert_array_equal(found["square"], np.arange(10) ** 2)
    np.testing.assert_array_equal(found["row"][:, 1], -np.arange(10))


def test_a_run_that_was_killed_makes_what_is_missing_alone(tmp_path):
    made = []

    def make(items):
        made.append(items)
        if items.start == 4:
            raise RuntimeError("killed")
        return squares(items)

    with pytest.raises(RuntimeError, match="killed"):
        in_parts(tmp_path, 7, 2, make, "item")
    found = in_parts(tmp_path, 7, 2, lambda items: made.append(items) or squares(items), "item")
    assert made == [range(2), range(2, 4), range(4, 6), range(4, 6), range(6, 7)]
    np.testing.assert_array_equal(found["square"], np.arange(7) ** 2)


def test_another_size_takes_no_part_for_a_longer_one(tmp_path):
    in_parts(tmp_path, 8, 2, squares, "item")
    found = in_parts(tmp_path, 8, 4, squares, "item")
    np.testing.assert_array_equal(found["square"], np.arange(8) ** 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 8),
        lambda path: os.truncate(path, 0),
        lambda path: save_file(squares(range(3)), path),
    ],
    ids=["cut short", "empty", "fewer rows"],
)
def test_a_part_that_is_not_whole_is_made_again_with_a_warning(tmp_path, caplog, damage):
    with pytest.raises(RuntimeError):
        in_parts(tmp_path, 9, 4, lambda items: squares(items) if items.stop < 9 else fail(), "item")
    damage(tmp_path / "0000004-0000008.safetensors")
    made = []
    found = in_parts(tmp_path, 9, 4, lambda items: made.append(items) or squares(items), "item")
    assert made == [range(4, 8), range(8, 9)]
    np.testing.assert_array_equal(found["square"], np.arange(9) ** 2)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "0000004-0000008.safetensors" in said
    assert "made again" in said


def fail():
    raise RuntimeError
