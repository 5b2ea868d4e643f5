"""Images that another tool made, read from a folder in place of an attack's samples."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sidepipe.base.files import sha256_of
from sidepipe.base.image_files import in_words, is_array_file, list_images, printable
from sidepipe.base.image_reading import Entry, entries_of, read_images, sizes_of
from sidepipe.base.images import save_grid
from sidepipe.base.settings import require
from sidepipe.engine.shards import check_disk, shard_ranges, write_shard

FOLDER = "extract.surrogate.folder"
# The parts of an attack's cost: unknown for images of another tool.
NO_COST = dict.fromkeys(
    ("unet_forwards", "surrogate_gradients", "gradient_cost", "network_evaluations")
)
SHOWN = 3  # sizes in a message


def entries_in(folder: str) -> list[Entry]:
    """The images below a folder, or of a NumPy file, by path; their partitions mean nothing.

    Raises FileNotFoundError without the folder, and ValueError without an image in it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir() and not is_array_file(path):
        raise FileNotFoundError(
            f"{FOLDER} must be a folder of images or a NumPy file, got {path}; remedy: check the "
            "path"
        )
    files, others = list_images(path)
    remedy = in_words(others) if others else "docs/reading-images.md has the formats"
    require(len(files) > 0, FOLDER, "a folder with images", str(path), remedy)
    return [
        entry
        for name, item in files.items()
        for entry in entries_of(item.path, printable(name), "", "")
    ]


def content_of(folder: str) -> str:
    """The SHA-256 of the list of the folder's images: the name and the SHA-256 of each file.

    A file that is read once is not read again until its time or its size changes.
    """
    listed = hashlib.sha256()
    for name, item in list_images(Path(folder).expanduser())[0].items():
        listed.update(f"{sha256_of(Path(item.path))}  {printable(name)}\n".encode())
    return listed.hexdigest()


def require_sizes(entries: Sequence[Entry], size: int, resize: str | None) -> None:
    """Raises ValueError where images have another size than the data and `resize` is None."""
    sizes = sizes_of(entries)[0]
    found = ", ".join(f"{h} x {w} ({n:,})" for (h, w), n in sizes.most_common(SHOWN))
    rule = f"images of {size} x {size} pixels, the data's (data.size)"
    remedy = "extract.surrogate.resize=crop keeps the central square, =stretch the whole image"
    require(resize is not None or set(sizes) <= {(size, size)}, FOLDER, rule, found, remedy)


def write_images(
    folder: Path,
    entries: Sequence[Entry],
    shape: Sequence[int],
    resize: Literal["crop", "stretch"] | None,
    on_bad_file: Literal["error", "skip"],
    shard_size: int,
) -> dict[str, Any]:
    """Writes the images as shards of the artifact in `folder`, and their names to files.csv.

    shape: height, width and channels of the data, which the images get. Returns the summary.
    """
    height, width, channels = shape
    check_disk(folder, 2 * len(entries) * height * width * channels)
    path, kind = folder / "images.npy", 1 if channels == 1 else 3
    size = height if resize == "crop" else (height, width)
    try:
        images, kept, skipped, _ = read_images(entries, path, size, kind, None, on_bad_file)
    except ValueError as error:
        text = str(error).replace("data.on_bad_file", "extract.surrogate.on_bad_file")
        raise ValueError(text.replace("check data.source", f"check {FOLDER}")) from None
    for shard, part in enumerate(shard_ranges(len(images), shard_size)):
        write_shard(folder, shard, np.asarray(images[part.start : part.stop]))
    _write_names(folder / "files.csv", kept)
    np.save(folder / "targets.npy", np.full(len(images), -1, np.int64))
    save_grid(folder / "preview.png", np.asarray(images[:64]))
    path.unlink()
    return {"num_images": len(kept), "skipped": skipped, **NO_COST}


def _write_names(path: Path, entries: Sequence[Entry]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "file"])
        writer.writerows((i, entry.id) for i, entry in enumerate(entries))
