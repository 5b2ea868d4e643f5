"""Image files: listing those of a folder, by suffix or by content, and opening them.

Only formats with a test of pixel values are opened (docs/reading-images.md lists them); all other
files are counted and reported.
"""

import functools
import importlib
import importlib.util
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError, features

log = logging.getLogger(__name__)

SUFFIXES = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "DICOM": (".dcm", ".dicom"),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "JXL": (".jxl",),
    "NIFTI": (".nii", ".nii.gz"),
    "NPY": (".npy",),
    "NPZ": (".npz",),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
START = 132  # bytes; DICOM's mark comes last
# The first bytes of a file. TGA, NPZ and NIFTI have none, and are recognized by their suffixes.
SIGNATURES = {
    "AVIF": rb"....ftypavi[fs]",
    "BMP": rb"BM....\0\0\0\0",
    "DICOM": rb".{128}DICM",
    "GIF": rb"GIF8[79]a",
    "HEIF": rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "JPEG": rb"\xff\xd8\xff",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "JXL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "NPY": rb"\x93NUMPY",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "PPM": rb"P[1-6]\s",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WEBP": rb"RIFF....WEBP",
}
_SIGNATURE = re.compile(
    b"|".join(b"(?P<%s>%s)" % (name.encode(), sign) for name, sign in SIGNATURES.items()), re.DOTALL
)
# Formats that Pillow reads with another package, and the module that registers them.
PLUGINS = {
    "AVIF": ("Pillow 11.3 or newer", "pillow_avif"),
    "HEIF": ("pillow-heif", "pillow_heif"),
    "JXL": ("pillow-jxl-plugin", "pillow_jxl"),
}
# Formats that are no pictures of Pillow, and the packages that they need; see `image_stacks`.
STACKS = {"NPY": "numpy", "NPZ": "numpy", "DICOM": "pydicom", "NIFTI": "nibabel"}
MEDICAL = "pip install 'sidepipe[medical]'"
# Files and folders that accompany images in many data sets and hold no images.
NO_IMAGES = frozenset(
    [
        *(".cfg", ".csv", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md"),
        *(".py", ".rst", ".sh", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml"),
    ]
)
NO_DATA = frozenset(["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "DICOMDIR", "Thumbs.db"])

# Pillow only warns about so many pixels, and several such images together exhaust the memory.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

Files = dict[str, os.DirEntry[str]]


@functools.cache
def readable_formats() -> frozenset[str]:
    """The formats of `SUFFIXES` that the installed packages read."""
    Image.init()
    for _, module in PLUGINS.values():
        if importlib.util.find_spec(module) is not None:
            plugin = importlib.import_module(module)
            if module == "pillow_heif":
                plugin.register_heif_opener()
    there = {name for name in SUFFIXES if name in Image.OPEN}
    if "avif" in features.modules and not features.check_module("avif"):
        there.discard("AVIF")
    return frozenset(there | {name for name in STACKS if importlib.util.find_spec(STACKS[name])})


@functools.cache
def readable_suffixes() -> tuple[str, ...]:
    """The suffixes of the readable formats, sorted."""
    return tuple(sorted(suffix for name in readable_formats() for suffix in SUFFIXES[name]))


def open_image(file: str | Path) -> Image.Image:
    """The image of a file, not yet decoded; the first one where it holds several.

    Raises UnidentifiedImageError, with the actual content, for a file of another kind, ValueError
    for more pixels than Pillow's limit, and OSError where the file cannot be read.
    """
    formats = sorted(readable_formats() - {"TGA", *STACKS})
    if str(file).lower().endswith(SUFFIXES["TGA"]):
        formats.append("TGA")
    try:
        return Image.open(file, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"it has more than {limit:,} pixels; remedy: make it smaller") from None
    except UnidentifiedImageError:
        raise UnidentifiedImageError(_content(file)) from None


def _content(file: str | Path) -> str:
    with Path(file).open("rb") as opened:
        start = opened.read(START)
    found = format_of(start)
    if found is None:
        return f"no image format begins with {start[:16]!r}" if start else "the file is empty"
    if found in STACKS and found in readable_formats():
        return f"its content is {found}, and its suffix is that of another format"
    if found in readable_formats():
        return f"its content is broken {found}"
    return f"its content is {found}, which needs {_needed(found)}"


def _needed(name: str) -> str:
    return MEDICAL if name in STACKS else PLUGINS[name][0]


def format_of(start: bytes) -> str | None:
    """The format whose files begin with these bytes."""
    match = _SIGNATURE.match(start)
    return match.lastgroup if match else None


def is_array_file(path: str | Path) -> bool:
    """Whether `path` is a NumPy file, which stands for a folder of its images."""
    return str(path).lower().endswith((".npy", ".npz")) and Path(path).is_file()


def list_images(folder: str | Path) -> tuple[Files, Counter[str]]:
    """The image files below `folder` by relative path, sorted, and the count of others by kind.

    A file counts as an image if its suffix is that of a readable format, or its first bytes are.
    Hidden files and those of `NO_IMAGES` are neither. Links are followed; a link to a folder above
    it is skipped with a warning. A NumPy file in place of a folder is that file alone. Raises
    ValueError where a link leads to a folder that was already listed, and OSError where a folder
    cannot be read.
    """
    images: Files = {}
    others: Counter[str] = Counter()
    seen: dict[str, str] = {}
    if is_array_file(folder):
        path = Path(folder)
        return {
            item.name: item for item in _items(str(path.parent)) if item.name == path.name
        }, others
    todo = [(str(folder), "", os.path.realpath(folder))]
    links: list[tuple[str, str, str]] = []
    while todo or links:
        if not todo:
            links.sort()
            todo = _followed(*links.pop(0))
            continue
        path, prefix, real = todo.pop()
        if real in seen:
            raise ValueError(
                f"{seen[real]} and {path} are one folder; remedy: remove the link, or each of its "
                "images would count twice"
            )
        seen[real] = path
        for item in _items(path):
            if item.name.startswith(".") or item.name in NO_DATA:
                continue
            if _is_folder(item):
                inner, is_link = f"{prefix}{item.name}/", item.is_symlink()
                target = links if is_link else todo
                target.append((item.path, inner, real if is_link else f"{real}/{item.name}"))
            elif (other := _other(item)) is None:
                images[prefix + item.name] = item
            elif other:
                others[other] += 1
    return _without_tables(dict(sorted(images.items())), others), others


def _without_tables(images: Files, others: Counter[str]) -> Files:
    """Without NumPy files next to pictures, such as embeddings, which are counted as others."""
    arrays = {name for name in images if name.lower().endswith((".npy", ".npz"))}
    if len(arrays) == len(images):
        return images
    others.update(name.lower()[-4:] for name in arrays)
    return {name: item for name, item in images.items() if name not in arrays}


def _followed(path: str, prefix: str, parent: str) -> list[tuple[str, str, str]]:
    """The folder that the link `path` leads to, or none where that contains the link."""
    real = os.path.realpath(path)
    if Path(parent).is_relative_to(real):
        log.warning("%s is skipped: it is a link to %s, which contains it", path, real)
        return []
    return [(path, prefix, real)]


def _items(path: str) -> list[os.DirEntry[str]]:
    # The listing separates files from folders; one call for each of 200,000 is slow on some disks.
    try:
        with os.scandir(path) as items:
            return list(items)
    except PermissionError as error:
        remedy = "allow reading it, or move it away"
        raise PermissionError(
            f"{path} cannot be listed: {error.strerror}; remedy: {remedy}"
        ) from None


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False  # a link to itself: opening it fails and names it


def _other(item: os.DirEntry[str]) -> str | None:
    """The kind of a file, None for an image, "" for one that cannot be mistaken for an image."""
    stem, dot, end = item.name.lower().rpartition(".")
    # A longer end is a word of a name, as in "photo.of a friend", and names are private.
    suffix = f".{end}" if dot and stem and len(end) <= 8 and end.isalnum() else ""
    if suffix == ".gz" and stem.endswith(".nii"):
        suffix = ".nii.gz"
    if suffix in NO_IMAGES:
        return ""
    if not (item.is_file(follow_symlinks=False) or item.is_symlink()):
        return "no regular file"
    if suffix in readable_suffixes():
        return None
    kind = suffix or "without suffix"
    try:
        with FileIO(item.path) as file:  # unbuffered: there may be 200,000 of them
            found = format_of(file.read(START))
    except PermissionError:
        return None  # reading it is an error that names it
    except OSError:
        return kind
    if found in readable_formats():
        return None
    if found is None and suffix in SUFFIXES["NIFTI"]:
        found = "NIFTI"
    return kind if found is None else f"{kind} ({found}, which needs {_needed(found)})"


def in_words(others: Mapping[str, int]) -> str:
    """How many files are not read, by kind: "12 files are not read: 10 .heic, 2 without suffix"."""
    kinds = sorted(others.items(), key=lambda kind: (-kind[1], kind[0]))
    said = [f"{count:,} {kind}" for kind, count in kinds[:8]]
    if len(kinds) > 8:
        said.append(f"{len(kinds) - 8} other kinds")
    count = sum(others.values())
    files = "1 file is" if count == 1 else f"{count:,} files are"
    return f"{files} not read: {', '.join(said)}"


def printable(name: str) -> str:
    r"""A file's name as UTF-8 text: each byte that is none is written as \xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
