import numpy as np
import pytest
from tests.repeated import METRICS, THRESHOLD, repeated

from sidepipe.memorization.blind import candidates, ranking_quality


@METRICS
def test_candidates_come_by_size_and_then_by_tightness(metric):
    features, of = repeated(metric, sizes=(9, 5, 5, 2))
    ranking = candidates(features, metric, THRESHOLD[metric])
    assert ranking.size[:4].tolist() == [9, 5, 5, 2]
    assert of[ranking.index[0]] == 0
    assert set(of[ranking.index[1:3]]) == {1, 2}
    assert (ranking.size[4:] == 1).all()
    sign = -1 if metric == "cosine" else 1
    assert sign * ranking.tightness[1] <= sign * ranking.tightness[2]
    assert (np.diff(sign * ranking.tightness[4:]) >= 0).all()
    assert len(ranking.index) == len(np.unique(ranking.index)) == 34


@METRICS
def test_tightness_is_the_mean_gamma_to_the_center_or_that_to_the_nearest_other(metric):
    features, of = repeated(metric)
    ranking = candidates(features, metric, THRESHOLD[metric])
    x = features.astype(np.float64)
    gamma = x @ x.T if metric == "cosine" else np.linalg.norm(x[:, None] - x, axis=2)
    for index, size, tightness in zip(ranking.index, ranking.size, ranking.tightness, strict=True):
        others = np.flatnonzero((of == of[index]) & (np.arange(len(of)) != index))
        if size == 1:
            rest = np.delete(gamma[index], index)
            expected = rest.max() if metric == "cosine" else rest.min()
        else:
            expected = gamma[index, others].mean()
        assert tightness == pytest.approx(expected, abs=1e-5)


def test_exact_copies_are_one_group_however_many():
    features = np.repeat(np.eye(3, dtype=np.float32), [2500, 1, 40], axis=0)
    ranking = candidates(features, "l2", 0.1)
    assert ranking.size.tolist() == [2500, 40, 1]
    assert ranking.tightness[0] == 0


def test_ranking_quality_is_precision_and_the_share_of_pairs_in_the_right_order():
    hit = np.random.default_rng(0).random(120) < np.linspace(0.9, 0.05, 120)
    quality = ranking_quality(hit)
    assert quality["base_rate"] == hit.mean()
    assert quality["precision_at"] == {str(k): sum(hit[:k].tolist()) / k for k in (10, 20, 50, 100)}
    pairs = [(i, j) for i in np.flatnonzero(hit) for j in np.flatnonzero(~hit)]
    assert quality["auc"] == pytest.approx(np.mean([i < j for i, j in pairs]))
    roc = quality["roc"]
    assert (roc["false_positive_rate"][0], roc["true_positive_rate"][0]) == (0, 0)
    assert (roc["false_positive_rate"][-1], roc["true_positive_rate"][-1]) == (1, 1)
    assert roc["true_positive_rate"] == sorted(roc["true_positive_rate"])


@pytest.mark.parametrize("hit", [np.zeros(12, bool), np.ones(12, bool)])
def test_without_both_kinds_there_is_no_roc(hit):
    quality = ranking_quality(hit)
    assert quality["auc"] is None
    assert quality["roc"] is None
    assert quality["precision_at"] == {"10": float(hit[0])}


def test_planted_copies_rank_above_images_made_once():
    features, of = repeated("l2", sizes=(8, 7, 6, 5, 4, 3, 2), alone=60)
    ranking = candidates(features, "l2", THRESHOLD["l2"])
    quality = ranking_quality(of[ranking.index] < 7)
    assert quality["auc"] == 1
