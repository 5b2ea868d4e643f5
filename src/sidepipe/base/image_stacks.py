"""Files that may hold several images, each of which counts: NumPy arrays, DICOM, NIfTI."""

from functools import partial
from pathlib import Path

from sidepipe.base.image_arrays import Reader, images_of_array
from sidepipe.base.image_files import (
    STACKS,
    START,
    SUFFIXES,
    format_of,
    open_image,
    readable_suffixes,
)


def images_in(file: str) -> list[tuple[str, Reader]]:
    """(place within the file, reader) of each image; the place of a single image is ""."""
    kind = _kind(file)
    if kind in ("NPY", "NPZ"):
        return images_of_array(file)
    if kind == "DICOM":
        from sidepipe.base.medical import images_of_dicom

        return images_of_dicom(file)
    if kind == "NIFTI":
        from sidepipe.base.medical import images_of_nifti

        return images_of_nifti(file)
    return [("", partial(open_image, file))]


def _kind(file: str) -> str | None:
    """The format of `STACKS` that a file has by its suffix, or by its first bytes without one."""
    lower = file.lower()
    for name in STACKS:
        if lower.endswith(SUFFIXES[name]):
            return name
    if lower.endswith(readable_suffixes()):
        return None
    with Path(file).open("rb") as opened:
        found = format_of(opened.read(START))
    return found if found in STACKS else None
