"""CelebA's files in the layouts that people have them in.

The official one (Img/, Eval/, Anno/), all in one folder, images nested twice by unzip, the PNG
edition, names ending with .JPG, and lists as CSV (Kaggle's copy).
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from sidepipe.base.image_files import Files, readable_suffixes
from sidepipe.base.records import text_in

IMAGES = "img_align_celeba"
# Folders are searched this many levels deep, but for those of so many entries, which hold images.
DEPTH, MANY = 3, 1000


def find_images(folder: Path) -> Path:
    """The folder of the aligned images in or below `folder`, the shallowest one.

    Raises FileNotFoundError with what is there instead, and ValueError where it could be several.
    """
    named = [
        (level, item)
        for level, item in _search(folder)
        if item.name.lower().startswith(IMAGES) and item.is_dir()
    ]
    # unzip often puts the folder into one of the same name, which holds nothing else.
    full = [(level, item) for level, item in named if _holds_images(item)] or named
    best = [item for level, item in full if level == full[0][0]]
    exact = [item for item in best if item.name == IMAGES] or best
    if not exact:
        raise FileNotFoundError(
            f"{folder} must hold CelebA's folder {IMAGES}/, found were {content(folder)}; remedy: "
            f"unzip {IMAGES}.zip there, or data.source.folder=... (the folder that holds it)"
        )
    if len(exact) > 1:
        raise ValueError(
            f"CelebA's images may lie in {' or '.join(str(item) for item in exact)}; remedy: move "
            "all but one away"
        )
    return exact[0]


def find_list(folder: Path, name: str) -> Path | None:
    """The list `name` (.txt or .csv, any case) in or below `folder`, the shallowest one, or None.

    Raises ValueError where it could be several.
    """
    wanted = [f"{name}{suffix}".lower() for suffix in (".txt", ".csv")]
    found = [
        (level, wanted.index(item.name.lower()), item)
        for level, item in _search(folder)
        if item.name.lower() in wanted and item.is_file()
    ]
    if not found:
        return None
    best = min(key[:2] for key in found)
    same = [item for *key, item in found if tuple(key) == best]
    if len(same) > 1:
        raise ValueError(
            f"CelebA's list may be {' or '.join(map(str, same))}; remedy: move all but one away"
        )
    return same[0]


def _search(folder: Path) -> Iterator[tuple[int, Path]]:
    """Everything in `folder` and, some levels deep, below it, with its level, level by level."""
    level = [folder]
    for depth in range(DEPTH):
        inner = []
        for parent in level:
            with os.scandir(parent) as scanned:
                items = list(islice(scanned, MANY + 1))
            if len(items) > MANY:
                continue
            for item in sorted(items, key=lambda item: item.name):
                if not item.name.startswith((".", "__MACOSX")):
                    yield depth, Path(item.path)
                    if item.is_dir():
                        inner.append(Path(item.path))
        level = inner


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as items:
        return any(item.name.lower().endswith(readable_suffixes()) for item in items)


def content(folder: Path, most: int = 8) -> str:
    """The names in a folder, for messages."""
    names = sorted(f"{item.name}{'/' * item.is_dir()}" for item in os.scandir(folder))
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "no files"


def located(listed: Iterable[str], there: Files, images: Path, table: Path) -> dict[str, str]:
    """The file of each listed image that has one: of that name or, else, with another suffix.

    Raises ValueError where no image has a file, or one could have several.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in there:
        by_stem[_stem(name)].append(name)
    files = {}
    for name in listed:
        if name in there:
            files[name] = name
        elif len(same := by_stem.get(_stem(name), [])) > 1:
            raise ValueError(f"{name} of {table} may be {' or '.join(same)} in {images}")
        elif same:
            files[name] = same[0]
    if not files:
        raise ValueError(
            f"{images} holds none of the images that {table} lists, such as {name}; it holds "
            f"{next(iter(there))}; remedy: bring the list and the images of one edition together"
        )
    return files


def _stem(name: str) -> str:
    return name.rpartition(".")[0].casefold()


def read_pairs(file: Path) -> dict[str, str]:
    """Second word by first, line by line; ValueError for another form or a repeated image.

    Words are separated by spaces or a comma; a first line `image_id,...` names the columns.
    """
    pairs: dict[str, str] = {}
    for number, line in enumerate(text_in(file).split("\n"), 1):
        words = line.replace(",", " ").split()
        if not words or (number == 1 and words[0] == "image_id"):
            continue
        if len(words) != 2:
            raise ValueError(f"{file} line {number} must be '<image> <number>', got {line!r}")
        if words[0] in pairs:
            raise ValueError(f"{file} line {number} repeats {words[0]}; remedy: remove one of them")
        pairs[words[0]] = words[1]
    return pairs
