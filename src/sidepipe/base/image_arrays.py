"""Images in NumPy files: one image or many per array, of 8 or 16 bits, told by dtype and shape.

Pickles are never loaded.
"""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from pathlib import Path
from threading import Lock
from typing import TypeVar
from zipfile import is_zipfile

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from sidepipe.base.settings import require

CHANNELS = (1, 3, 4)
LAYOUTS = "(h, w), (h, w, c), (n, h, w) or (n, h, w, c) with c of 1, 3 or 4"
Reader = Callable[[], Image.Image]
T = TypeVar("T")


def images_of_array(file: str) -> list[tuple[str, Reader]]:
    """(place, reader) of each image of a .npy or .npz file; place is "" where there is one.

    Arrays of one dimension in a .npz file, such as labels, are no images. Raises ValueError for
    other numbers than unsigned integers of 8 or 16 bits and bool, for other shapes, and for several
    arrays that are not of one image each, such as train_images and test_images.
    """
    arrays = {name: x for name, x in _arrays(file).items() if x.ndim != 1}
    require(len(arrays) > 0, "the arrays", f"images {LAYOUTS}", "none")
    several = {name: len(x) for name, x in arrays.items() if not _holds_one(x)}
    sizes = ", ".join(f"{name} ({several.get(name, 1):,})" for name in arrays)
    remedy = "save the array that you mean by numpy.save: they may be training and test images"
    rule = "one array of many images, or arrays of one image each"
    require(len(arrays) == 1 or not several, "a .npz file", rule, sizes, remedy)
    found: list[tuple[str, Reader]] = []
    for name, array in arrays.items():
        where = f"[{name}]" if len(arrays) > 1 else ""
        if _holds_one(array):
            found.append((where, partial(_picture, file, name, None)))
        else:
            found += [
                (f"{where}[{i}]", partial(_picture, file, name, i)) for i in range(len(array))
            ]
    return found


def kept(load: Callable[[str], T]) -> Callable[[str], T]:
    """`load` with its last two results kept: each image of a file needs the whole file.

    Several threads that want one file load it once. A changed file is loaded again.
    """
    lock = Lock()

    @lru_cache(maxsize=2)
    def loaded(file: str, changed: int) -> T:
        return load(file)

    @wraps(load)
    def one_at_a_time(file: str) -> T:
        with lock:
            return loaded(file, Path(file).stat().st_mtime_ns)

    return one_at_a_time


@kept
def _arrays(file: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    try:
        if file.lower().endswith(".npy"):
            return {"": np.lib.format.open_memmap(file, mode="r")}
        require(is_zipfile(file), "a .npz file", "an archive of numpy.savez", "another file")
        with np.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except ValueError as error:  # NumPy's message for Python objects proposes to load them
        remedy = "save arrays of numbers by numpy.save or numpy.savez"
        raise ValueError(
            f"it holds no array of numbers, or is cut off ({error}); {remedy}"
        ) from None


def _holds_one(array: Shaped[np.ndarray, "..."]) -> bool:
    """Whether an array is one image; ValueError where it is no images."""
    remedy = (
        "save levels of 0 to 255 as uint8: (255 * x).round() of values in [0, 1], "
        "(127.5 * (x + 1)).round() of values in [-1, 1]"
    )
    levels = array.dtype in (np.uint8, np.uint16, np.bool_)
    require(levels, "an array of images", "uint8, uint16 or bool", str(array.dtype), remedy)
    shape, color = array.shape, array.ndim > 2 and array.shape[-1] in CHANNELS
    # (3, 64, 64) may be one image with its channels first, or three gray images.
    channels_first = not color and array.ndim > 2 and shape[array.ndim - 3] in CHANNELS
    remedy = "x.transpose(0, 2, 3, 1) converts images (n, c, h, w)"
    fits = array.ndim in (2, 3) or (array.ndim == 4 and color)
    require(fits and not channels_first, "an array of images", LAYOUTS, shape, remedy)
    return array.ndim == 2 or (array.ndim == 3 and color)


def _picture(file: str, name: str, place: int | None) -> Image.Image:
    array = _arrays(file)[name]
    pixels = np.asarray(array if place is None else array[place])
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)  # 65535 -> 255
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
