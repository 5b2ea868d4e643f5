"""Images as arguments: checked arrays, or folders read as `data=imagefolder` reads them."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sidepipe.base.settings import require
from sidepipe.stages.data.reading import Entry, read_images
from sidepipe.stages.data.sources import ImageFolder

Images = UInt8[np.ndarray, "n h w c"]
ImagesOrFolder = np.ndarray | str | Path

GRAY = ("1", "L", "LA", "I;16")


def checked(name: str, images: object, least: int = 1) -> Images:
    """`images` where they are uint8 images (n, h, w, c), at least `least`; else ValueError."""
    kind = type(images).__name__
    remedy = "numpy.asarray makes an array of a list or a tensor on the CPU"
    require(isinstance(images, np.ndarray), name, "a uint8 array (n, h, w, c)", kind, remedy)
    assert isinstance(images, np.ndarray)
    dtype, remedy = str(images.dtype), "convert it to gray levels of 0 to 255"
    if images.dtype.kind == "f":
        remedy = "convert values in [0, 1] by (255 * x).round().astype(numpy.uint8)"
    require(images.dtype == np.uint8, name, "uint8", dtype, remedy)
    shape, remedy = images.shape, "images of one channel have c = 1: x[..., None]"
    require(images.ndim == 4, name, "of shape (n, h, w, c)", shape, remedy)
    remedy = "convert images (n, c, h, w) by x.transpose(0, 2, 3, 1)"
    require(shape[3] in (1, 3), name, "of 1 or 3 channels, the last axis", shape, remedy)
    require(min(shape[1:3]) > 0, name, "images of at least one pixel", shape)
    require_count(name, len(images), least)
    return images


def require_count(name: str, count: int, least: int) -> None:
    """Raises ValueError unless there are at least `least` images."""
    require(count >= least, name, f">= {least} images", count, "pass more images")


def read_sets(
    sets: Mapping[str, ImagesOrFolder], size: int | None
) -> tuple[dict[str, Images], dict[str, list[str]]]:
    """The images of every argument, all of one shape, and how messages name each image.

    sets: images by the argument's name. size: side in pixels to which all are cropped and resized,
    as by `data.size`; None where sizes must agree.
    """
    require(size is None or size >= 1, "size", ">= 1 or None", size)
    entries = {name: _entries(name, images) for name, images in sets.items()}
    shapes = {name: _shape(name, sets[name], found) for name, found in entries.items()}
    first = next(iter(sets))
    _require_alike("channels", {name: shape[2:] for name, shape in shapes.items()}, first)
    if size is None:
        _require_alike("sides", {name: shape[:2] for name, shape in shapes.items()}, first)
    arrays = {}
    for name, images in sets.items():
        if isinstance(images, np.ndarray) and size in (None, *_side_of(images)):
            arrays[name] = images
        else:
            side = shapes[name][0] if size is None else size
            arrays[name] = _read(entries[name], side, shapes[name][2])
    return arrays, {name: [entry.id for entry in found] for name, found in entries.items()}


def _side_of(images: np.ndarray) -> tuple[int, ...]:
    """The side of square images; nothing for others."""
    return (images.shape[1],) if images.shape[1] == images.shape[2] else ()


def _entries(name: str, images: ImagesOrFolder) -> list[Entry]:
    if not isinstance(images, str | Path):
        array = checked(name, images)
        return [
            Entry(f"{name}[{i}]", "train", "", partial(_picture, image), f"{name}[{i}]")
            for i, image in enumerate(array)
        ]
    folder = Path(images).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name} must be a uint8 array (n, h, w, c) or a folder of images, got {folder}, which "
            "is no folder"
        )
    found = ImageFolder(str(folder)).entries()
    partitions = sorted({entry.partition for entry in found})
    remedy = f"name the folder of one of them, such as {name}={str(folder / partitions[0])!r}"
    require(len(partitions) == 1, name, "a folder of one partition", partitions, remedy)
    return found


def _picture(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _shape(name: str, images: ImagesOrFolder, entries: Sequence[Entry]) -> tuple[int, int, int]:
    """Height, width and channels of all images of an argument; (0, 0, c) for several sizes."""
    if isinstance(images, np.ndarray):
        return images.shape[1:]
    sizes, gray = set(), True
    for entry in entries:
        try:
            with entry.read() as image:
                sizes.add((image.height, image.width))
                gray = gray and image.mode in GRAY
        except Exception:  # reading it raises, and names the file
            continue
    height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
    return height, width, 1 if gray else 3


def _require_alike(what: str, shapes: Mapping[str, tuple[int, ...]], first: str) -> None:
    """Raises ValueError unless all arguments have the shape of the first one."""
    for name, shape in shapes.items():
        if what == "channels":
            rule, remedy = f"of {shapes[first][0]} channels, as {first}", "convert one of them"
            require(shape == shapes[first], name, rule, shape[0], remedy)
            continue
        remedy = "size=32, or another number of pixels, crops and resizes all images to squares"
        require(shape != (0, 0), name, "images of one size", "several sizes", remedy)
        sides = " x ".join(map(str, shapes[first]))
        require(shape == shapes[first], name, f"{sides} pixels, as {first}", shape, remedy)


def _read(entries: Sequence[Entry], side: int, channels: int) -> Images:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        read_images(entries, path, side, 3 if channels == 3 else 1, None, "error")
        return np.load(path)
