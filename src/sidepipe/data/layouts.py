"""Partitions and identities of images, from the folders that they lie in.

A folder named as a split (train/, valid/, Test-Set/, val2017/) gives the partition. Where folders
leave it open whether an image belongs to the training set, the layout is refused: an unseen image
that counts as a training image raises the threshold of a hit, and hides copies.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

SYNONYMS = {
    "train": ("train", "training", "trn", "member", "members"),
    "val": ("val", "valid", "validation", "dev", "devel", "development"),
    "test": (
        *("test", "testing", "tst", "eval", "evaluation", "heldout", "holdout", "unseen"),
        *("nonmember", "nonmembers"),
    ),
}
_NAME = re.compile(
    "(?:" + "|".join(f"(?P<{kind}>{'|'.join(names)})" for kind, names in SYNONYMS.items()) + ")"
    r"(?:set|split|data|images?|imgs?)?\d*"
)
# A part of a longer name by which a person means a split: my_test, bedroom_val, TrainFaces.
_WORD = re.compile(
    r"(?:^|[^a-z])(?:(?P<train>train|training)|(?P<val>val|validation)"
    r"|(?P<test>test|testing|testset|held[ _-]?out|hold[ _-]?out|unseen))(?:$|[^a-z])"
)
# So few folders may be splits; more are people or classes, some of whom have such a name.
MAX_SPLITS = 10
REMEDY = (
    "remedy: put what the model trains on below train/ and the rest below val/ or test/ (links to "
    "folders will do), or list the images with their partitions in a file (data=captioned)"
)


def partition_of(name: str) -> str | None:
    """ "train", "val" or "test" for a word that means it ("Training", "held-out"), else None.

    Case, spaces, hyphens, underscores, and what follows as in val2017 or test_images do not count.
    """
    match = _NAME.fullmatch(re.sub(r"[\s._-]", "", name.casefold()))
    return match.lastgroup if match else None


def words() -> list[str]:
    """The words that `partition_of` maps."""
    return [name for names in SYNONYMS.values() for name in names]


def partitioned(names: Sequence[str], where: str) -> tuple[list[tuple[str, str]], str]:
    """(partition, identity) of each image, and in words which folder became which partition.

    names: relative paths. A split's folder lies at the top, or below one folder that holds all
    images, or within each class (cats/train/, cats/test/). The other folders are the identity.
    Without such a folder every image is "train". Raises ValueError, with what was found in `where`,
    for any other mixture.
    """
    counts = Counter(name.rpartition("/")[0] for name in names)
    parents = {folder: tuple(folder.split("/")) if folder else () for folder in counts}
    places = {folder: _place(parts, where) for folder, parts in parents.items()}
    found = {place for place in places.values() if place is not None}
    if not found:
        _refuse_hidden_splits(names, list(parents.values()), where)
        identity = {folder: ("train", folder) for folder in counts}
        top = sorted({f"{parts[0]}/" for parts in parents.values() if parts})
        people = f"; {_few(top)} are identities" if top else ""
        said = f"train: {len(names):,} images (no folder is named as a split{people})"
    else:
        if len(found) > 1 or None in places.values():
            raise _mixture(counts, where)
        place = found.pop()
        above = {parts[:place] for parts in parents.values()}
        kept = place if len(above) > 1 else 0
        identity = {
            folder: (_partition(parts[place]), "/".join(_rest(parts, kept, place)))
            for folder, parts in parents.items()
        }
        said = _in_words(counts, parents, identity, place)
    return [identity[name.rpartition("/")[0]] for name in names], said


def _partition(name: str) -> str:
    partition = partition_of(name)
    assert partition is not None
    return partition


def _rest(parts: Sequence[str], kept: int, place: int) -> list[str]:
    """The identity: the classes above a split, and all below it but the same name once more."""
    return [*parts[:kept], *(name for name in parts[place + 1 :] if name != parts[place])]


def _place(parts: Sequence[str], where: str) -> int | None:
    """Which of the folders above an image is its split's; ValueError where they contradict."""
    kinds = {i: kind for i, name in enumerate(parts) if (kind := partition_of(name)) is not None}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"{where}: images in {'/'.join(parts)}/ lie in folders of two partitions, "
            f"{' and '.join(parts[i] for i in kinds)}; {REMEDY}"
        )
    return min(kinds, default=None)


def _mixture(counts: Counter[str], where: str) -> ValueError:
    """Some images lie in a split's folder, others do not, or it lies at different depths."""
    splits: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for folder, count in counts.items():
        parts = folder.split("/") if folder else []
        place = next((i for i, name in enumerate(parts) if partition_of(name)), None)
        if place is None:
            others[f"{parts[0]}/" if parts else "no sub-folder"] += count
        else:
            splits["/".join(parts[: place + 1]) + "/"] += count
    found = f"{_listed(splits)} beside {_listed(others)}" if others else _listed(splits)
    return ValueError(
        f"{where}: it is ambiguous which images belong to the training set, found were images in "
        f"{found}; {REMEDY}"
    )


def _listed(counts: Counter[str], most: int = 5) -> str:
    return _few([f"{name} ({count:,})" for name, count in sorted(counts.items())], most)


def _refuse_hidden_splits(
    names: Sequence[str], parents: Sequence[Sequence[str]], where: str
) -> None:
    """Raises ValueError where folders such as bedroom_val/, or file names, look like splits."""
    top = {parts[0] for parts in parents if parts}
    like = sorted(name for name in top if _word_in(name))
    if like and len(top) <= MAX_SPLITS:
        raise ValueError(
            f"{where}: {', '.join(f'{name}/' for name in like)} may name splits, and all images "
            f"would join the training set; {REMEDY}"
        )
    kinds = Counter(_words_in(name.rpartition("/")[2] for name in names))
    if len(kinds) > 1:
        raise ValueError(
            f"{where}: names of files begin with words for splits "
            f"({', '.join(f'{kind}: {count:,}' for kind, count in sorted(kinds.items()))}), and "
            f"all images would join the training set; {REMEDY}"
        )


def _word_in(name: str) -> str | None:
    """The partition that a part of the name stands for, or None."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()
    match = _WORD.search(spaced)
    return match.lastgroup if match else None


def _words_in(files: Iterable[str]) -> Iterable[str]:
    """The partition for which the first word of each file's name stands, where it does."""
    for file in files:
        if (match := re.match(r"[a-z]+", file.casefold())) and (kind := partition_of(match[0])):
            yield kind


def _in_words(
    counts: Counter[str],
    parents: dict[str, tuple[str, ...]],
    identity: dict[str, tuple[str, str]],
    place: int,
) -> str:
    folders: dict[str, Counter[str]] = {}
    for folder, count in counts.items():
        partition, _ = identity[folder]
        name = "/".join(parents[folder][: place + 1]) + "/"
        folders.setdefault(partition, Counter())[name] += count
    order = [partition for partition in SYNONYMS if partition in folders]
    said = []
    for partition in order:
        own = folders[partition]
        said.append(f"{partition}: {own.total():,} images ({_few(sorted(own))})")
    return ", ".join(said)


def _few(names: Sequence[str], most: int = 3) -> str:
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])
