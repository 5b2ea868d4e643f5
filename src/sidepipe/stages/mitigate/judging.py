"""Comparison of generated images with training images and with their captions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from sidepipe.features.encoders import Encoder
from sidepipe.features.pairs import exact_losses, gamma_of
from sidepipe.features.search import closer, nearest
from sidepipe.memorization.quality import KID_MIN_IMAGES, kid
from sidepipe.memorization.rates import cluster_mean, mean, rate
from sidepipe.memorization.real import encode_rows
from sidepipe.stages.detect.groups import GROUPS
from sidepipe.stages.mitigate.alignment import CLIPScore, attribute_readers, reading, shares_right

# Columns of prompts.csv: still memorized, recovered by the adversary.
MEASURED = ("still", "gamma", "recovered", "alignment")

Generated = UInt8[np.ndarray, "p n h w c"]


@dataclass(frozen=True)
class Known:
    """The data: all images, their captions (None where they have none), and the split in rows."""

    data: UInt8[np.ndarray, "m h w c"]
    captions: pd.DataFrame | None
    train: Int64[np.ndarray, "t"]
    unseen: Int64[np.ndarray, "u"]

    def attributes(self, rows: Iterable[int]) -> list[dict[str, str]]:
        """The attributes in the captions of these rows; {} for a row without."""
        if self.captions is None:
            return [{} for _ in rows]
        own = self.captions["attributes"].tolist()
        return [own[row] if row >= 0 else {} for row in rows]


@dataclass(frozen=True)
class Copies:
    """Finds copies as `detect` does: images closer to a training image than hardly any real one.

    data: all images. train: the features of the training images among them. share: a prompt is
    memorized if at least this share of its images are copies.
    """

    data: UInt8[np.ndarray, "m h w c"]
    train: Float32[np.ndarray, "t d"]
    encoder: Encoder
    threshold: float
    share: float
    device: str

    def of_any(self, images: Generated) -> Bool[np.ndarray, "p n"]:
        """Whether each image is at least as close to any training image as the threshold."""
        return self.close(self.gamma(images))

    def gamma(self, images: Generated) -> Float32[np.ndarray, "p n"]:
        """gamma of each image to the training image that is closest to it."""
        found, _ = nearest(self._encoded(images), self.train, self.encoder.metric)
        return found[:, 0].reshape(images.shape[:2])

    def of(self, images: Generated, rows: Int64[np.ndarray, "p"]) -> Bool[np.ndarray, "p n"]:
        """Whether each image is as close to the image in its prompt's row of the data."""
        i = np.arange(images.shape[0] * images.shape[1])
        near = self._near(self._encoded(images), rows, i, i // images.shape[1])
        return near.reshape(images.shape[:2])

    def share_of_each(
        self, images: UInt8[np.ndarray, "n h w c"], rows: Int64[np.ndarray, "p"]
    ) -> list[float]:
        """The share of the images that are copies of the image in each of the rows."""
        made, i = self.encoder.encode(images, device=self.device), np.arange(len(images))
        near = (self._near(made, rows[[k]], i, np.zeros_like(i)) for k in range(len(rows)))
        return [float(one.mean()) for one in near]

    def _near(
        self,
        made: Float32[np.ndarray, "n d"],
        rows: Int64[np.ndarray, "p"],
        i: Int64[np.ndarray, "m"],
        j: Int64[np.ndarray, "m"],
    ) -> Bool[np.ndarray, "m"]:
        """Whether the vectors i are close to the images in the rows j of `rows`."""
        wanted, metric = (
            self.encoder.encode(self.data[rows], device=self.device),
            self.encoder.metric,
        )
        return self.close(gamma_of(exact_losses(made, wanted, i, j, metric), metric))

    def rates(self, copied: Bool[np.ndarray, "p n"]) -> dict[str, Any]:
        """The share of memorized prompts, and that of copies among a prompt's images.

        Intervals are over prompts, since the images of one prompt are not independent.
        """
        return {"prompts": rate(self.memorized(copied)), "images": mean(copied.mean(axis=1))}

    def memorized(self, copied: Bool[np.ndarray, "p n"]) -> Bool[np.ndarray, "p"]:
        """Whether each prompt has enough copies among its images."""
        # Rounded: 0.7 * 10 copies are 7.
        return copied.sum(axis=1) >= np.ceil(round(self.share * copied.shape[1], 9))

    def _encoded(self, images: Generated) -> Float32[np.ndarray, "_ d"]:
        return self.encoder.encode(images.reshape(-1, *images.shape[2:]), device=self.device)

    def close(self, gamma: Float[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
        """Whether each gamma is that of a copy."""
        return closer(gamma, self.threshold, self.encoder.metric)


def copied(
    table: pd.DataFrame, images: Generated, copies: Copies
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table with each prompt's number of copies and mean gamma, and the rates of copies.

    The rates are per part and, for memorized prompts, per number of repeats in training.
    """
    gamma = copies.gamma(images)
    found = copies.close(gamma)
    group, repeats = table["group"].to_numpy(), table["repeats"].to_numpy()
    ours = group == "memorized"
    rows = [
        {"repeats": int(r), **copies.rates(found[ours & (repeats == r)])}
        for r in np.unique(repeats[ours])
    ]
    rates = {name: copies.rates(found[some]) for name, some in parts_of(table).items()}
    table = table.assign(
        copies=found.sum(axis=1), gamma=gamma.mean(axis=1), still=copies.memorized(found)
    )
    return table, {**rates, "by_repeats": rows}


def by_image(table: pd.DataFrame) -> dict[str, Any]:
    """Means over images of each group, as few images have most of the prompts (Hong et al., 2024).

    Prompts that replay one training image are one cluster of the bootstrap; others are their own.
    """
    found = {}
    for group in GROUPS:
        some = table.loc[table["group"] == group]
        image = some["nearest" if group == "memorized" else "number"].to_numpy(np.int64)
        names = [name for name in MEASURED if name in some]
        values = {name: some[name].to_numpy(np.float64) for name in names}
        found[group] = {name: cluster_mean(values[name], image) for name in names}
    return found


def kid_of(images: Generated, known: Known, copies: Copies, seed: int) -> float | None:
    """KID of generated and held-out images by the encoder of copies; None for too few."""
    made = images.reshape(-1, *images.shape[2:])
    if min(len(made), len(known.unseen)) < KID_MIN_IMAGES:
        return None
    real = encode_rows(copies.encoder, known.data, known.unseen, copies.device)
    return kid(copies.encoder.encode(made, device=copies.device), real, seed)[0]


def parts_of(table: pd.DataFrame) -> dict[str, Bool[np.ndarray, "p"]]:
    """The rows of each group; and memorized prompts with which the method was made, and others.

    The last two are there for methods that are made with some of the prompts.
    """
    rows = {name: (table["group"] == name).to_numpy(bool) for name in GROUPS}
    used = table["used"].to_numpy(bool)
    ours = rows["memorized"]
    if not used.any() or used[ours].all():
        return rows
    return {**rows, "memorized_used": ours & used, "memorized_heldout": ours & ~used}


@dataclass(frozen=True)
class Alignment:
    """Alignment of images with their captions, at least 0; higher is better.

    clip: a CLIP model's folder or hub id, or None for the share of the caption's attributes that
    `readers` find in the image. ceiling: that share for real images outside their training set.
    """

    clip: str | None
    device: str
    readers: dict[str, Any] = field(default_factory=dict)
    ceiling: dict[str, float] = field(default_factory=dict)

    @property
    def measure(self) -> str | None:
        """The measure; None without a CLIP model and without attributes."""
        return "clip" if self.clip is not None else "attributes" if self.readers else None

    def of(
        self, images: Generated, captions: Sequence[str], attributes: Sequence[dict[str, str]]
    ) -> Float[np.ndarray, "p"]:
        """The mean over each prompt's images; nan for a caption without attributes."""
        count, each = images.shape[:2]
        flat = images.reshape(count * each, *images.shape[2:])
        if self.clip is not None:
            said = [caption for caption in captions for _ in range(each)]
            found = CLIPScore(self.clip).of(flat, said, self.device)
        elif self.readers:
            has = [own for own in attributes for _ in range(each)]
            found = shares_right(self.readers, flat, has)
        else:
            return np.full(count, np.nan)
        return found.reshape(count, each).mean(axis=1)


def read_from(known: Known, left_out: Sequence[int], device: str, seed: int) -> Alignment:
    """Alignment by attributes: classifiers trained on training images, and their ceiling.

    left_out: rows that prompts replay; trained on these, classifiers would recognize their copies.
    """
    train = np.setdiff1d(known.train, left_out)
    readers = attribute_readers(known.data[train], known.attributes(train), seed)
    if not readers or len(known.unseen) == 0:
        return Alignment(None, device, readers)
    right = reading(readers, known.data[known.unseen], known.attributes(known.unseen))
    ceiling = {name: float(np.nanmean(values)) for name, values in right.items()}
    return Alignment(None, device, readers, ceiling)
