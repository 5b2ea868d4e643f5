"""Clusters of features, their cohesion, and the surrogate labels they give (SIDE, algorithm 1)."""

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sidepipe.features.exact import import_faiss


def kmeans(
    features: Float32[np.ndarray, "n d"], num_clusters: int, num_iterations: int, seed: int
) -> Float32[np.ndarray, "k d"]:
    """Centroids of faiss' k-means over all of `features`."""
    faiss = import_faiss()
    gpu = hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0
    clustering = faiss.Kmeans(
        features.shape[1],
        num_clusters,
        niter=num_iterations,
        seed=seed,
        gpu=gpu,
        # faiss would cluster a sample of 256 a centroid, and warn below 39.
        min_points_per_centroid=1,
        max_points_per_centroid=len(features),
    )
    clustering.train(np.ascontiguousarray(features, np.float32))
    return np.asarray(clustering.centroids, np.float32)


def nearest_centroid(
    features: Float32[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"]
) -> Int64[np.ndarray, "n"]:
    """Index of each row's nearest centroid, Euclidean as k-means has it."""
    faiss = import_faiss()
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    return index.search(np.ascontiguousarray(features), 1)[1][:, 0].astype(np.int64)


def class_means(
    features: Float32[np.ndarray, "n d"], classes: Int64[np.ndarray, "n"]
) -> Float32[np.ndarray, "k d"]:
    """The mean of each class's features: their centroid, where classes take k-means' place."""
    sums = np.zeros((int(classes.max()) + 1, features.shape[1]))
    np.add.at(sums, classes, features)
    return (sums / np.maximum(np.bincount(classes), 1)[:, None]).astype(np.float32)


def cohesion(
    features: Float32[np.ndarray, "n d"],
    members: Int64[np.ndarray, "n"],
    centroids: Float32[np.ndarray, "k d"],
) -> Float32[np.ndarray, "k"]:
    """Mean cosine between each cluster's members and its centroid, in [-1, 1]; nan without members.

    features: unit vectors. members: each row's cluster.
    """
    norms = np.linalg.norm(centroids, axis=1, keepdims=True)
    directions = centroids / np.maximum(norms, 1e-12)
    cosines = np.einsum("nd,nd->n", features, directions[members], dtype=np.float64)
    sums = np.bincount(members, cosines, minlength=len(centroids))
    counts = np.bincount(members, minlength=len(centroids))
    with np.errstate(invalid="ignore"):
        return (sums / np.where(counts > 0, counts, np.nan)).astype(np.float32)


def surrogate_labels(
    features: Float32[np.ndarray, "n d"],
    members: Int64[np.ndarray, "n"],
    centroids: Float32[np.ndarray, "k d"],
    kept: Bool[np.ndarray, "k"],
    assign: str,
    seed: int,
) -> Int64[np.ndarray, "n"]:
    """Each image's label in [0, K'), counting kept clusters in order; -1 for no label.

    assign: "all" labels every image with its nearest KEPT centroid (algorithm 1, line 7);
    "members", "repeats" and "original" label only the members of kept clusters; "random" deals the
    labels that "all" gives among the images by `seed`, so that they are as frequent as there and
    say nothing.
    """
    if assign in ("members", "repeats", "original"):
        label_of = np.where(kept, np.cumsum(kept) - 1, -1)
        return label_of[members].astype(np.int64)
    labels = nearest_centroid(features, centroids[kept])
    return np.random.default_rng(seed).permutation(labels) if assign == "random" else labels
