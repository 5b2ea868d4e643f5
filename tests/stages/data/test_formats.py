"""Every row of the table of formats in docs/reading-images.md, made, listed and read."""

import io
import re
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from sidepipe.base.image_files import list_images, readable_formats
from sidepipe.base.image_reading import read_images
from sidepipe.stages.data.sources import ImageFolder

DOC = Path(__file__).parents[3] / "docs/reading-images.md"
NEEDS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
COLOR = (200, 100, 50)
RGB = Image.new("RGB", (8, 8), COLOR)
GRAY = np.zeros((8, 8), np.uint16)
GRAY[:, 4:] = 257 * 100  # the left half 0, the right half 100 of 255
BLACK_ON_CLEAR = (0, 0, 0, 51)  # a fifth of black: 204 on white


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(color_type: int, bits: int, pixels: np.ndarray, clear: bytes = b"") -> bytes:
    """A PNG of big-endian pixels, with a tRNS chunk where `clear` is not empty."""
    size = struct.pack(">IIBBBBB", 8, 8, bits, color_type, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"tRNS", clear), (b"IEND", b"")]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks.insert(2, (b"IDAT", zlib.compress(rows)))
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
        if data or kind == b"IEND"
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def frames(kind: str, **options) -> bytes:
    blue = Image.new("RGB", (8, 8), (0, 0, 255))
    return saved(RGB, kind, save_all=True, append_images=[blue], **options)


def turned(kind: str, **options) -> bytes:
    """Upper half white, to be shown a quarter turn clockwise: the right half is white."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(pixels), kind, exif=exif, **options)


def palette(clear: bool) -> bytes:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*COLOR, 0, 0, 0])
    image.paste(1, (4, 0, 8, 8))
    return saved(image, "PNG", **({"transparency": 1} if clear else {}))


def lab() -> bytes:
    """White on the left, and L = 53.4, a = 80, b = 67 on the right: sRGB's red."""
    bands = [np.full((8, 8), value, np.uint8) for value in (255, 128, 128)]
    for band, value in zip(bands, (136, 208, 195), strict=True):
        band[:, 4:] = value
    return saved(Image.merge("LAB", [Image.fromarray(band) for band in bands]), "TIFF")


def inverted() -> bytes:
    """A 16-bit TIFF of photometric 0, in which 0 is white: 65535 on the left, 257 * 155 right."""
    pixels = (65535 - GRAY).astype("<u2").tobytes()
    short, long = 3, 4
    tags = [(256, short, 8), (257, short, 8), (258, short, 16), (259, short, 1), (262, short, 0)]
    tags += [(273, long, 8), (277, short, 1), (278, short, 8), (279, long, len(pixels))]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + table + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def pnm(kind: str, maximum: int, pixels: np.ndarray) -> bytes:
    return f"{kind}\n8 8\n{maximum}\n".encode() + pixels.tobytes()


def flat(value, tolerance: int = 0):
    """The whole image has one value."""
    return value, value, tolerance


