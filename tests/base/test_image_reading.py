from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidepipe.base import image_reading as reading
from sidepipe.base.image_reading import Entry, read_images


def entry(name: str, read, problem: str = "") -> Entry:
    return Entry(name, "train", "", read, f"/somewhere/{name}", problem)


def entry_of(image: Image.Image) -> Entry:
    return entry("image", lambda: image)


def broken() -> Image.Image:
    raise OSError("image file is truncated")


def read_one(image: Image.Image, tmp_path: Path, size: int, channels=3, center_crop=None):
    images, *_ = read_images(
        [entry_of(image)], tmp_path / "images.npy", size, channels, center_crop, "error"
    )
    assert images.shape == (1, size, size, channels)
    return np.array(images[0])


def numbered(height: int, width: int) -> np.ndarray:
    """Gray pixels that all differ along both axes."""
    return (np.arange(height)[:, None] * 16 + np.arange(width)[None]).astype(np.uint8)


def save(image: Image.Image, tmp_path: Path, suffix: str, **options) -> Image.Image:
    image.save(tmp_path / f"image{suffix}", **options)
    return Image.open(tmp_path / f"image{suffix}")


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_one(Image.fromarray(noise), tmp_path, 8), noise)


def test_center_crop_keeps_the_central_square_of_an_image_larger_in_both_sides(tmp_path):
    pixels = numbered(10, 8)
    out = read_one(Image.fromarray(pixels), tmp_path, 4, channels=1, center_crop=4)
    np.testing.assert_array_equal(out[:, :, 0], pixels[3:7, 2:6])


def test_center_crop_leaves_the_largest_square_of_an_image_smaller_in_one_side(tmp_path):
    pixels = numbered(12, 6)
    out = read_one(Image.fromarray(pixels), tmp_path, 6, channels=1, center_crop=8)
    np.testing.assert_array_equal(out[:, :, 0], pixels[3:9])


@pytest.mark.parametrize(("height", "width"), [(6, 9), (9, 6)])
def test_without_center_crop_the_largest_central_square_stays(tmp_path, height, width):
    pixels = numbered(height, width)
    out = read_one(Image.fromarray(pixels), tmp_path, 6, channels=1)
    expected = pixels[:, 1:7] if width == 9 else pixels[1:7]
    np.testing.assert_array_equal(out[:, :, 0], expected)


@pytest.mark.parametrize(
    ("size", "method"), [(5, Image.Resampling.LANCZOS), (23, Image.Resampling.BICUBIC)]
)
def test_shrinking_is_lanczos_and_enlarging_bicubic(tmp_path, size, method):
    noise = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = np.asarray(image.resize((size, size), method))
    np.testing.assert_array_equal(read_one(image, tmp_path, size), expected)


def test_the_size_of_a_flat_image_does_not_change_its_color(tmp_path):
    image = Image.new("RGB", (31, 17), (10, 200, 77))
    for size in (8, 17, 40):
        assert (read_one(image, tmp_path, size) == (10, 200, 77)).all()


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise: the right half is white
    image = save(Image.fromarray(pixels), tmp_path, ".png", exif=exif)
    out = read_one(image, tmp_path, 16, channels=1)[:, :, 0]
    assert (out[:, 8:] == 255).all()
    assert (out[:, :8] == 0).all()


def test_gray_and_color_convert_into_each_other(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert (read_one(red, tmp_path, 8, channels=1) == 76).all()  # ITU-R 601: 0.299 of 255
    gray = Image.new("L", (8, 8), 90)
    assert (read_one(gray, tmp_path, 8) == 90).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    clear, half = (
        (0, 0) if mode == "LA" else (0, 0, 0, 0),
        (0, 51) if mode == "LA" else (0, 0, 0, 51),
    )
    image = Image.new(mode, (8, 8), clear)
    image.paste(half, (0, 0, 4, 8))
    out = read_one(image, tmp_path, 8)
    assert (out[:, 4:] == 255).all()
    assert (out[:, :4] == 204).all()  # a fifth of black


def test_a_palette_gives_its_colors_and_its_clear_entry_is_white(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 10, 30, 0, 0, 0])
    image.paste(1, (4, 0, 8, 8))
    opaque = read_one(save(image, tmp_path, ".png"), tmp_path, 8)
    assert (opaque[:, :4] == (200, 10, 30)).all()
    assert (opaque[:, 4:] == 0).all()
    clear = read_one(save(image, tmp_path, ".gif", transparency=1), tmp_path, 8)
    assert (clear[:, :4] == (200, 10, 30)).all()
    assert (clear[:, 4:] == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path, suffix, channels):
    values = np.zeros((8, 8), np.uint16)
    values[:, 4:], values[4:, 4:] = 65535, 257 * 100
    image = save(Image.fromarray(values), tmp_path, suffix)
    out = read_one(image, tmp_path, 8, channels=channels)
    assert (out[:, :4] == 0).all()
    assert (out[:4, 4:] == 255).all()
    assert (out[4:, 4:] == 100).all()


