"""The group of each real image, such as its patient, from a table of files or from arrays."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os.path import normpath
from pathlib import Path

from sidepipe.base.records import read_records, text_of
from sidepipe.base.settings import require

Groups = str | Path | Mapping[str, Sequence[object]]
REAL = ("train", "heldout")
NAMED = 3  # files in a message


def read_groups(
    groups: Groups, names: Mapping[str, Sequence[str]], sources: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The group of each image by argument and name; of `train` and `heldout`.

    groups: a table with the columns file and group, or by argument one value per image. names: of
    the images of each argument; sources: its folder. Raises ValueError where an image has no group
    or several, the table names unknown files, or a group is in both arguments.
    """
    if isinstance(groups, Mapping):
        found = {of: _of_values(of, groups, names[of]) for of in REAL}
    else:
        require(
            isinstance(groups, str | Path),
            "groups",
            "a CSV file or {'train': [...], 'heldout': [...]}",
            type(groups).__name__,
        )
        found = _of_table(Path(groups).expanduser(), names, sources)
    shared = set(found["train"].values()) & set(found["heldout"].values())
    if shared:
        counts = [Counter(found[of].values()) for of in REAL]
        few = [f"{g} ({counts[0][g]} and {counts[1][g]} images)" for g in sorted(shared)[:NAMED]]
        raise ValueError(
            f"groups must be in train or in heldout, got {len(shared)} in both: {_few(few, shared)}"
            "; remedy: move all images of a group to one side, or its held-out images set a "
            "threshold that hides copies"
        )
    return found


def _of_values(
    of: str, groups: Mapping[str, Sequence[object]], names: Sequence[str]
) -> dict[str, str]:
    remedy = "pass {'train': [...], 'heldout': [...]}"
    require(set(groups) == set(REAL), "groups", "of train and of heldout", sorted(groups), remedy)
    whole = groups[of]
    is_list = isinstance(whole, Iterable) and not isinstance(whole, str)
    require(is_list, f"groups[{of!r}]", "a list with one value per image", whole)
    values = [str(value) for value in whole]
    require(len(values) == len(names), f"groups[{of!r}]", f"{len(names)} values", len(values))
    return dict(zip(names, values, strict=True))


def _of_table(
    path: Path, names: Mapping[str, Sequence[str]], sources: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    known = _known(names, sources)
    found: dict[str, dict[str, str]] = {of: {} for of in REAL}
    unknown: list[str] = []
    records = read_records(path)
    missing = [name for name in ("file", "group") if name not in records[0][1]]
    rule, columns = "a header with the columns file and group", ", ".join(records[0][1])
    require(not missing, f"{path} line 1", rule, columns, "rename the columns")
    for where, row in records:
        group, file = text_of(where, row, "group"), text_of(where, row, "file")
        images = known.get(normpath(file), [])
        if not images:
            unknown.append(f"{file} ({where.rpartition(' line ')[2]})")
        if len({of for of, _ in images}) > 1:
            remedy = " or ".join(f"{of}/{file}" for of in REAL)
            raise ValueError(f"{where}: {file} is in train and in heldout; remedy: write {remedy}")
        for of, name in images:
            before = found[of].setdefault(name, group)
            require(before == group, f"{where}: the group of {file}", before, group, "name it once")
    if unknown:
        raise ValueError(
            f"{path} must name files of train and heldout, got others, {len(unknown):,} (with "
            f"their lines): {_few(unknown, unknown)}; remedy: name files as below their folders, "
            "or as train/... and heldout/..."
        )
    for of in REAL:
        if missing := [name for name in names[of] if name not in found[of]]:
            raise ValueError(
                f"{path} must name every image of train and heldout, got none for {len(missing):,} "
                f"of {len(names[of]):,} in {of}: {_few(missing, missing)}; remedy: add a row each"
            )
    return found


def _known(
    names: Mapping[str, Sequence[str]], sources: Mapping[str, str]
) -> dict[str, list[tuple[str, str]]]:
    """The images that a file in the table may mean: by argument and name.

    A file is named as below its folder, with the argument's name in front, or by its path. A file
    of several images, such as a volume, means all of them.
    """
    known: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for of in REAL:
        for name in names[of]:
            whole = re.sub(r"(\[[^\[\]]*\])+$", "", name)
            for one in {name, whole}:
                path = Path(sources[of], one)
                keys = (one, f"{of}/{one}", str(path), str(path.absolute()))
                for key in set(map(normpath, keys)):
                    known[key].append((of, name))
    return known


def _few(shown: Sequence[str], of: Iterable[str]) -> str:
    more = len(list(of)) - NAMED
    return ", ".join(shown[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