BLACK, WHITE, HUNDRED = (0, 0, 0), (255, 255, 255), (100, 100, 100)
FIFTH = (204, 204, 204)
JUNK = b"Exif\0\0neither TIFF nor anything"
bits = np.zeros((8, 1), np.uint8) + 0x0F
gray8 = (GRAY // 257).astype(np.uint8)
rgb16 = np.zeros((8, 8, 3), ">u2")
rgb16[:, 4:] = np.array(COLOR) * 257
rgb8 = np.zeros((8, 8, 3), np.uint8)
rgb8[:, 4:] = COLOR

# By row of the table: what makes the bytes, and the left and right half that are read, with a
# tolerance for lossy formats; or the message of the error; or what the file is counted as.
MADE = {
    "JPEG": (partial(saved, RGB, "JPEG", quality=100), flat(COLOR, 2)),
    "JPEG, CMYK": (
        partial(saved, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100),
        flat((255, 0, 0), 2),
    ),
    "MPO (JPEG with a preview behind it)": (partial(frames, "MPO", quality=100), flat(COLOR, 2)),
    "PNG, 8 bit": (partial(saved, RGB, "PNG"), flat(COLOR)),
    "PNG, 1 bit": (lambda: png(0, 1, bits), (BLACK, WHITE, 0)),
    "PNG, palette": (lambda: palette(clear=False), (COLOR, BLACK, 0)),
    "PNG, palette with transparency": (lambda: palette(clear=True), (COLOR, WHITE, 0)),
    "PNG, gray with tRNS": (lambda: png(0, 8, gray8, b"\0\0"), (WHITE, HUNDRED, 0)),
    "PNG, RGB with tRNS": (lambda: png(2, 8, rgb8, b"\0\0\0\0\0\0"), (WHITE, COLOR, 0)),
    "PNG, RGBA": (
        partial(saved, Image.new("RGBA", (8, 8), BLACK_ON_CLEAR), "PNG"),
        flat(FIFTH),
    ),
    "PNG, gray with alpha": (partial(saved, Image.new("LA", (8, 8), (0, 51)), "PNG"), flat(FIFTH)),
    "PNG, 16-bit gray": (lambda: png(0, 16, GRAY.astype(">u2")), (BLACK, HUNDRED, 0)),
    "PNG, 16-bit gray with tRNS": (
        lambda: png(0, 16, GRAY.astype(">u2"), struct.pack(">H", 257 * 100)),
        (BLACK, WHITE, 0),
    ),
    "PNG, 16-bit RGB": (lambda: png(2, 16, rgb16), (BLACK, COLOR, 0)),
    "APNG, animated": (partial(frames, "PNG"), flat(COLOR)),
    "GIF": (partial(saved, RGB, "GIF"), flat(COLOR)),
    "GIF, animated": (partial(frames, "GIF"), flat(COLOR)),
    "WebP": (partial(saved, RGB, "WEBP", lossless=True), flat(COLOR)),
    "WebP, animated": (partial(frames, "WEBP", lossless=True), flat(COLOR)),
    "AVIF": (partial(saved, RGB, "AVIF", quality=100), flat(COLOR, 2)),
    "JPEG 2000": (partial(saved, RGB, "JPEG2000"), flat(COLOR)),
    "JPEG 2000, 16-bit gray": (
        partial(saved, Image.fromarray(GRAY), "JPEG2000"),
        (BLACK, HUNDRED, 0),
    ),
    "BMP": (partial(saved, RGB, "BMP"), flat(COLOR)),
    "TGA": (partial(saved, RGB, "TGA"), flat(COLOR)),
    "TGA, RGBA": (
        partial(saved, Image.new("RGBA", (8, 8), BLACK_ON_CLEAR), "TGA"),
        flat(FIFTH),
    ),
    "PBM": (lambda: b"P1\n8 8\n" + b"1 1 1 1 0 0 0 0\n" * 8, (BLACK, WHITE, 0)),
    "PGM": (lambda: pnm("P5", 51, gray8 // 5), (BLACK, HUNDRED, 0)),
    "PGM, 16 bit": (lambda: pnm("P5", 65535, GRAY.astype(">u2")), (BLACK, HUNDRED, 0)),
    "PPM": (lambda: pnm("P6", 255, rgb8), (BLACK, COLOR, 0)),
    "TIFF": (partial(saved, RGB, "TIFF"), flat(COLOR)),
    "TIFF, several pages": (partial(frames, "TIFF"), flat(COLOR)),
    "TIFF, CMYK": (
        partial(saved, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"),
        flat((255, 0, 0)),
    ),
    "TIFF, LAB": (lab, (WHITE, (255, 0, 0), 12)),
    "TIFF, 16-bit gray": (partial(saved, Image.fromarray(GRAY), "TIFF"), (BLACK, HUNDRED, 0)),
    "TIFF, 16-bit gray, 0 is white": (inverted, (BLACK, HUNDRED, 0)),
    "TIFF, 32-bit integers": (
        partial(saved, Image.new("I", (8, 8), 7), "TIFF"),
        "mode I have no known range",
    ),
    "TIFF, floating point": (
        partial(saved, Image.new("F", (8, 8), 0.5), "TIFF"),
        "mode F have no known range",
    ),
    "PFM, floating point": (
        lambda: b"Pf\n8 8\n-1.0\n" + np.zeros((8, 8), "<f4").tobytes(),
        "mode F have no known range",
    ),
    "HEIC": (lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF, which needs pillow-heif"),
    "JPEG XL": (lambda: b"\xff\x0a\0\0\0\0", "JXL, which needs pillow-jxl-plugin"),
    "no suffix": (partial(saved, RGB, "PNG"), flat(COLOR)),
    "wrong suffix": (partial(saved, RGB, "PNG"), flat(COLOR)),
    "EXIF orientation, JPEG": (partial(turned, "JPEG", quality=100), (BLACK, WHITE, 2)),
    "EXIF orientation, PNG": (partial(turned, "PNG"), (BLACK, WHITE, 0)),
    "EXIF orientation, WebP": (partial(turned, "WEBP", lossless=True), (BLACK, WHITE, 0)),
    "EXIF orientation, TIFF": (partial(turned, "TIFF"), (BLACK, WHITE, 0)),
    "broken EXIF, JPEG": (partial(saved, RGB, "JPEG", quality=100, exif=JUNK), flat(COLOR, 2)),
    "broken EXIF, PNG": (partial(saved, RGB, "PNG", exif=JUNK), flat(COLOR)),
    "broken EXIF, WebP": (partial(saved, RGB, "WEBP", lossless=True, exif=JUNK), flat(COLOR)),
    "truncated JPEG": (lambda: saved(RGB, "JPEG")[:-30], "Truncated File Read|truncated"),
    "truncated PNG": (lambda: saved(RGB, "PNG")[:50], "truncated|broken PNG"),
    "empty file": (lambda: b"", "the file is empty"),
    "HTML page": (lambda: b"<html>404</html>", "no image format begins with b'<html>"),
    "more than 89 million pixels": (
        partial(saved, Image.new("1", (10_000, 9_000)), "PNG"),
        "more than 89,478,485 pixels",
    ),
}


def documented() -> list[tuple[str, str, str]]:
    """(format, suffixes, result) of each row of the table below "Formats"."""
    section = DOC.read_text().partition("\n## Formats\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) ?\| (.*?) \|$", section, re.MULTILINE)
    return [row for row in rows if row[0] != "format"]


ROWS = documented()
CASES = [(form, suffix, result) for form, s, result in ROWS for suffix in s.split() or [""]]


def test_the_table_has_a_row_for_each_format_that_is_tried_and_no_other():
    assert [form for form, _, _ in ROWS] == list(MADE)


@pytest.mark.parametrize(("form", "suffix", "result"), CASES, ids=lambda case: str(case)[:30])
def test_each_row_of_the_table_is_true(tmp_path, form, suffix, result):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    make, expected = MADE[form]
    (tmp_path / f"image{suffix}").write_bytes(make())
    counted = "else counted" in result and isinstance(expected, str)
    if counted and {"HEIC": "HEIF", "JPEG XL": "JXL"}[form] in readable_formats():
        pytest.skip("the plugin is installed")
    if counted:
        assert list_images(tmp_path)[1] == {f"{suffix} ({expected})": 1}
        with pytest.raises(ValueError, match=f"1 file is not read: 1 {suffix}.*{expected}"):
            ImageFolder(str(tmp_path)).entries()
        return
    entries = ImageFolder(str(tmp_path)).entries()
    read = partial(read_images, entries, tmp_path / "images.npy", 8, 3, None)
    if isinstance(expected, str):
        assert result.startswith("error")
        with pytest.raises(ValueError, match=rf"image{suffix} cannot be read: .*({expected})"):
            read("error")
        return
    assert not result.startswith("error")
    images, kept, _, num_several = read("error")
    assert len(kept) == 1
    left, right, tolerance = expected
    for half, value in ((images[0][:, :4], left), (images[0][:, 4:], right)):
        assert np.abs(half.astype(int) - value).max() <= tolerance
    assert num_several == ("counted" in result and "else counted" not in result)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *[("JPEG", ".jpg"), ("PNG", ".png"), ("GIF", ".gif"), ("WEBP", ".webp")],
        *[("JPEG2000", ".jp2"), ("BMP", ".bmp"), ("TGA", ".tga"), ("PPM", ".ppm")],
        *[("TIFF", ".tif"), pytest.param("AVIF", ".avif", marks=NEEDS_AVIF)],
    ],
)
def test_a_file_cut_off_anywhere_is_never_half_an_image(tmp_path, kind, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), kind)
    (tmp_path / f"cut{suffix}").write_bytes(whole[: int(len(whole) * share)])
    entries = ImageFolder(str(tmp_path)).entries()
    with pytest.raises(ValueError, match=rf"cut{suffix} cannot be read"):
        read_images(entries, tmp_path / "images.npy", 64, 3, None, "error")


@pytest.mark.parametrize("form", ["TIFF, LAB", "JPEG, CMYK", "PNG, RGB with tRNS"])
def test_colors_become_gray_as_their_rgb_does(tmp_path, form):
    (tmp_path / "a.img").write_bytes(MADE[form][0]())
    entries = ImageFolder(str(tmp_path)).entries()
    gray, color = (
        read_images(entries, tmp_path / f"{channels}.npy", 8, channels, None, "error")[0]
        for channels in (1, 3)
    )
    expected = color[0].astype(float) @ (0.299, 0.587, 0.114)
    assert np.abs(gray[0][..., 0] - expected).max() <= 1
