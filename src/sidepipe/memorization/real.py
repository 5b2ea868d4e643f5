"""Encoded real images, by their rows in the data, to compare generated images with.

gamma is that of `sidepipe.features.search` for two feature vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sidepipe.base.images import Images
from sidepipe.features.duplicates import nearest_other
from sidepipe.features.encoders import Device, Encoder
from sidepipe.features.image_duplicates import RATIO, typical
from sidepipe.features.pairs import blocks, distance
from sidepipe.features.search import Metric, nearest
from sidepipe.memorization.thresholds import threshold_at_false_positive_rate, usable_rates

Groups = Int64[np.ndarray, "m"] | None
MAX_CONTROLS = 100  # held-out sets: more would cost a search each, and hardly move their mean
OTHER_KIND = 1.5  # times as far: images of one kind reach 1.1, noise and photographs 1.5 to 3
ENCODE_IMAGES = 1024  # read at once: the data may be larger than memory


@dataclass(frozen=True)
class Encoded:
    """Places in the data's array, and the features of the images there.

    groups: the number of each image's group, such as a patient, where images of one group are not
    independent; those of a group follow each other. None where each image is a group of its own.
    """

    rows: Int64[np.ndarray, "m"]
    features: Float32[np.ndarray, "m d"]
    groups: Groups = None

    @property
    def num_units(self) -> int:
        """Number of groups, or of images without groups."""
        return len(self.rows if self.groups is None else np.unique(self.groups))

    def part(self, some: slice | Bool[np.ndarray, "m"]) -> "Encoded":
        """Some of them."""
        groups = None if self.groups is None else self.groups[some]
        return Encoded(self.rows[some], self.features[some], groups)

    def without(self, rows: Int64[np.ndarray, "e"]) -> "Encoded":
        """Those that are none of `rows`."""
        return self.part(~np.isin(self.rows, rows))


@dataclass(frozen=True)
class RealImages:
    """Training images, images that nothing was trained on, and their distances to each other.

    unseen: the best control first. real_gamma: of every unseen image to its nearest training image.
    other_gamma: of `compared_sets(train, unseen)`, by name, each image's to the nearest other of
    its set.
    """

    train: Encoded
    unseen: Encoded
    real_gamma: Float32[np.ndarray, "u"]
    other_gamma: dict[str, Float32[np.ndarray, "_"]]

    def other_gamma_of(
        self, name: str, images: Encoded, metric: Metric
    ) -> Float32[np.ndarray, "m"]:
        """other_gamma of a set; measured now where an attack has changed which images are in it."""
        known = compared_sets(self.train, self.unseen).get(name)
        if known is not None and np.array_equal(known.rows, images.rows):
            return self.other_gamma[name]
        return nearest_other(images.features, metric)


def compared_sets(
    train: Encoded, unseen: Encoded, attacker_rows: Int64[np.ndarray, "a"] | None = None
) -> dict[str, Encoded]:
    """`train`, `heldout` and, with fewer unseen images than training images, `train_equal`.

    heldout: equally many images that the model was not trained on. train_equal: as many training
    images as there are held out, for a larger set is nearer to anything. attacker_rows: unseen
    images that the attack learned from, so not a control.
    """
    control = unseen if attacker_rows is None else unseen.without(attacker_rows)
    first = control_sets(len(train.rows), len(control.rows), control.groups)[0]
    sets = {"train": train, "heldout": control.part(first)}
    if len(control.rows) < len(train.rows):
        sets["train_equal"] = train.part(slice(len(control.rows)))
    return sets


def control_sets(size: int, num_unseen: int, groups: Groups = None) -> list[slice]:
    """Disjoint held-out sets of `size` images; one smaller set of fewer images.

    groups: of the unseen images; sets are then of whole groups and may be a little larger.
    """
    if groups is None:
        ends = np.arange(1, num_unseen + 1)
    else:
        ends = np.append(np.flatnonzero(np.diff(groups)) + 1, num_unseen)
    found, start = [], 0
    while len(found) < MAX_CONTROLS and num_unseen - start >= size:
        end = int(ends[np.searchsorted(ends, start + size)])
        found.append(slice(start, end))
        start = end
    return found or [slice(0, num_unseen)]


def closest_of_groups(
    gamma: Float32[np.ndarray, "m"], groups: Groups, metric: Metric
) -> Float32[np.ndarray, "_"]:
    """gamma of the closest image of each group; gamma itself without groups."""
    if groups is None:
        return gamma
    starts = np.append(0, np.flatnonzero(np.diff(groups)) + 1)
    return (np.maximum if metric == "cosine" else np.minimum).reduceat(gamma, starts)


def real_images(
    train: Encoded, unseen: Encoded, metric: Metric, *, counts_only: bool = False
) -> RealImages:
    """The images with all searches among them; counts_only: without those within a set."""
    real_gamma = nearest(unseen.features, train.features, metric)[0][:, 0]
    sets = {} if counts_only else compared_sets(train, unseen)
    other = {name: nearest_other(images.features, metric) for name, images in sets.items()}
    return RealImages(train, unseen, real_gamma, other)


def closest_pair(real: RealImages, metric: Metric) -> tuple[int, int]:
    """Rows of the unseen image that is closest to a training image, and of that one."""
    gamma = real.real_gamma
    unseen = int(gamma.argmax() if metric == "cosine" else gamma.argmin())
    index = nearest(real.unseen.features[[unseen]], real.train.features, metric)[1]
    return int(real.unseen.rows[unseen]), int(real.train.rows[index[0, 0]])


def checked_rates(
    real: RealImages, rates: Sequence[float], metric: Metric, named: Callable[[int], str]
) -> list[float]:
    """The rates of `usable_rates`; ValueError where one has a threshold that no copy reaches.

    named: the name of the image in a row, for the closest pair in the error.
    """
    gamma = closest_of_groups(real.real_gamma, real.unseen.groups, metric)
    used = usable_rates(rates, real.unseen.num_units)
    for rate in used:
        try:
            threshold_at_false_positive_rate(gamma, rate, metric)
        except ValueError as error:
            unseen, train = map(named, closest_pair(real, metric))
            raise ValueError(f"{error}; the closest pair is {unseen} and {train}") from None
    return used


def near_duplicates(real: RealImages, metric: Metric) -> dict[str, float]:
    """Unseen images that are near duplicates of training images to the encoder.

    count: those that are at least three times closer to a training image than `typical_distance`,
    the distance that an image typically has to the nearest other one. train_distance: the same of
    training images alone, one per group. unseen_distance: the median distance from an unseen image
    to its nearest training image.
    """
    parts = (real.train.features, real.unseen.features)
    start = len(real.train.rows)

    def vectors(places: Int64[np.ndarray, "p"]) -> Float32[np.ndarray, "p d"]:
        some = parts[0][places[places < start]], parts[1][places[places >= start] - start]
        return np.concatenate(some)

    usual = typical(vectors, start + len(real.unseen.rows), metric)
    closest = distance(real.real_gamma, metric)
    groups = real.train.groups
    own = np.arange(start) if groups is None else np.unique(groups, return_index=True)[1]
    return {
        "count": int((closest <= usual / RATIO).sum()),
        "typical_distance": usual,
        "train_distance": typical(lambda places: parts[0][own[places]], len(own), metric),
        "unseen_distance": float(np.median(closest)),
    }


def other_kind(near: Mapping[str, float], item: str = "image") -> str:
    """A sentence where unseen images seem to be of another kind than training images; or "".

    near: `near_duplicates`. Results of earlier versions have no such distances, and no sentence.
    """
    train, unseen = near.get("train_distance", 0.0), near.get("unseen_distance", 0.0)
    if train == 0 or unseen < OTHER_KIND * train:
        return ""
    return (
        f"held-out {item}s are {unseen / train:.1f} times as far from training {item}s as training "
        f"{item}s are from each other: are they of different kinds, or do several training {item}s "
        f"show one subject? If held-out {item}s are of another kind, the threshold of a hit is too "
        "loose, and hits are no evidence of memorization"
    )


def encode_rows(
    encoder: Encoder,
    data: Images,
    rows: Int64[np.ndarray, "m"],
    device: Device,
) -> Float32[np.ndarray, "m d"]:
    """The features of the images in `rows`, of which few are in memory at a time."""
    parts = [rows[some] for some in blocks(len(rows), ENCODE_IMAGES)]
    return np.concatenate([encoder.encode(data[part], device=device) for part in parts])
