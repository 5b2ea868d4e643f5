"""Images as arguments: checked arrays, or folders read as `data=imagefolder` reads them."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sidepipe.api.decoding import RESIZES, Decoding, Reading, decoded, files_of
from sidepipe.api.naming import as_arguments
from sidepipe.base.groups import Groups, read_groups
from sidepipe.base.image_files import in_words, is_array_file
from sidepipe.base.image_reading import Entry, require_readable, sizes_of
from sidepipe.base.images import digests
from sidepipe.base.settings import require
from sidepipe.stages.data.layouts import partition_of
from sidepipe.stages.data.sources import ImageFolder

Images = UInt8[np.ndarray, "n h w c"]
ImagesOrFolder = np.ndarray | str | Path

NAMED = 3  # files in a note
# The partitions whose images an argument can mean, the best first.
FITTING = {"train": ("train",), "heldout": ("test", "val")}

NEEDED = {
    "train": (
        "the images that the model was trained on",
        "pass train=..., a folder or an array; without them, sidepipe evaluate.truth=none ranks "
        "generated images by how often they repeat",
    ),
    "heldout": (
        "images of the same kind that the model never saw",
        "no count can be trusted without them, as they set the threshold of a hit; split images "
        "into train/ and heldout/ before the training, and pass heldout=... (docs/heldout.md)",
    ),
}


@dataclass(frozen=True)
class ImageSet:
    """The images of one argument, all uint8 and of one shape.

    names: of each image, as in messages and tables. notes: sentences on what was changed or left
    out. source: the folder, or "array". groups: of each image, None where none were given.
    """

    images: Images
    names: list[str]
    notes: list[str]
    source: str
    groups: list[str] | None = None

    @cached_property
    def hashes(self) -> list[str]:
        """The SHA-256 of each image's pixels."""
        return digests(self.images)

    def summary(self) -> dict[str, object]:
        """Number, shape and origin, with the SHA-256 of the list of names and of their pixels.

        The list has a line `<SHA-256 of the pixels>  <name>` for each image.
        """
        listed = hashlib.sha256()
        for name, pixels in zip(self.names, self.hashes, strict=True):
            listed.update(f"{pixels}  {name}\n".encode())
        shape = list(self.images.shape[1:])
        about: dict[str, object] = {
            "source": self.source,
            "num_images": len(self.images),
            "shape": shape,
        }
        if self.groups is not None:
            about["num_groups"] = len(set(self.groups))
        return {**about, "sha256": listed.hexdigest()}


@dataclass(frozen=True)
class Listed:
    """The entries of an argument, how many have each size, and whether all are gray."""

    entries: Sequence[Entry]
    sizes: Counter[tuple[int, int]]
    gray: bool
    notes: list[str]


def checked(name: str, images: object, least: int = 1) -> Images:
    """`images` where they are uint8 images (n, h, w, c), at least `least`; else ValueError."""
    kind = type(images).__name__
    remedy = "numpy.asarray makes an array of a list or a tensor on the CPU"
    require(isinstance(images, np.ndarray), name, "a uint8 array (n, h, w, c)", kind, remedy)
    assert isinstance(images, np.ndarray)
    dtype, remedy = str(images.dtype), "convert it to gray levels of 0 to 255"
    if images.dtype.kind == "f":
        remedy = (
            "convert values in [0, 1] by (255 * x).round().astype(numpy.uint8), and values in "
            "[-1, 1] by (127.5 * (x + 1)).round().astype(numpy.uint8)"
        )
        if images.shape[1:3] == (1, 1):
            remedy = (
                "for rows of a table model pass model.decode(rows), and train and heldout as data "
                "frames as well"
            )
    require(images.dtype == np.uint8, name, "uint8", dtype, remedy)
    shape, remedy = images.shape, "images of one channel have c = 1: x[..., None]"
    require(images.ndim == 4, name, "of shape (n, h, w, c)", shape, remedy)
    remedy = "convert images (n, c, h, w) by x.transpose(0, 2, 3, 1)"
    require(shape[3] in (1, 3), name, "of 1 or 3 channels, the last axis", shape, remedy)
    require(min(shape[1:3]) > 0, name, "images of at least one pixel", shape)
    require_count(name, len(images), least)
    return images


