"""CIFAR-10 from its official files: the Python or the binary version, extracted or not.

The Python version is pickles, and loading a pickle can run any program. The unpickler here accepts
three names of NumPy and makes inert containers of them.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sidepipe.base.image_reading import Entry
from sidepipe.stages.data.sources import Source, digest, existing_folder

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
# Names in the folder, the first that exists is read, and how the names of its batches end.
FORMS = {
    "cifar-10-batches-py": "",
    "cifar-10-batches-bin": ".bin",
    "cifar-10-python.tar.gz": "",
    "cifar-10-binary.tar.gz": ".bin",
}
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CIFAR10(Source):
    """The 60,000 images; identity is the class.

    folder: holds one of `FORMS`. Ids do not depend on which one.
    """

    folder: str

    def entries(self) -> list[Entry]:
        place, end = self._place()
        read = _from_archive if place.is_file() else _from_folder
        parse = _parse_binary if end else _parse_pickle
        batches = {}
        for name, content in read(place, [name + end for name in BATCHES]):
            try:
                batches[name.removesuffix(end)] = parse(content)
            except Exception as error:  # a broken pickle can raise nearly any error
                raise _broken(place, f"{name}: {type(error).__name__}: {error}") from None
        if missing := [name for name in BATCHES if name not in batches]:
            raise _broken(place, f"{missing[0]}{end} is missing")
        return [
            Entry(
                id=f"{name}/{i:05d}",
                partition="test" if name == "test_batch" else "train",
                identity=CLASSES[label],
                read=partial(_image, row),
                file=f"{place}, {name}, image {i}",
            )
            for name in BATCHES
            for i, (row, label) in enumerate(zip(*batches[name], strict=True))
        ]

    def listing(self) -> str:
        place, end = self._place()
        files = [place] if place.is_file() else [place / (name + end) for name in BATCHES]
        return digest({file.name: file.stat().st_size for file in files})

    def _place(self) -> tuple[Path, str]:
        folder = existing_folder(self.folder)
        for name, end in FORMS.items():
            if (folder / name).exists():
                return folder / name, end
        raise FileNotFoundError(
            f"{folder} must hold one of {', '.join(FORMS)}; remedy: get one from "
            "https://www.cs.toronto.edu/~kriz/cifar.html, or data.source.folder=..."
        )


def _broken(place: Path, reason: str) -> ValueError:
    return ValueError(f"{place} cannot be read: {reason}; remedy: download CIFAR-10 again")


def _image(row: UInt8[np.ndarray, "3072"]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0)))


def _from_folder(folder: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        if (folder / name).exists():
            yield name, (folder / name).read_bytes()


def _from_archive(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    # In the archive's own order, which unpacks it once.
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                if name in names and (file := members.extractfile(member)):
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise _broken(archive, str(error)) from None


Rows = tuple[UInt8[np.ndarray, "n 3072"], list[int]]


def _parse_binary(content: bytes) -> Rows:
    """Images and classes of records with one byte of class and 3,072 of pixels."""
    if not content or len(content) % (1 + PIXELS):
        raise ValueError(f"its bytes must be a multiple of {1 + PIXELS}, got {len(content)}")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return _checked(records[:, 1:], records[:, 0].tolist())


def _parse_pickle(content: bytes) -> Rows:
    """Images and classes of a pickled dict from Python 2."""
    batch = _InertUnpickler(io.BytesIO(content), encoding="bytes").load()
    _, shape, dtype, fortran_order, raw = batch[b"data"].state
    if dtype.arguments[0] != b"u1":
        raise ValueError(f"data must be of dtype u1, got {dtype.arguments[0]!r}")
    pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran_order else "C")
    return _checked(pixels, batch[b"labels"])


def _checked(pixels: UInt8[np.ndarray, "n 3072"], labels: list[int]) -> Rows:
    if pixels.shape != (len(labels), PIXELS):
        raise ValueError(f"data must be ({len(labels)}, {PIXELS}), got {pixels.shape}")
    if wrong := [label for label in labels if label not in range(len(CLASSES))]:
        raise ValueError(f"labels must be 0 to {len(CLASSES) - 1}, got {wrong[0]}")
    return pixels, labels


class _Inert:
    """Stands for an object of a pickle: keeps its arguments and state, and creates nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    NAMES = frozenset(
        [
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ]
    )

    def find_class(self, module_name: str, global_name: str) -> type[_Inert]:
        if (module_name, global_name) not in self.NAMES:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which no file of CIFAR-10 does; nothing in "
                "it was executed"
            )
        return _Inert
