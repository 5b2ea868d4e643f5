"""Conversion of any decoded image: upright, gray or RGB with 8 bits, without transparency."""

import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, TiffImagePlugin

# Only the orientation is read from EXIF data, and broken data give none.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


def upright(image: Image.Image, channels: int) -> Image.Image:
    """The image upright by its EXIF orientation, with 8 bits, on white where transparent.

    channels: 1 for gray, 3 for RGB. Raises ValueError for pixels without a known range.
    """
    image.load()
    return _turned(_color(image, channels), _orientation(image))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after `upright`, from the header alone."""
    turned = _orientation(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where it is missing or, as in browsers, broken."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels are decoded already
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _color(image: Image.Image, channels: int) -> Image.Image:
    """Gray or RGB, 8 bit; transparent pixels become white."""
    mode = "L" if channels == 1 else "RGB"
    # Older Pillows open 16-bit PNG and PGM as I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(_sixteen_bit(image)).convert(mode)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; save it as 8 or 16 bit")
    if image.mode == "LAB":  # Pillow converts it to RGB alone
        image = image.convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _sixteen_bit(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Gray pixels of 16 bits as 8 bits, by rounding; white where a PNG's tRNS is transparent."""
    values = np.asarray(image).astype(np.float64)
    # Pillow inverts a TIFF whose 0 is white (photometric 0) for up to 8 bits only.
    tags = getattr(image, "tag_v2", {})
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        values = 65535 - values
    if (clear := image.info.get("transparency")) is not None:
        values[values == clear] = 65535
    return np.rint(values / 257).astype(np.uint8)  # 65535 -> 255