def test_one_bit_and_cmyk_images_are_read(tmp_path):
    assert (read_one(Image.new("1", (8, 8), 1), tmp_path, 8) == 255).all()
    assert (read_one(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), tmp_path, 8) == 255).all()


def test_floating_point_pixels_are_refused_and_not_guessed_at(tmp_path):
    with pytest.raises(ValueError, match="mode F have no known range"):
        read_one(Image.new("F", (8, 8), 0.5), tmp_path, 8)


def test_a_bad_file_is_named_with_reason_and_remedy(tmp_path):
    good = entry_of(Image.new("L", (8, 8)))
    with pytest.raises(ValueError) as error:  # noqa: PT011, the parts are checked below
        read_images([good, entry("b.jpg", broken)], tmp_path / "images.npy", 8, 1, None, "error")
    for part in ("/somewhere/b.jpg", "image file is truncated", "data.on_bad_file=skip"):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_known_problem_stops_before_anything_is_read(tmp_path):
    def never() -> Image.Image:
        raise AssertionError("read")

    entries = [entry("a.jpg", never), entry("b.jpg", never, problem="it is not there")]
    with pytest.raises(ValueError, match=r"b\.jpg cannot be read: it is not there; remedy"):
        read_images(entries, tmp_path / "images.npy", 8, 1, None, "error")


def test_skipped_files_leave_no_gap(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 3)  # several chunks, and one of bad files alone
    bad = {0, 3, 4, 5, 10}
    entries = [
        entry(str(i), broken if i in bad else partial(Image.new, "L", (4, 4), i)) for i in range(11)
    ]
    entries[4] = entry("4", broken, problem="it is not there")
    path = tmp_path / "images.npy"
    images, kept, skipped, _ = read_images(entries, path, 4, 1, None, "skip")
    assert isinstance(images, np.memmap)
    assert skipped == ["0", "3", "4", "5", "10"]
    assert [e.id for e in kept] == ["1", "2", "6", "7", "8", "9"]
    assert images[:, 0, 0, 0].tolist() == [1, 2, 6, 7, 8, 9]
    assert images.dtype == np.uint8
    assert images.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(np.load(path), images)
    assert [p.name for p in tmp_path.iterdir()] == ["images.npy"]


def test_the_header_has_room_for_fewer_images_than_were_listed(tmp_path):
    bad = [entry(f"bad {i}", broken) for i in range(1200)]  # four digits become one
    good = [entry(f"good {i}", partial(Image.new, "L", (4, 4), i)) for i in range(3)]
    images, _, skipped, _ = read_images([*bad, *good], tmp_path / "images.npy", 4, 1, None, "skip")
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert len(skipped) == 1200
    assert (tmp_path / "images.npy").stat().st_size == 128 + 3 * 16


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path):
    with pytest.raises(ValueError, match=r"none of 2 images can be read.*a\.jpg.*truncated"):
        read_images(
            [entry("a.jpg", broken), entry("b.jpg", broken)],
            *(tmp_path / "images.npy", 4, 1, None, "skip"),
        )
    with pytest.raises(ValueError, match="number of images"):
        read_images([], tmp_path / "images.npy", 4, 1, None, "skip")


def test_progress_is_said_in_lines(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reading, "CHUNK", 2)
    entries = [entry(str(i), partial(Image.new, "L", (4, 4), i)) for i in range(5)]
    with caplog.at_level("INFO", logger="sidepipe"):
        read_images(entries, tmp_path / "images.npy", 4, 1, None, "error", progress_seconds=0)
    assert [line.split(",")[0] for line in caplog.messages[1:]] == ["image 2/5", "image 4/5"]
