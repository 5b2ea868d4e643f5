import numpy as np
import pytest

from sidepipe.features.encoders import PixelsL2
from sidepipe.stages.tune.score import best, near_duplicate_count, near_duplicate_rate


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_rate_counts_images_that_have_another_one_near(metric):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 16))
    x[1:4] = x[0] + rng.normal(0, 0.01, (3, 16))  # four of one
    x[10] = x[9]  # two of another
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    threshold = 0.99 if metric == "cosine" else 0.1
    assert near_duplicate_rate(x.astype(np.float32), metric, threshold) == 6 / 20
    assert near_duplicate_count(x.astype(np.float32), metric, threshold) == 2


def test_images_that_are_all_different_score_nothing_and_all_alike_everything():
    different = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1)).astype(np.uint8)
    features = PixelsL2().encode(different, device="cpu")
    assert near_duplicate_rate(features, "l2", 0.05) == 0
    assert near_duplicate_rate(np.repeat(features[:1], 10, axis=0), "l2", 0.05) == 1


def test_images_that_have_all_merged_are_one_group_and_pairs_are_many():
    different = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1)).astype(np.uint8)
    features = PixelsL2().encode(different, device="cpu")
    assert near_duplicate_count(features, "l2", 0.05) == 0
    assert near_duplicate_count(np.repeat(features[:1], 20, axis=0), "l2", 0.05) == 1
    assert near_duplicate_count(np.repeat(features, 2, axis=0), "l2", 0.05) == 10


def test_the_best_is_the_first_of_the_highest():
    assert best([{"score": 0.1}, {"score": 0.4}, {"score": 0.4}, {"score": 0.2}]) == 1
