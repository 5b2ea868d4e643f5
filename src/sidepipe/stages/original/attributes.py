"""CelebA's 40 yes-or-no attributes, from its list_attr_celeba.txt."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from sidepipe.base.records import text_in
from sidepipe.base.settings import require_known
from sidepipe.stages.data.celeba_files import find_list

VALUES = {"1": True, "-1": False, "0": False}


def read_attributes(
    file: Path, names: Sequence[str], ids: Sequence[str]
) -> Bool[np.ndarray, "n a"]:
    """Whether each image has each of the attributes `names`.

    The file's first line has the number of images, the second the names of the attributes, and each
    further line an image's id and 1 or -1 per attribute; Kaggle's copy has commas, and no number. A
    file in a neighboring folder, such as Anno/, is found. Raises FileNotFoundError without it, and
    ValueError for an attribute or an image that it does not list, or a line of another form.
    """
    found = file if file.is_file() else None
    if found is None and file.parent.is_dir():
        found = find_list(file.parent, file.stem)
    if found is None:
        raise FileNotFoundError(
            f"original.attribute_file names {file}, which is not there; remedy: CelebA's own "
            "list_attr_celeba.txt, below runtime.data_root, or original.attributes=null"
        )
    lines = [line.replace(",", " ").split() for line in text_in(found).split("\n")]
    numbered = [(number, words) for number, words in enumerate(lines, 1) if words]
    if numbered and len(numbered[0][1]) == 1:
        numbered = numbered[1:]
    known = [name for name in numbered[0][1] if name != "image_id"] if numbered else []
    for name in names:
        require_known("original.attributes", name, known)
    columns = [known.index(name) for name in names]
    values = {}
    for number, (name, *row) in numbered[1:]:
        if len(row) != len(known) or not VALUES.keys() >= set(row):
            raise ValueError(
                f"{found} line {number} must give 1 or -1 for each of {len(known)} attributes"
            )
        values[name] = [VALUES[row[column]] for column in columns]
    if missing := [name for name in ids if name not in values]:
        raise ValueError(f"{found} must list every image, and does not list {missing[0]}")
    return np.array([values[name] for name in ids])
