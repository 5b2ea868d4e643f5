"""The subject of each image of the data, from a table of files or from the data itself."""

from pathlib import Path

import numpy as np

from sidepipe.base.files import sha256_of
from sidepipe.base.groups import read_groups
from sidepipe.base.settings import require
from sidepipe.engine.artifacts import Artifact
from sidepipe.stages.data.stage import load_identities, load_ids
from sidepipe.stages.dpm.stage import load_subset

IDENTITY = "identity"  # the value of `audit.groups` that stands for the identity of the data


def table_of(groups: str | None) -> Path | None:
    """The table of files that `audit.groups` names, if any."""
    return None if groups is None or groups == IDENTITY else Path(groups).expanduser()


def sha256_of_groups(groups: str | None) -> str | None:
    """The SHA-256 of the table of files, None without one."""
    return None if (file := table_of(groups)) is None else sha256_of(file)


def subjects_of(groups: str | None, data: Path, dpm: Path) -> np.ndarray | None:
    """The subject of each image of the data, None without `audit.groups`.

    Raises ValueError where an image has no subject, or where one has training and held-out images.
    """
    if groups is None:
        return None
    train, unseen = load_subset(dpm)
    if groups == IDENTITY:
        found = load_identities(data)
        missing, remedy = int((found == "").sum()), "name a table of groups"
        require(missing == 0, "images without an identity", "0", missing, remedy)
        both = sorted(set(found[train]) & set(found[unseen]))
        remedy = "name dpm.train_partitions that keep each subject on one side"
        require(not both, "subjects with training and held-out images", "none", both[:3], remedy)
        return found
    ids = load_ids(data)
    rows = {"train": train, "heldout": unseen}
    names = {kind: ids[of].tolist() for kind, of in rows.items()}
    source = str(Artifact(data).settings["source"].get("folder", "."))
    grouped = read_groups(groups, names, dict.fromkeys(rows, source))
    found = np.full(len(ids), "", dtype=object)
    for kind, of in rows.items():
        found[of] = [grouped[kind][name] for name in names[kind]]
    return found