def counted(number: int, noun: str) -> str:
    """A number of things: "1 image", "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def require_count(name: str, count: int, least: int) -> None:
    """Raises ValueError unless there are at least `least` images."""
    require(count >= least, name, f">= {least} images", count, "pass more images")


def _all_of(sets: Mapping[str, ImagesOrFolder | None]) -> dict[str, ImagesOrFolder]:
    """The images of every argument; ValueError where training or held-out images are missing."""
    for name, (rule, remedy) in NEEDED.items():
        require(sets[name] is not None, name, rule, None, remedy)
    return {name: images for name, images in sets.items() if images is not None}


def read_sets(
    given: Mapping[str, ImagesOrFolder | None],
    least: Mapping[str, int],
    how: Reading,
    groups: Groups | None = None,
    cache: Path | None = None,
) -> dict[str, ImageSet]:
    """The images of every argument, all of one shape. least: images, by the argument's name.

    cache: a folder for the pixels of images in files, which are then memory-mapped.
    Raises ValueError where there are too few, shapes differ or groups do not fit, before the first
    image is decoded.
    """
    how.check()
    sets = _all_of(given)
    found = {name: _listed(name, some) for name, some in sets.items()}
    _require_enough(found, least, how)
    grouped = None
    if groups is not None:
        names = {name: [entry.id for entry in one.entries] for name, one in found.items()}
        sources = {name: _source(some) for name, some in sets.items()}
        grouped = read_groups(groups, names, sources)
        count, remedy = len(set(grouped["heldout"].values())), "add images of other groups"
        require(
            count >= least["heldout"], "heldout", f">= {least['heldout']} groups", count, remedy
        )
    channels = how.channels or _channels(found)
    shape = (how.size, how.size) if how.size is not None else _one_size(found)
    # A height and a width keep the whole image; a side crops it to its central square.
    size = shape if how.size is None or how.resize == "stretch" else shape[0]
    decoding, files = Decoding(size, channels, how.on_bad_file), {}
    if cache is not None:
        entries = {name: one.entries for name, one in found.items()}
        files = files_of(cache, entries, decoding)
    read: dict[str, ImageSet] = {}
    for name, one in found.items():
        follows = name == "heldout" and files.get(name) is not None
        place = files.get(name), len(read["train"].images) if follows else 0
        read[name] = _read(name, sets[name], one, decoding, how, place)
    for name, group in (grouped or {}).items():
        read[name] = replace(read[name], groups=[group[image] for image in read[name].names])
    return read


def _require_enough(found: Mapping[str, Listed], least: Mapping[str, int], how: Reading) -> None:
    """Raises ValueError where too few images of an argument can be read."""
    for name, one in found.items():
        readable = sum(not entry.problem for entry in one.entries)
        if how.on_bad_file == "error" or readable == 0:
            with as_arguments(name):
                require_readable(one.entries)  # first: an array of a wrong layout has no count
        require_count(name, readable, least[name])


def _source(images: ImagesOrFolder) -> str:
    """The folder of an argument; "array" for an array."""
    if isinstance(images, np.ndarray):
        return "array"
    return str(Path(images).parent if is_array_file(images) else images)


def _listed(name: str, images: ImagesOrFolder) -> Listed:
    if not isinstance(images, str | Path):
        array = checked(name, images)
        entries = [
            Entry(f"{name}[{i}]", "train", "", partial(_picture, image), f"{name}[{i}]")
            for i, image in enumerate(array)
        ]
        return Listed(entries, Counter({array.shape[1:3]: len(array)}), array.shape[3] == 1, [])
    folder = Path(images).expanduser()
    if not folder.is_dir() and not is_array_file(folder):
        raise FileNotFoundError(
            f"{name} must be a folder of images, a NumPy file or a uint8 array (n, h, w, c), got "
            f"{folder}, which is no folder; remedy: check the path"
        )
    source = ImageFolder(str(folder))
    with as_arguments(name):
        entries = source.entries()
        others = source.left_out()
    partitions = sorted({entry.partition for entry in entries})
    if len(partitions) != 1:
        remedy = _folder_of_one(name, folder, entries)
        require(False, name, "a folder of one partition", partitions, remedy)
    sizes, gray = sizes_of(entries)
    return Listed(entries, sizes, gray, [f"{name}: {in_words(others)}"] if others else [])


def _folder_of_one(name: str, folder: Path, entries: Sequence[Entry]) -> str:
    """The remedy for a folder of several partitions: the folder below it that fits the argument."""
    for partition in FITTING.get(name, ()):
        found = set()
        for parts in (Path(entry.id).parts[:-1] for entry in entries):
            fits = [i for i, part in enumerate(parts) if partition_of(part) == partition]
            if fits:
                found.add(folder.joinpath(*parts[: fits[0] + 1]))
        if found and len({path.parent for path in found}) == 1:
            return f"name the folder of one of them, {name}={str(min(found))!r}"
    return f"name a folder that holds the images of {name} alone"


def _picture(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _channels(found: Mapping[str, Listed]) -> Literal[1, 3]:
    """The channels of all arguments; ValueError where they differ."""
    first = next(iter(found))
    channels: dict[str, Literal[1, 3]] = {n: 1 if one.gray else 3 for n, one in found.items()}
    for name, count in channels.items():
        rule = f"of {counted(channels[first], 'channel')}, as {first}"
        remedy = "channels=1 converts all images to gray levels, channels=3 to RGB"
        require(count == channels[first], name, rule, count, remedy)
    return channels[first]


def _one_size(found: Mapping[str, Listed]) -> tuple[int, int]:
    """Height and width of all images; ValueError where they differ."""
    first = next(iter(found))
    remedy = "size=64, or another number of pixels, resizes all images to squares (see resize)"
    for name, one in found.items():
        several = ", ".join(f"{h} x {w} ({n:,})" for (h, w), n in one.sizes.most_common(NAMED))
        if len(one.sizes) > NAMED:
            several += f" and {len(one.sizes) - NAMED} more"
        require(len(one.sizes) <= 1, name, "images of one size", several, remedy)
    shapes = {name: next(iter(one.sizes), (1, 1)) for name, one in found.items()}
    for name, shape in shapes.items():
        sides = " x ".join(map(str, shapes[first]))
        require(shape == shapes[first], name, f"{sides} pixels, as {first}", shape, remedy)
    return shapes[first]


def _read(
    name: str,
    images: ImagesOrFolder,
    found: Listed,
    decoding: Decoding,
    how: Reading,
    place: tuple[Path | None, int],
) -> ImageSet:
    """place: the file that keeps the pixels, None for none, and their first row in it."""
    notes, shape = [*found.notes], decoding.shape[:2]
    changed = found.sizes.total() - found.sizes[shape]
    if changed:
        square = all(height == width for height, width in found.sizes)
        notes.append(
            f"{name}: {changed:,} of {counted(len(found.entries), 'image')} "
            f"{'is' if changed == 1 else 'are'} resized to {shape[0]} x {shape[0]} pixels"
            f"{'' if square else RESIZES[how.resize]}"
        )
    names = [entry.id for entry in found.entries]
    if isinstance(images, np.ndarray) and not changed and decoding.channels == images.shape[3]:
        return ImageSet(images, names, notes, "array")
    file, first = place
    with as_arguments(name):
        if file is not None:
            array, skipped, several = decoded(file, name, first, found.entries, decoding)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "images.npy"
                _, skipped, several = decoding.read(found.entries, path)
                array = np.load(path)
    if skipped:
        few = ", ".join(skipped[:NAMED]) + (" ..." if len(skipped) > NAMED else "")
        count = counted(len(skipped), "image")
        notes.append(f"{name}: left out because it cannot be read, {count}: {few}")
    if several:
        count = counted(several, "file")
        notes.append(f"{name}: of {count} with several images, only the first one is read")
    left_out = set(skipped)
    kept = [name for name in names if name not in left_out]
    return ImageSet(array, kept, notes, _source(images))
