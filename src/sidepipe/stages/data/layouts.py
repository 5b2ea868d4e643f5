"""Partitions and identities of images, from the names of their folders.

A folder named as a split (train/, valid/, Test-Set/, val2017/) gives the partition. A layout is
refused where it is ambiguous whether an image belongs to the training set: an unseen image that
counts as a training image raises the threshold of a hit, and hides copies.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

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
    r"(?:(?<!train)s|set|split|data|images?|imgs?)?\d*"  # trains/ may hold pictures of trains
)
# Two words that together mean a split, and one word that means two splits.
_JOINED = re.compile(r"(?<![a-z])(held|hold|non)[\W_]+(out|members?)(?![a-z])")
_TRAINVAL = re.compile(r"(?<![a-z])trainval(?![a-z])")
# Words that do not describe the content of an image.
_PLAIN = re.compile(
    "(?:image|img|photo|picture|pic|dataset|set|split|folder|file)s?|data|my|our|new|all|the"
)
REMEDY = (
    "remedy: put what the model trains on below train/ and the rest below val/ or test/ (links to "
    "folders will do), or list the images with their partitions in a file (data=captioned)"
)
# The partition that a part of a name means, and the other words of the name.
Parsed = tuple[str | None, tuple[str, ...]]


@lru_cache(maxsize=2**16)  # 200,000 files have few different words
def partition_of(name: str) -> str | None:
    """ "train", "val" or "test" for a synonym ("Training", "held-out"), else None.

    Case, spaces, hyphens, underscores, and endings as in val2017, test_images or heldouts do not
    count.
    """
    match = _NAME.fullmatch(re.sub(r"[\s._-]", "", name.casefold()))
    return match.lastgroup if match else None


def words() -> list[str]:
    """The words that `partition_of` accepts."""
    return [name for names in SYNONYMS.values() for name in names]


def partitioned(names: Sequence[str], where: str) -> tuple[list[tuple[str, str]], str]:
    """(partition, identity) of each image, and a sentence about which folder has which partition.

    names: relative paths. A split's folder lies at the top, or below one folder that holds all
    images, or within each class (cats/train/, cats/test/). The other folders are the identity.
    Without such a folder every image is "train". Raises ValueError, with the content of `where`,
    for any other mixture.
    """
    counts = Counter(name.rpartition("/")[0] for name in names)
    parents = {folder: tuple(folder.split("/")) if folder else () for folder in counts}
    places = {folder: _place(parts, where) for folder, parts in parents.items()}
    found = {place for place in places.values() if place is not None}
    if not found:
        _refuse_hidden_splits(names, counts, where)
        identity = {folder: ("train", folder) for folder in counts}
        top = sorted({f"{parts[0]}/" for parts in parents.values() if parts})
        people = f"; {_few(top)} are identities" if top else ""
        layout = f"train: {len(names):,} images (no folder is named as a split{people})"
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
        layout = _in_words(counts, parents, identity, place)
    return [identity[name.rpartition("/")[0]] for name in names], layout


def _partition(name: str) -> str:
    partition = partition_of(name)
    assert partition is not None
    return partition


def _rest(parts: Sequence[str], kept: int, place: int) -> list[str]:
    """The identity: the classes above a split, and the folders below it except a repeated class."""
    return [*parts[:kept], *(name for name in parts[place + 1 :] if name != parts[place])]


def _place(parts: Sequence[str], where: str) -> int | None:
    """Index of the split's folder in the path of an image; ValueError where two contradict."""
    kinds = {i: kind for i, name in enumerate(parts) if (kind := partition_of(name)) is not None}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"{where}: images in {'/'.join(parts)}/ lie in folders of two partitions, "
            f"{' and '.join(parts[i] for i in kinds)}; {REMEDY}"
        )
    return min(kinds, default=None)


