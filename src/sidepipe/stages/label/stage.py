"""Stage `label`: clusters of the synthetic images, as the labels of a surrogate."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int64

from sidepipe.base.images import Images, save_grid
from sidepipe.base.settings import build, check_field_types, require
from sidepipe.engine.kinds import check_features
from sidepipe.engine.stage import Job, NoMaterial, Runtime, Stage
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.generate.stage import Generate
from sidepipe.stages.generate.stage import load as load_synthetic
from sidepipe.stages.original.stage import load as load_original

log = logging.getLogger(__name__)

PICTURE_CLUSTERS, PICTURE_MEMBERS = 8, 12


@dataclass(frozen=True, kw_only=True)
class Label(Stage):
    """Surrogate labels of the synthetic images (SIDE, algorithm 1).

    num_clusters: K. min_cohesion: tau, the smallest mean cosine to the centroid of a kept cluster.
    min_cluster_size: smallest kept cluster, in images; a single image always has cohesion 1.
    assign: "all" labels all images, as in the paper; "members" only members of kept clusters;
    "random" is a control, whose labels are independent of the images; "repeats" uses groups of near
    duplicates as clusters, as a model repeats images that it has memorized, and labels only their
    members; "original" uses real images of the attacker, whose classes are the clusters. features:
    an encoder of unit vectors. near_duplicates: the definition of near duplicates.
    """

    name: ClassVar[str] = "label"
    needed_by: ClassVar[str] = "extract.surrogate=posterior, classifier or lora"
    pictures: ClassVar[str] = "clusters.png"
    features: dict[str, Any]
    num_clusters: int
    num_iterations: int
    min_cohesion: float
    min_cluster_size: int
    assign: Literal["all", "members", "random", "repeats", "original"]
    near_duplicates: NearDuplicates
    seed: int

    def __post_init__(self) -> None:
        require(self.num_clusters >= 2, "label.num_clusters", ">= 2", self.num_clusters)
        require(self.num_iterations >= 1, "label.num_iterations", ">= 1", self.num_iterations)
        require(-1 <= self.min_cohesion <= 1, "label.min_cohesion", "in [-1, 1]", self.min_cohesion)
        least = 2 if self.assign == "repeats" else 1
        rule = f">= {least} where label.assign is {self.assign!r}"
        size = self.min_cluster_size
        require(size >= least, "label.min_cluster_size", rule, size, "one image repeats nothing")
        require(0 <= self.seed < 2**31, "label.seed", "in [0, 2**31)", self.seed)

    def inputs(self) -> tuple[str, ...]:
        return ("original",) if self.assign == "original" else ("generate",)

    @property
    def _has_clusters(self) -> bool:
        """Whether k-means makes the clusters."""
        return self.assign not in ("repeats", "original")

    def unused(self) -> tuple[str, ...]:
        of_clusters = () if self._has_clusters else ("num_clusters", "num_iterations", "seed")
        return of_clusters if self.assign == "repeats" else (*of_clusters, "near_duplicates")

    def check_needed(self, upstream: Mapping[str, Stage]) -> None:
        check_features(upstream, "label.features", self.features, "row_directions")
        if self.assign == "repeats":
            check_features(upstream, "near_duplicates.features", self.near_duplicates.features)
        if self._has_clusters:
            generate = upstream["generate"]
            assert isinstance(generate, Generate)
            require(
                self.num_clusters <= generate.num_images,
                "label.num_clusters",
                f"<= generate.num_images = {generate.num_images}",
                self.num_clusters,
                "lower it, or generate more images",
            )

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        from sidepipe.features.copydet import CopyDet

        if self.assign == "repeats":
            self.near_duplicates.encoder.check()
        encoder = build(self.features)
        require(
            encoder.metric == "cosine",
            "label.features",
            "an encoder of unit vectors, as cohesion is a cosine",
            encoder.transform,
            "features@label.features=pixels",
        )
        # The descriptor of the stage descriptor is trained on held-out images, which an attacker
        # cannot identify.
        require(
            not isinstance(encoder, CopyDet) or encoder.path is not None,
            "label.features.path",
            "a descriptor's folder",
            None,
            "train one on images that an attacker has, or choose another encoder",
        )
        encoder.check()

    def run(self, job: Job) -> dict[str, Any]:
        if self.assign != "original":
            return self.label(load_synthetic(job.inputs["generate"]), job.folder, job.runtime)
        images, classes = load_original(job.inputs["original"])
        np.save(job.folder / "images.npy", images)
        return self.label(images, job.folder, job.runtime, classes)

    def label(
        self,
        images: Images,
        folder: Path,
        runtime: Runtime,
        classes: Int64[np.ndarray, "n"] | None = None,
    ) -> dict[str, Any]:
        """Writes the labels of the images and their clusters; returns a summary.

        classes: the class of each image, from 0 on, where known.
        """
        from sidepipe.stages.label.clusters import cohesion, surrogate_labels

        encoder, device = build(self.features), runtime.torch_device()
        features = encoder.encode(images, device=device)
        if self.assign == "repeats":
            classes = self._repeats(images, device)
        centroids, members = self._clusters(features, classes)
        cohesions = cohesion(features, members, centroids)
        sizes = np.bincount(members, minlength=len(centroids))
        kept = (cohesions >= self.min_cohesion) & (sizes >= self.min_cluster_size)
        quantiles = np.nanquantile(cohesions, [0, 0.25, 0.5, 0.75, 1]).round(3).tolist()
        self._require_some(kept, quantiles, sizes)
        labels = surrogate_labels(features, members, centroids, kept, self.assign, self.seed)
        np.save(folder / "labels.npy", labels)
        np.save(folder / "centroids.npy", centroids)
        _write_clusters(folder / "clusters.csv", sizes, cohesions, kept, labels)
        _picture(folder / "clusters.png", images, features, members, centroids, cohesions, kept)
        log.info("%d of %d clusters kept; cohesion quantiles %s", kept.sum(), len(kept), quantiles)
        return {
            "num_labels": int(kept.sum()),
            "num_clusters": len(centroids),
            "num_labeled": int((labels >= 0).sum()),
            "cohesion_quantiles": quantiles,
            "transform": encoder.transform,
        }

    def _clusters(
        self, features: np.ndarray, classes: Int64[np.ndarray, "n"] | None
    ) -> tuple[np.ndarray, Int64[np.ndarray, "n"]]:
        """The center of each cluster, and the cluster of each image: its class, where known."""
        from sidepipe.stages.label.clusters import class_means, kmeans, nearest_centroid

        if classes is not None:
            return class_means(features, classes), classes
        centroids = kmeans(features, self.num_clusters, self.num_iterations, self.seed)
        return centroids, nearest_centroid(features, centroids)

    def _repeats(self, images: Images, device: str) -> Int64[np.ndarray, "n"]:
        """The group of near duplicates of each image, from 0 on."""
        from sidepipe.features.duplicates import near_duplicate_groups

        encoder, threshold = self.near_duplicates.encoder, self.near_duplicates.threshold
        features = encoder.encode(images, device=device)
        centers = near_duplicate_groups(features, encoder.metric, threshold)
        return np.unique(centers, return_inverse=True)[1].astype(np.int64)

    def _require_some(self, kept: np.ndarray, quantiles: list[float], sizes: np.ndarray) -> None:
        if kept.sum() >= 2:
            return
        if self.assign == "repeats":
            raise NoMaterial(
                f"nothing repeats: {int(kept.sum())} groups of near duplicates have at least "
                f"{self.min_cluster_size} of the {int(sizes.sum())} images, and a cohesion of "
                f"{self.min_cohesion} or more, and at least 2 groups are needed; remedy: raise "
                "generate.num_images, or change label.min_cluster_size or "
                "near_duplicates.threshold"
            )
        raise NoMaterial(
            f"label.min_cohesion = {self.min_cohesion} and label.min_cluster_size = "
            f"{self.min_cluster_size} keep {int(kept.sum())} clusters, and at least 2 are needed; "
            f"cohesion quantiles (0, 25, 50, 75, 100 %) are {quantiles}, cluster sizes "
            f"{np.quantile(sizes, [0, 0.5, 1]).tolist()} (smallest, median, largest); remedy: "
            "lower either, or change label.num_clusters"
        )


def _write_clusters(
    path: Path, sizes: np.ndarray, cohesions: np.ndarray, kept: np.ndarray, labels: np.ndarray
) -> None:
    label_of = np.where(kept, np.cumsum(kept) - 1, -1)
    labeled = np.bincount(labels[labels >= 0], minlength=int(kept.sum()))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cluster", "size", "cohesion", "kept", "label", "labeled"])
        for k, label in enumerate(label_of):
            count = labeled[label] if label >= 0 else 0
            writer.writerow([k, sizes[k], f"{cohesions[k]:.6f}", int(kept[k]), label, count])


def _picture(
    path: Path,
    images: np.ndarray,
    features: np.ndarray,
    members: np.ndarray,
    centroids: np.ndarray,
    cohesions: np.ndarray,
    kept: np.ndarray,
) -> None:
    """Writes a picture with one row per cluster: the most and the least cohesive kept clusters.

    Clusters are in descending order of cohesion, members in ascending distance to the centroid.
    """
    order = np.flatnonzero(kept)[np.argsort(-cohesions[kept], kind="stable")]
    half = PICTURE_CLUSTERS // 2
    chosen = np.concatenate([order[:half], order[half:][-half:]])
    rows = np.full((len(chosen), PICTURE_MEMBERS, *images.shape[1:]), 255, images.dtype)  # white
    for row, k in zip(rows, chosen, strict=True):
        inside = np.flatnonzero(members == k)
        distance = np.linalg.norm(features[inside] - centroids[k], axis=1)
        nearest = inside[np.argsort(distance, kind="stable")[:PICTURE_MEMBERS]]
        row[: len(nearest)] = images[nearest]
    save_grid(path, rows.reshape(-1, *images.shape[1:]), columns=PICTURE_MEMBERS)


def load(folder: Path) -> np.ndarray:
    """Labels of the images, int64, in [0, K'), -1 for none."""
    return np.load(folder / "labels.npy")


def load_images(folder: Path, generate: Path) -> Images:
    """The labeled images: the synthetic ones, or those of the attacker."""
    path = folder / "images.npy"
    return np.load(path) if path.exists() else load_synthetic(generate)


def load_stage(folder: Path) -> Label:
    """The stage that made the artifact, to label further images in the same way."""
    settings = json.loads((folder / "settings.json").read_text())["settings"]
    settings = {name: value for name, value in settings.items() if name != "_target_"}
    return Label(**check_field_types("label", Label, settings))


def load_cohesion(folder: Path) -> np.ndarray:
    """Cohesion of each label's cluster, float64 (K',)."""
    return np.array([float(row["cohesion"]) for row in _load_kept(folder)])


def load_sizes(folder: Path) -> np.ndarray:
    """Number of members of each label's cluster, int64 (K',)."""
    return np.array([int(row["size"]) for row in _load_kept(folder)])


def _load_kept(folder: Path) -> list[dict[str, str]]:
    with (folder / "clusters.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["kept"] == "1"]
