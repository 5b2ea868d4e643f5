"""Rows of a table go through the code of images: float32, one pixel, a channel per entry."""

import numpy as np
import torch

from sidepipe.base.images import digests, grid, to_model
from sidepipe.engine.shards import load_shards, missing_shards, write_shard

ROWS = np.random.default_rng(0).uniform(-1, 1, (6, 1, 1, 5)).astype(np.float32)


def test_entries_are_kept_as_they_are():
    x_0 = to_model(ROWS)
    assert x_0.shape == (6, 5, 1, 1)
    assert x_0.dtype == torch.float32
    np.testing.assert_array_equal(x_0.flatten(1).numpy(), ROWS.reshape(6, 5))


def test_rows_of_equal_entries_have_one_digest():
    again = np.concatenate([ROWS, ROWS[:1]])
    found = digests(again)
    assert found[0] == found[6]
    assert len(set(found)) == 6


def test_a_picture_of_rows_has_a_gray_level_per_entry():
    picture = np.asarray(grid(ROWS[:1], side=5))
    expected = np.rint((ROWS[0, 0, 0] + 1) * 127.5)
    np.testing.assert_array_equal(picture[0, :5], expected)


def test_shards_of_rows_keep_their_type(tmp_path):
    write_shard(tmp_path, 0, ROWS)
    assert missing_shards(tmp_path, 6, 6, (1, 1, 5), np.float32) == []
    assert load_shards(tmp_path).dtype == np.float32
    assert missing_shards(tmp_path, 6, 6, (1, 1, 5)) == [0], "bytes are not rows"
