import numpy as np
import pytest

from sidepipe.stages.label.clusters import (
    class_means,
    cohesion,
    kmeans,
    nearest_centroid,
    surrogate_labels,
)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def directions(degrees):
    """Unit vectors in the plane, one an angle."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def loop_cohesion(features, members, centroids):
    found = []
    for k, centroid in enumerate(centroids):
        cosines = []
        for feature, member in zip(features, members, strict=True):
            if member == k:
                dot = sum(float(a) * float(b) for a, b in zip(feature, centroid, strict=True))
                cosines.append(dot / sum(float(b) ** 2 for b in centroid) ** 0.5)
        found.append(sum(cosines) / len(cosines) if cosines else np.nan)
    return found


def test_cohesion_equals_a_double_loop_and_is_nan_of_an_empty_cluster(rng):
    features, centroids = unit(rng.normal(size=(50, 7))), 3 * rng.normal(size=(6, 7))
    members = rng.integers(0, 5, 50)  # none of the last
    ours = cohesion(features, members, centroids.astype(np.float32))
    np.testing.assert_allclose(ours, loop_cohesion(features, members, centroids), atol=1e-6)
    assert np.isnan(ours[5])


def test_cohesion_is_1_of_copies_and_minus_1_of_opposites():
    features = directions([30, 30, 30, 200])
    centroids = 0.2 * directions([30, 20])
    np.testing.assert_allclose(cohesion(features, np.array([0, 0, 0, 1]), centroids), [1, -1])


def test_kmeans_finds_planted_clusters_of_unequal_size(rng):
    truth = np.repeat(np.arange(4), [40, 20, 60, 35])
    features = unit(np.eye(8)[truth] + 0.03 * rng.normal(size=(155, 8)))
    # More clusters than planted ones: one start of k-means may otherwise merge two of them.
    centroids = kmeans(features, 12, num_iterations=25, seed=0)
    members = nearest_centroid(features, centroids)
    for k in range(12):
        assert len(set(truth[members == k])) == 1
        np.testing.assert_allclose(centroids[k], features[members == k].mean(0), atol=1e-6)


def test_centroids_are_the_means_of_all_members_not_of_a_sample(rng):
    # faiss's own limit is 256 points a centroid; here are 1,000.
    truth = np.arange(2000) % 2
    features = unit(np.eye(3)[truth] + 0.1 * rng.normal(size=(2000, 3)))
    centroids = kmeans(features, 2, num_iterations=25, seed=0)
    members = nearest_centroid(features, centroids)
    for k in range(2):
        np.testing.assert_allclose(centroids[k], features[members == k].mean(0), atol=1e-6)


def test_as_many_clusters_as_images_gives_each_its_own_without_a_word(rng, capfd):
    features = unit(rng.normal(size=(20, 4)))
    members = nearest_centroid(features, kmeans(features, 20, num_iterations=5, seed=0))
    assert sorted(members) == list(range(20))
    kmeans(features, 10, num_iterations=5, seed=0)
    assert capfd.readouterr() == ("", "")


def test_kmeans_depends_on_its_seed_alone(rng):
    features = unit(rng.normal(size=(300, 6)))
    first, again, other = (kmeans(features, 12, num_iterations=10, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_nearest_centroid_is_euclidean(rng):
    features, centroids = unit(rng.normal(size=(40, 5))), rng.normal(size=(9, 5))
    centroids *= np.linspace(0.2, 1, 9)[:, None]  # of unequal length: cosine would differ
    centroids = centroids.astype(np.float32)
    expected = [
        min(range(9), key=lambda k: sum((f - c) ** 2 for f, c in zip(x, centroids[k], strict=True)))
        for x in features
    ]
    members = nearest_centroid(features, centroids)
    assert members.tolist() == expected
    assert members.tolist() != (features @ unit(centroids).T).argmax(1).tolist()
    assert members.dtype == np.int64


# Clusters at 0, 20, 90 and 180 degrees; those at 20 and 180 are dropped.
CENTROIDS = directions([0, 20, 90, 180])
KEPT = np.array([True, False, True, False])
IMAGES = directions([2, 18, 24, 85, 100, 170, 190])
MEMBERS = np.array([0, 1, 1, 2, 2, 3, 3])


def test_assign_all_labels_images_of_dropped_clusters_by_the_nearest_kept_centroid():
    labels = surrogate_labels(IMAGES, MEMBERS, CENTROIDS, KEPT, "all", 0)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert labels.dtype == np.int64


def test_assign_all_equals_algorithm_1_line_7(rng):
    features, centroids = unit(rng.normal(size=(60, 5))), unit(rng.normal(size=(12, 5)))
    kept = rng.random(12) < 0.5
    kept_centroids = [c for c, keep in zip(centroids, kept, strict=True) if keep]
    expected = [int(np.argmin([np.linalg.norm(x - c) for c in kept_centroids])) for x in features]
    members = nearest_centroid(features, centroids)
    assert surrogate_labels(features, members, centroids, kept, "all", 0).tolist() == expected
    assert 0 < kept.sum() < 12


def test_assign_members_labels_only_members_of_kept_clusters():
    labels = surrogate_labels(IMAGES, MEMBERS, CENTROIDS, KEPT, "members", 0)
    assert labels.tolist() == [0, -1, -1, 1, 1, -1, -1]
    assert labels.dtype == np.int64


def test_with_every_cluster_kept_both_ways_of_assigning_agree(rng):
    features = unit(rng.normal(size=(80, 5)))
    centroids = kmeans(features, 7, num_iterations=10, seed=0)
    members, kept = nearest_centroid(features, centroids), np.ones(7, bool)
    for assign in ("all", "members"):
        labels = surrogate_labels(features, members, centroids, kept, assign, 0)
        np.testing.assert_array_equal(labels, members)


def test_random_labels_are_as_frequent_as_all_s_and_fall_anywhere(rng):
    features, kept = unit(rng.normal(size=(4000, 3))), np.array([True, True, False, True])
    centroids = directions([0, 20, 90, 180])
    features[:, 2] = 0
    features = unit(features)[:, :2]
    members = nearest_centroid(features, centroids)
    given = {
        seed: surrogate_labels(features, members, centroids, kept, assign, seed)
        for assign, seed in (("all", 9), ("random", 0), ("random", 1))
    }
    share = np.bincount(given[9]) / 4000
    assert len(share) == 3
    assert share.max() - share.min() > 0.1
    for seed in (0, 1):
        np.testing.assert_array_equal(np.bincount(given[seed]), np.bincount(given[9]))
        # Independent of what `all` says: they agree by chance alone.
        agreement = (given[seed] == given[9]).mean()
        assert agreement == pytest.approx((share**2).sum(), abs=0.04)
    assert (given[0] == given[1]).mean() < 0.6
    again = surrogate_labels(features, members, centroids, kept, "random", 0)
    np.testing.assert_array_equal(again, given[0])
    assert again.dtype == np.int64


def test_class_means_are_the_mean_of_every_class_and_0_for_one_without_images(rng):
    features, classes = unit(rng.normal(size=(50, 7))), rng.choice([0, 1, 3, 4], 50)
    means = class_means(features, classes)
    for k in (0, 1, 3, 4):
        np.testing.assert_allclose(means[k], features[classes == k].mean(0), rtol=1e-5)
    assert means[2].tolist() == [0] * 7
