"""CelebA's 40 yes-or-no attributes, as its list_attr_celeba.txt gives them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from sidepipe.settings import require_known


def read_attributes(
    file: Path, names: Sequence[str], ids: Sequence[str]
) -> Bool[np.ndarray, "n a"]:
    """Whether each image has each of the attributes `names`.

    The file's first line counts its images, the second names the attributes, every further one
    gives an image's id and 1 or -1 for each. Raises FileNotFoundError without it, and ValueError
    for an attribute or an image that it does not know.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"original.attribute_file names {file}, which is not there; remedy: CelebA's own "
            "list_attr_celeba.txt, below runtime.data_root, or original.attributes=null"
        )
    _, known, *lines = file.read_text("utf-8-sig").splitlines()
    for name in names:
        require_known("original.attributes", name, known.split())
    columns = [known.split().index(name) for name in names]
    values = {words[0]: words[1:] for line in lines if (words := line.split())}
    if missing := [name for name in ids if name not in values]:
        raise ValueError(f"{file} must list every image, and does not list {missing[0]}")
    return np.array([[int(values[name][column]) > 0 for column in columns] for name in ids])
