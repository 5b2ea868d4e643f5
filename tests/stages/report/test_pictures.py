"""Thumbnails and the picture of the closest pairs."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from sidepipe.stages.report.pictures import pairs_png, shown_pixels, thumbnail_uri


def test_a_large_image_is_a_thumbnail():
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    kind, _, content = thumbnail_uri(image).partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (128, 128)


@pytest.mark.parametrize("side", [4, 8, 28, 32])
def test_a_small_image_is_enlarged_by_a_whole_factor_without_smoothing(side):
    image = np.random.default_rng(0).integers(0, 255, (side, side, 1)).astype(np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(thumbnail_uri(image).partition(",")[2]))) as shown:
        pixels = np.asarray(shown)
    factor = len(pixels) // side
    assert 64 <= len(pixels) == factor * side <= 128
    assert np.array_equal(pixels, np.kron(image[..., 0], np.ones((factor, factor), np.uint8)))


@pytest.mark.parametrize("side", [4, 8, 16, 28, 32, 64, 96])
def test_images_are_shown_at_whole_factors(side):
    assert shown_pixels(side, 96) % side == 0
    assert 64 <= shown_pixels(side, 96) <= 128


def test_attacks_without_pairs_leave_the_picture_to_the_others():
    pairs = np.zeros((2, 3, 8, 8, 1), np.uint8)
    none = pairs[:0]
    sizes = []
    for galleries in ([("a", none)], [("a", none), ("b", pairs)], [("a", pairs), ("b", pairs)]):
        with Image.open(io.BytesIO(pairs_png(galleries))) as picture:
            sizes.append(picture.size)
    assert sizes[0] == (1, 1)
    assert sizes[2][1] == pytest.approx(2 * sizes[1][1], rel=0.05)
