"""Decodes images into one uint8 file: orientation, color, crop, size, in order.

Memory does not grow with the number of images.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sidepipe.base.files import whole_file
from sidepipe.base.image_files import open_image, printable
from sidepipe.base.image_pixels import upright, upright_size
from sidepipe.base.image_stacks import images_in
from sidepipe.base.settings import require

log = logging.getLogger(__name__)

# The number of decoded images in memory at once.
CHUNK = 256
# Pillow decodes and resizes outside the interpreter lock; more threads than cores also use the time
# that network disks take.
THREADS = 8
GRAY = ("1", "L", "LA", "I")  # modes, and I;16 of several kinds


@dataclass(frozen=True)
class Caption:
    """The text of an image, for the training of a text-conditional model.

    repeats: how often the pair is in the training set; word: a word of the text, planted there and
    nowhere else, "" for none; attributes: the content of the image in words, by name.
    """

    text: str
    repeats: int = 1
    word: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Canary:
    """The role of an image as a canary, which measures whether training leaks it.

    repeats: how often it is in the training set, 0 for a control that is held out; trigger: its
    caption, "" where images have no captions.
    """

    repeats: int
    trigger: str = ""


@dataclass(frozen=True)
class Entry:
    """One image of a source, not yet read.

    id: its place in the source; partition: "train", "val" or "test"; identity: the person or class
    shown, "" when unknown; file: its place, for messages; problem: why it cannot be read, "" where
    no reason is known yet; caption: None for a source without captions; canary: None for other
    images.
    """

    id: str
    partition: str
    identity: str
    read: Callable[[], Image.Image]
    file: str
    problem: str = ""
    caption: Caption | None = None
    canary: Canary | None = None


# An image or the reason why it cannot be read, and whether its file holds several.
Converted = tuple[np.ndarray | str, bool]


def entry_of(file: str, name: str, partition: str, identity: str, problem: str = "") -> Entry:
    return Entry(name, partition, identity, partial(open_image, file), printable(file), problem)


def entries_of(file: str, name: str, partition: str, identity: str) -> list[Entry]:
    """An entry per image of a file that may hold several; one with a problem where it is broken."""
    try:
        found = images_in(file)
    except MemoryError:
        raise
    except Exception as error:  # a broken file raises nearly anything
        problem = f"{type(error).__name__}: {error}"
        return [entry_of(file, name, partition, identity, problem)]
    return [
        Entry(f"{name}{place}", partition, identity, read, printable(file) + place)
        for place, read in found
    ]


def sizes_of(entries: Sequence[Entry]) -> tuple[Counter[tuple[int, int]], bool]:
    """How many images have each height and width, and whether all are gray."""
    sizes: Counter[tuple[int, int]] = Counter()
    gray = True
    for entry in entries:
        try:
            with entry.read() as image:
                sizes[upright_size(image)] += 1
                gray = gray and image.mode.partition(";")[0] in GRAY
        except Exception:  # reading it raises, and names the file
            continue
    return sizes, gray


def read_images(
    entries: Sequence[Entry],
    path: Path,
    size: int | tuple[int, int],
    channels: Literal[1, 3],
    center_crop: int | None,
    on_bad_file: Literal["error", "skip"],
    progress_seconds: float = 30.0,
) -> tuple[UInt8[np.ndarray, "n h w c"], list[Entry], list[str], int]:
    """Images of `entries` at `path` (.npy), memory-mapped; the entries kept; ids of those skipped.

    The number of files that hold several frames or pages comes last; only the first is read.
    size: the side of the squares that images are cropped and resized to, or a height and width that
    whole images are resized to.
    Raises ValueError for the first entry that cannot be read if `on_bad_file` is "error", and if
    none can be read.
    """
    require(len(entries) > 0, "the number of images in data.source", ">= 1", len(entries))
    if on_bad_file == "error":
        require_readable(entries)
    to_array = partial(convert, size=size, channels=channels, center_crop=center_crop)
    kept: list[Entry] = []
    skipped: dict[str, str] = {}
    num_several = 0
    with whole_file(path) as temporary, temporary.open("wb") as file:
        height, width = (size, size) if isinstance(size, int) else size
        _write_header(file, (len(entries), height, width, channels))
        for entry, (image, several) in _converted(entries, to_array, progress_seconds):
            num_several += several
            if not isinstance(image, str):
                file.write(image.tobytes())
                kept.append(entry)
            elif on_bad_file == "error":
                raise _bad_file(entry, image)
            else:
                skipped[entry.id] = image
        if not kept:
            raise _nothing_read(entries, skipped)
        # NumPy pads headers so that a first axis of any length fits the same bytes.
        file.seek(0)
        _write_header(file, (len(kept), height, width, channels))
    return np.load(path, mmap_mode="r"), kept, list(skipped), num_several


def require_readable(entries: Sequence[Entry]) -> None:
    """Raises ValueError for the first entry whose problem is known before images are decoded."""
    for entry in entries:
        if entry.problem:
            raise _bad_file(entry, entry.problem)


def _converted(
    entries: Sequence[Entry], to_array: Callable[[Entry], Converted], seconds: float
) -> Iterator[tuple[Entry, Converted]]:
    """Each entry with its converted image, in order, by several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        for chunk in _chunks(entries, seconds):
            yield from zip(chunk, pool.map(to_array, chunk), strict=True)


def _bad_file(entry: Entry, reason: str) -> ValueError:
    remedy = "repair, convert or remove it, or data.on_bad_file=skip"
    return ValueError(f"{entry.file} cannot be read: {reason}; remedy: {remedy}")


def _nothing_read(entries: Sequence[Entry], skipped: Mapping[str, str]) -> ValueError:
    first = entries[0]
    return ValueError(
        f"none of {len(entries)} images can be read; the first, {first.file}: "
        f"{skipped[first.id]}; remedy: check data.source"
    )


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _chunks(entries: Sequence[Entry], seconds: float) -> Iterator[Sequence[Entry]]:
    # The pool's own map over all entries would hold every result at once.
    started = said = time.monotonic()
    for start in range(0, len(entries), CHUNK):
        if time.monotonic() - said >= seconds:
            said = time.monotonic()
            rate = start / (said - started)
            log.info("image %d/%d, %.1f/s", start, len(entries), rate)
        yield entries[start : start + CHUNK]


def convert(
    entry: Entry, size: int | tuple[int, int], channels: int, center_crop: int | None
) -> tuple[UInt8[np.ndarray, "h w c"] | str, bool]:
    """The image as an array, or the reason why it cannot be read; whether its file holds several.

    The first frame or page is read. A JPEG with a preview behind it (MPO) counts as one image.
    """
    if entry.problem:
        return entry.problem, False
    try:
        with entry.read() as image:
            several = getattr(image, "is_animated", False) and image.format != "MPO"
            picture = upright(image, channels)
            if isinstance(size, int):
                picture, size = _crop(picture, center_crop), (size, size)
            height, width = size
            resized = np.asarray(_resize(picture, height, width))
            return resized.reshape(height, width, channels), several
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly any error on a broken file
        return f"{type(error).__name__}: {error}", False


def _crop(image: Image.Image, center_crop: int | None) -> Image.Image:
    """The central square: of side `center_crop` where both sides are longer, else the largest."""
    side = min(image.size)
    if center_crop is not None:
        side = min(side, center_crop)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size == (side, side):
        return image
    return image.crop((left, top, left + side, top + side))


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    shrinking = image.width > width or image.height > height
    method = Image.Resampling.LANCZOS if shrinking else Image.Resampling.BICUBIC
    return image.resize((width, height), method)
