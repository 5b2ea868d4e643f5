"""DICOM and NIfTI files as gray or RGB images of 8 bits; needs pip install 'sidepipe[medical]'.

A range of values becomes black to white: that of the window which the file names, or else from the
smallest to the largest value of the file. docs/reading-images.md states both.
"""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sidepipe.base.image_arrays import Reader, kept
from sidepipe.base.settings import require


def images_of_dicom(file: str) -> list[tuple[str, Reader]]:
    """(place, reader) of each frame of a DICOM file; place is "" where there is one."""
    from pydicom import dcmread

    header = dcmread(file, stop_before_pixels=True)
    require("Rows" in header, "a DICOM file", "an image with Rows", "none", "it has no pixels")
    count = int(header.get("NumberOfFrames") or 1)
    places = [f"[{i}]" for i in range(count)] if count > 1 else [""]
    return [(place, partial(_frame, file, i)) for i, place in enumerate(places)]


def _frame(file: str, index: int) -> Image.Image:
    return Image.fromarray(_frames(file)[index])


@kept
def _frames(file: str) -> UInt8[np.ndarray, "n h w *c"]:
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    data: Any = dcmread(file)
    pixels = data.pixel_array  # YBR becomes RGB
    kind = data.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
    is_color = kind == "PALETTE COLOR" or data.SamplesPerPixel == 3
    if int(data.get("NumberOfFrames") or 1) == 1:
        pixels = pixels[None]
    if is_color:
        bits = 8 * pixels.dtype.itemsize if kind == "PALETTE COLOR" else data.BitsStored
        return np.rint(pixels / (2**bits - 1) * 255).astype(np.uint8)
    levels = _windowed(apply_modality_lut(pixels, data).astype(np.float64), data)
    if kind == "MONOCHROME1":  # its smallest value is white
        levels = 1 - levels
    return np.rint(255 * levels).astype(np.uint8)


def _windowed(values: Float[np.ndarray, "n h w"], data: Any) -> Float[np.ndarray, "n h w"]:
    """Values in [0, 1] by the first window of the file (DICOM PS3.3, C.11.2.1)."""
    window = [np.atleast_1d(data.get(name))[:1] for name in ("WindowCenter", "WindowWidth")]
    if any(len(end) == 0 or end[0] is None for end in window):
        return _scaled(values, float(values.min()), float(values.max()))
    (center,), (width,) = (end.astype(np.float64) for end in window)
    kind = data.get("VOILUTFunction", "LINEAR")
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if kind == "LINEAR_EXACT":
        return _scaled(values, center - width / 2, center + width / 2)
    return _scaled(values, center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)


def _scaled(
    values: Float[np.ndarray, "n h w"], low: float, high: float
) -> Float[np.ndarray, "n h w"]:
    """Values in [0, 1], those outside [low, high] clipped; a file of one value is black."""
    if high <= low:
        return (values > high).astype(np.float64)
    return np.clip((values - low) / (high - low), 0, 1)


def images_of_nifti(file: str) -> list[tuple[str, Reader]]:
    """(place, reader) of each axial slice of a NIfTI volume, from the feet to the head."""
    import nibabel

    image: Any = nibabel.load(file)
    shape = image.shape[:3]
    ok = len(shape) == 3 and all(side == 1 for side in image.shape[3:])
    remedy = "save each volume as a file of its own"
    require(ok, "a NIfTI file", "one volume (x, y, z)", image.shape, remedy)
    require(image.get_data_dtype().names is None, "a NIfTI volume", "of plain numbers", "colors")
    axis = int(np.flatnonzero(nibabel.io_orientation(image.affine)[:, 0] == 2)[0])
    return [(f"[{k}]", partial(_slice, file, k)) for k in range(shape[axis])]


def _slice(file: str, place: int) -> Image.Image:
    return Image.fromarray(_volume(file)[place])


@kept
def _volume(file: str) -> UInt8[np.ndarray, "z h w"]:
    """Axial slices, the patient's front at the top and left side at the left."""
    import nibabel

    image: Any = nibabel.as_closest_canonical(nibabel.load(file))  # x right, y front, z head
    values = np.asarray(image.dataobj, np.float64).reshape(image.shape[:3])
    require(bool(np.isfinite(values).all()), "a NIfTI volume", "finite", "nan or infinity")
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    if high <= low:
        low, high = float(values.min()), float(values.max())
    levels = np.rint(255 * _scaled(values, low, high)).astype(np.uint8)
    return np.ascontiguousarray(levels[:, ::-1].transpose(2, 1, 0))