def _mixture(counts: Counter[str], where: str) -> ValueError:
    """The error where only some images are in a split's folder, or at different depths."""
    splits: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for folder, count in counts.items():
        parts = folder.split("/") if folder else []
        place = next((i for i, name in enumerate(parts) if partition_of(name)), None)
        if place is None:
            others[f"{parts[0]}/" if parts else "no sub-folder"] += count
        else:
            splits["/".join(parts[: place + 1]) + "/"] += count
    found = f"{_listed(splits)} next to {_listed(others)}" if others else _listed(splits)
    return ValueError(
        f"{where}: it is ambiguous which images belong to the training set, found were images in "
        f"{found}; {REMEDY}"
    )


def _listed(counts: Counter[str], most: int = 5) -> str:
    return _few([f"{name} ({count:,})" for name, count in sorted(counts.items())], most)


def _refuse_hidden_splits(names: Sequence[str], counts: Counter[str], where: str) -> None:
    """Raises ValueError where folders such as bedroom_val/, or file names, may name splits."""
    folders: dict[str, Counter[Parsed]] = defaultdict(Counter)
    like: set[str] = set()
    for folder, count in counts.items():
        above = ""
        for name in folder.split("/") if folder else []:
            parsed = _parsed(name)
            folders[above][parsed] += count
            above += f"{name}/"
            if parsed[0] is not None:
                like.add(above)
        folders[above][_parsed("")] += count
    if _tell_apart(folders.values(), len(names), of_folders=True):
        raise ValueError(
            f"{where}: {_few(sorted(like), 5)} may name splits, and all images would join the "
            f"training set; {REMEDY}"
        )
    files: dict[str, Counter[Parsed]] = defaultdict(Counter)
    for name in names:
        folder, _, file = name.rpartition("/")
        files[folder][_parsed(_without_suffix(file))] += 1
    if _tell_apart(files.values(), len(names), of_folders=False):
        kinds = _kinds(files.values())
        raise ValueError(
            f"{where}: names of files have words for splits "
            f"({', '.join(f'{kind}: {count:,}' for kind, count in sorted(kinds.items()))}), and "
            f"all images would join the training set; {REMEDY}"
        )


def _without_suffix(file: str) -> str:
    stem, _, suffix = file.rpartition(".")
    return stem if stem and partition_of(suffix) is None else file


def _parsed(name: str) -> Parsed:
    """The partition of the first word for a split in a name, or None, and the name's other words.

    A word ends before a capital, and before any other sign: img_test_1, TrainFaces. Numbers,
    single letters and plain words are left out.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()
    joined = _TRAINVAL.sub("train_val", _JOINED.sub(r"\1\2", spaced))
    words = [(word, partition_of(word)) for word in re.findall(r"[^\W\d_]+", joined)]
    others = (word for word, kind in words if kind is None and len(word) > 1)
    found = next((kind for _, kind in words if kind is not None), None)
    return found, tuple(word for word in others if not _PLAIN.fullmatch(word))


def _tell_apart(levels: Collection[Counter[Parsed]], num_images: int, of_folders: bool) -> bool:
    """Whether names distinguish training images from others; levels: images by name, per folder.

    They do where names with words for two partitions are otherwise alike, or are those of most
    images. They also do where a name with such a word is in the same folder as the same name
    without it, or, for folders, where one of two names has no other words. One image is no split.
    """
    partitions: dict[tuple[str, ...], set[str]] = defaultdict(set)
    together = 0
    for found in levels:
        without = {others for kind, others in found if kind is None}
        for (kind, others), count in found.items():
            if kind is None:
                continue
            partitions[others].add(kind)
            nameless = without if not others else without & {()}
            if others in without or (of_folders and nameless):
                together += count
    kinds = _kinds(levels)
    most = len(kinds) > 1 and 2 * kinds.total() > num_images
    return together > 1 or most or any(len(found) > 1 for found in partitions.values())


def _kinds(levels: Iterable[Counter[Parsed]]) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for found in levels:
        for (kind, _), count in found.items():
            if kind is not None:
                kinds[kind] += count
    return kinds


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
    layout = []
    for partition in order:
        own = folders[partition]
        layout.append(f"{partition}: {own.total():,} images ({_few(sorted(own))})")
    return ", ".join(layout)


def _few(names: Sequence[str], most: int = 3) -> str:
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])
