"""Stage `reference`: training images and unseen ones, encoded once for all attacks.

`evaluate` compares an attack's images with them, by its own encoder. Values that do not depend on
the attack are measured here: the distance of real unseen images to training images, and of each
image to the others of its set.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Int64

from sidepipe.base.files import write_json
from sidepipe.base.settings import build
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.features.choice import descriptor_input
from sidepipe.memorization.thresholds import (
    allowed,
    usable_rates,
    warn_of_rates,
)
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_ids, load_partitions
from sidepipe.stages.descriptor.stage import Descriptor, load_encoder, load_rows
from sidepipe.stages.dpm.stage import DPM, load_subset
from sidepipe.stages.generate.stage import load_denoiser

if TYPE_CHECKING:
    from sidepipe.features.encoders import Encoder
    from sidepipe.features.search import Metric
    from sidepipe.memorization.real import Encoded, RealImages

log = logging.getLogger(__name__)

NO_HELDOUT = (
    "evaluate needs held-out images, and the model is trained on all of data; remedy: lower "
    "dpm.num_train_images, or bring images outside the training set and set "
    "'dpm.train_partitions=[train]', or evaluate.truth=none for a blind ranking alone"
)
NAMED = 5  # folders in a message
# The files of an artifact, by content.
ROWS, FEATURES, OTHER_GAMMA = "{}_rows.npy", "{}.npy", "other_gamma_{}.npy"
REAL_GAMMA, NEAR_DUPLICATES, FLOOR = "real_gamma.npy", "near_duplicates.json", "floor.npy"
AUTOENCODERS = ("vae", "vqvae")  # parts of the model that make it one of latents


@dataclass(frozen=True, kw_only=True)
class Reference(Stage):
    """Real images encoded for `evaluate`.

    features, false_positive_rates: those of evaluate. The rates change no file; where no image
    could be a hit, they are an error before an attack is sampled.
    """

    name: ClassVar[str] = "reference"
    version: ClassVar[int] = 2  # 2: near_duplicates.json has distances
    needed_by: ClassVar[str] = "evaluate.truth=train"
    takes: ClassVar[Mapping[str, str]] = {
        "features": "evaluate.features",
        "false_positive_rates": "evaluate.false_positive_rates",
    }
    features: dict[str, Any]
    false_positive_rates: list

    @cached_property
    def _encoder(self) -> Encoder:
        return build(self.features)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm", *descriptor_input(self.features))

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"features": settings["features"]}

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm, descriptor = upstream["dpm"], upstream.get("descriptor")
        assert isinstance(dpm, DPM)
        unseen = dpm.split(data, runtime)[1]
        if len(unseen) == 0:
            raise ValueError(f"{NO_HELDOUT}; {_found(data)}")
        if isinstance(descriptor, Descriptor):
            unseen = unseen[~np.isin(unseen, descriptor.rows(unseen))]
        used = usable_rates(self.false_positive_rates, len(unseen))
        warn_of_rates(self.false_positive_rates, used, len(unseen))
        dpm.require_few_copies(data, unseen, self.false_positive_rates, runtime)

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.memorization.real import near_duplicates, real_images
        from sidepipe.stages.reference.encoding import encode_into

        rows = self._rows(job.inputs)
        encoder = load_encoder(job.inputs, self._encoder)
        data = load_images(job.inputs["data"])
        for name, some in rows.items():
            np.save(job.folder / ROWS.format(name), some)
            encode_into(job.folder / FEATURES.format(name), encoder, data, some, job.runtime)
        real = real_images(*_encoded(job.folder), encoder.metric)
        self.require_thresholds(real, self.false_positive_rates, encoder.metric, job.inputs["data"])
        near = near_duplicates(real, encoder.metric)
        self._warn_of(near, real)
        write_json(job.folder / NEAR_DUPLICATES, near)
        np.save(job.folder / REAL_GAMMA, real.real_gamma)
        for name, gamma in real.other_gamma.items():
            np.save(job.folder / OTHER_GAMMA.format(name), gamma)
        self._save_floor(job, encoder, data, real.train)
        return {
            "num_train": len(real.train.rows),
            "num_unseen": len(real.unseen.rows),
            "transform": encoder.transform,
            "dimensions": real.train.features.shape[1],
            "near_duplicates": near,
        }

    def _rows(self, inputs: Mapping[str, Path]) -> dict[str, Int64[np.ndarray, "_"]]:
        """Training images, and unseen ones that no stage trained on; the best control first."""
        train, unseen = load_subset(inputs["dpm"])
        if "descriptor" in inputs:
            unseen = unseen[~np.isin(unseen, load_rows(inputs["descriptor"]))]
        if len(unseen) == 0:
            raise ValueError(NO_HELDOUT)
        usable_rates(self.false_positive_rates, len(unseen))
        return {"train": train, "unseen": unseen}

    def _save_floor(self, job: Job, encoder: Encoder, data: np.ndarray, train: Encoded) -> None:
        """For a latent model, gamma of training images and their own reconstructions."""
        model = job.inputs["dpm"] / "model"
        if not any((model / name).is_dir() for name in AUTOENCODERS):
            return
        import torch

        from sidepipe.memorization.floor import FLOOR_IMAGES, floor_gamma

        device = job.runtime.torch_device()
        denoiser = load_denoiser(job.inputs["dpm"], "32-true", by_class=True).to(device)
        images = torch.from_numpy(data[train.rows[:FLOOR_IMAGES]]).to(device)
        again = [denoiser.decode(denoiser.encode(part)) for part in images.split(64)]
        features = encoder.encode(torch.cat(again).cpu().numpy(), device=device)
        gamma = floor_gamma(train.features[: len(images)], features, encoder.metric)
        np.save(job.folder / FLOOR, gamma)

    def _warn_of(self, near: Mapping[str, float], real: RealImages) -> None:
        rate = usable_rates(self.false_positive_rates, len(real.unseen.rows))[0]
        if near["count"] > allowed(len(real.unseen.rows), rate):
            log.warning(
                "%d of %d unseen images are near duplicates of training images to this encoder: "
                "they set the threshold of a hit, and copies that are less close are missed",
                *(near["count"], len(real.unseen.rows)),
            )

    @staticmethod
    def require_thresholds(
        real: RealImages, rates: Sequence[float], metric: Metric, data: Path
    ) -> list[float]:
        """`checked_rates`, whose error names images of `data`."""
        from sidepipe.memorization.real import checked_rates

        return checked_rates(real, rates, metric, lambda row: load_ids(data)[row])


def _found(data: Path) -> str:
    """The partitions and the folders of the data, in words, and which names make a partition."""
    partitions = Counter(load_partitions(data).tolist())
    folders = Counter(f"{i.split('/')[0]}/" for i in load_ids(data).tolist() if "/" in i)
    found = f"the data's partitions are {_counts(partitions)}"
    found += f", in the folders {_counts(folders)}" if folders else ""
    return f"{found}; folders named train/ and heldout/ (or val/, test/) make partitions"


def _counts(counts: Counter[str]) -> str:
    named = [f"{name} ({count:,})" for name, count in counts.most_common(NAMED)]
    return ", ".join(named) + (f" and {len(counts) - NAMED} more" if len(counts) > NAMED else "")


def _encoded(folder: Path) -> tuple[Encoded, Encoded]:
    """Training and unseen images, their features memory-mapped."""
    from sidepipe.memorization.real import Encoded

    train, unseen = (
        Encoded(
            np.load(folder / ROWS.format(name)),
            np.load(folder / FEATURES.format(name), mmap_mode="r"),
        )
        for name in ("train", "unseen")
    )
    return train, unseen


def load(folder: Path) -> RealImages:
    """The real images, their features memory-mapped."""
    from sidepipe.memorization.real import RealImages

    other = {
        name: np.load(path)
        for name in ("train", "heldout", "train_equal")
        if (path := folder / OTHER_GAMMA.format(name)).exists()
    }
    return RealImages(*_encoded(folder), np.load(folder / REAL_GAMMA), other)


def load_limits(folder: Path, threshold: float, metric: Metric) -> dict[str, Any]:
    """Limits of what can be found at a threshold: `near_duplicates`, `floor` of a latent model."""
    from sidepipe.memorization.floor import floor

    found: dict[str, Any] = {"near_duplicates": json.loads((folder / NEAR_DUPLICATES).read_text())}
    if (folder / FLOOR).exists():
        found["floor"] = floor(np.load(folder / FLOOR), threshold, metric)
    return found
