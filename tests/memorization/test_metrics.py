"""Run as a program, this file is one of the processes of the distributed test."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics

from sidepipe.features.search import nearest
from sidepipe.memorization import scores as m
from sidepipe.memorization.comparison import compare
from sidepipe.memorization.metrics import (
    AMS,
    UMS,
    AdaptiveScore,
    CumulativeAMS,
    CumulativeUMS,
    Excess,
    RatioRule,
    TailPercentile,
    UMSNearest,
)
from sidepipe.memorization.real import Encoded, real_images
from sidepipe.memorization.results import counted
from sidepipe.memorization.thresholds import usable_rates

METRICS = pytest.mark.parametrize("metric", ["cosine", "l2"])
BAND = {"cosine": (0.7, math.inf), "l2": (-math.inf, 0.8)}
THRESHOLDS = {"cosine": [0.2, 0.5, 0.7, 0.99], "l2": [1.3, 1.0, 0.8, 0.1]}
# The images of the two processes, in batches.
SHARES = {"uneven": ([(0, 5), (5, 29)], [(29, 37)]), "none": ([(0, 37)], [])}


def planted(metric):
    """37 generated and 61 training vectors: copies, near ones, and doubles among the training."""
    rng = np.random.default_rng(0)
    generated, training = rng.normal(size=(37, 12)), rng.normal(size=(61, 12))
    training[50:53] = training[3]
    training[55] = training[9] + 0.01 * rng.normal(size=12)
    for i, j, noise in ((4, 3, 0), (9, 9, 0.02), (30, 9, 0.1), (31, 20, 0.05), (36, 3, 0.2)):
        generated[i] = training[j] + noise * rng.normal(size=12)
    if metric == "cosine":
        generated, training = (
            x / np.linalg.norm(x, axis=1, keepdims=True) for x in (generated, training)
        )
    else:
        generated, training = generated / 4, training / 4
    return generated.astype(np.float32), training.astype(np.float32)


def make_all(training, metric):
    return {
        "ams": AMS(training, metric, BAND[metric]),
        "ums": UMS(training, metric, BAND[metric]),
        "ums_nearest": UMSNearest(training, metric, BAND[metric]),
        "cumulative_ams": CumulativeAMS(training, metric, THRESHOLDS[metric]),
        "cumulative_ums": CumulativeUMS(training, metric, THRESHOLDS[metric]),
        "adaptive": AdaptiveScore(training, metric),
        "ratio": RatioRule(training, metric),
        "tail": TailPercentile(training, metric),
    }


def as_hex(value):
    """Every bit of it."""
    return value.numpy().tobytes().hex()


def scores(training, metric, batches):
    """name -> the result's bits."""
    found = {}
    for name, score in make_all(training, metric).items():
        for batch in batches:
            score.update(batch)
        found[name] = as_hex(score.compute())
    return found


def process(rank, store):
    """Prints the scores that this process computes with the other one."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    found = {}
    for metric in ("cosine", "l2"):
        generated, training = planted(metric)
        for name, shares in SHARES.items():
            batches = [torch.from_numpy(generated[a:b]) for a, b in shares[rank]]
            found[f"{metric} {name}"] = scores(training, metric, batches)
    torch.distributed.destroy_process_group()
    print(json.dumps(found))


@pytest.mark.slow
def test_two_processes_with_uneven_shares_equal_one_to_the_last_bit(tmp_path):
    command = [sys.executable, __file__]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    found = [json.loads(p.communicate(timeout=120)[0]) for p in running]
    assert [p.returncode for p in running] == [0, 0]
    for metric in ("cosine", "l2"):
        generated, training = planted(metric)
        alone = scores(training, metric, [generated])
        for name in SHARES:
            for rank in range(2):
                assert found[rank][f"{metric} {name}"] == alone


def all_pairs(generated, training, metric):
    """gamma(g_i, d_j) as float32, of every pair."""
    g, d = generated.astype(np.float64)[:, None], training.astype(np.float64)[None]
    gamma = (g * d).sum(2) if metric == "cosine" else np.sqrt(np.square(g - d).sum(2))
    return gamma.astype(np.float32)


def oracle(generated, training, metric):
    """The scores by their definitions, from all pairs."""
    gamma = all_pairs(generated, training, metric)
    low, high = BAND[metric]
    inside = (gamma >= low) & (gamma < high)
    order = np.argsort(-gamma if metric == "cosine" else gamma, axis=1, kind="stable")
    best = np.take_along_axis(gamma, order, 1)
    nearest_inside = inside[np.arange(37), order[:, 0]]
    apart = np.sort(m.distance(gamma, metric), axis=1)
    unique = np.sort(
        m.distance(all_pairs(generated, np.unique(training, axis=0), metric), metric), axis=1
    )
    reached = [gamma >= a if metric == "cosine" else gamma <= a for a in THRESHOLDS[metric]]
    return {
        "ams": nearest_inside.sum() / 37,
        "ums": inside.any(0).sum() / 37,
        "ums_nearest": len(set(order[nearest_inside, 0])) / 37,
        "cumulative_ams": [r.any(1).sum() / 37 for r in reached],
        "cumulative_ums": [r.any(0).sum() / 37 for r in reached],
        "adaptive": sum(row[0] / (0.5 * np.mean(row[:50])) <= 1 for row in apart) / 37,
        "ratio": sum(3 * row[0] < row[1] for row in unique) / 37,
        "tail": np.percentile(best[:, 0], 95 if metric == "cosine" else 5),
    }


@METRICS
def test_each_is_its_definition_on_asymmetric_data(metric):
    generated, training = planted(metric)
    expected = oracle(generated, training, metric)
    for name, score in make_all(training, metric).items():
        score.update(generated)
        value = score.compute()
        assert value.dtype == torch.float64
        assert value.tolist() == expected[name], name
        assert np.min(expected[name]) > 0, name
    assert expected["ums_nearest"] < expected["ams"]
    assert expected["ums_nearest"] < expected["ums"]


@METRICS
def test_each_equals_its_functional_twin(metric):
    generated, training = planted(metric)
    gamma, index = (a[:, 0] for a in nearest(generated, training, metric))
    reverse = nearest(training, generated, metric)[0][:, 0]
    thresholds = THRESHOLDS[metric]
    twins = {
        "ams": m.ams(gamma, BAND[metric]),
        "ums_nearest": m.ums_nearest(gamma, index, BAND[metric]),
        "cumulative_ams": m.cumulative_ams(gamma, thresholds, metric),
        "cumulative_ums": m.cumulative_ums(reverse, 37, thresholds, metric),
        "tail": m.tail_percentile(gamma, metric),
    }
    ours = make_all(training, metric)
    for name, value in twins.items():
        ours[name].update(generated)
        assert ours[name].compute().tolist() == value


@METRICS
def test_neither_batches_nor_their_order_nor_the_input_s_type_matter(metric):
    generated, training = planted(metric)
    whole = scores(training, metric, [generated])
    tensors = [torch.from_numpy(generated[a:b]) for a, b in ((20, 37), (0, 1), (1, 20))]
    assert scores(training, metric, tensors) == whole
    assert scores(torch.from_numpy(training), metric, [generated.astype(np.float64)]) == whole


@METRICS
def test_doubles_in_the_training_set_do_not_blind_the_ratio_rule(metric):
    generated, training = planted(metric)
    # Image 4 copies a training image that is there four times.
    score = RatioRule(training, metric)
    score.update(generated[4:5])
    assert score.compute() == 1


def test_a_call_gives_the_batch_and_keeps_the_sum():
    generated, training = planted("l2")
    score = AMS(training, "l2", BAND["l2"])
    assert score(generated[:4]) == m.ams(
        nearest(generated[:4], training, "l2")[0][:, 0], BAND["l2"]
    )
    score(generated[4:])
    assert score.compute() == m.ams(nearest(generated, training, "l2")[0][:, 0], BAND["l2"])


@METRICS
def test_reset_forgets_and_copies_go_on_alone(metric):
    generated, training = planted(metric)
    whole = scores(training, metric, [generated])
    for name, score in make_all(training, metric).items():
        score.update(generated[:20])
        for other in (score.clone(), pickle.loads(pickle.dumps(score))):
            other.update(generated[20:])
            assert as_hex(other.compute()) == whole[name]
        score.reset()
        score.update(generated)
        assert as_hex(score.compute()) == whole[name]


def test_a_collection_keeps_apart_scores_that_begin_alike():
    generated, training = planted("l2")
    others = np.full((60, 12), 5, np.float32)
    scores = torchmetrics.MetricCollection(
        {
            "on_train": AMS(training, "l2", BAND["l2"]),
            "on_heldout": AMS(others, "l2", BAND["l2"]),
            "copies": AMS(training, "l2", (-math.inf, 0.01)),
            "again": AMS(training, "l2", BAND["l2"]),
        }
    )
    # None of the first images hits anything: all states are equal but for what they belong to.
    scores.update(np.full((3, 12), 9, np.float32))
    scores.update(generated)
    found = {name: float(value) for name, value in scores.compute().items()}
    assert found["on_train"] == found["again"] > found["copies"] > found["on_heldout"] == 0
    assert sorted(map(len, scores.compute_groups.values())) == [1, 1, 2]


GOOD = np.eye(60, 12, dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AMS(GOOD, "l2", (0.6, 0.5)), r"band must be .* low < high, got \(0.6, 0.5\)"),
        (lambda: UMS(GOOD, "l2", (0.5, 0.5)), "band must be"),
        (lambda: UMSNearest(GOOD, "cosine", (math.nan, 1.0)), "band must be"),
        (lambda: AMS(GOOD, "cosin", (0.5, 0.6)), "metric"),
        (lambda: AMS(2 * GOOD, "cosine", (0.5, 0.6)), r"training_features must be unit vectors"),
        (lambda: CumulativeAMS(GOOD, "l2", []), "thresholds must be one or more numbers"),
        (lambda: CumulativeUMS(GOOD, "l2", [math.nan]), "thresholds must be one or more numbers"),
        (lambda: AdaptiveScore(GOOD[:49], "l2"), "of at least 50 images, got 49; use RatioRule"),
        (lambda: RatioRule(GOOD[[1, 1, 1]], "l2"), "of at least 2 different images, got 1"),
        (lambda: TailPercentile(GOOD[:0], "l2"), "training_features must be not empty"),
        (lambda: TailPercentile(GOOD + np.inf, "l2"), "training_features must be finite"),
        (lambda: TailPercentile(GOOD.astype(np.int64), "l2"), "training_features"),
    ],
)
def test_what_makes_no_score_is_refused(make, message):
    # TypeError where annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.eye(3, 11, dtype=np.float32), "of 12 dimensions, got 11; encode all with the same"),
        (np.zeros((3, 12), np.uint8), "features"),
        (np.zeros((3, 12), np.float16), "features"),
        (np.ones((3, 12), np.float32), "features must be unit vectors .*; divide each"),
        (np.zeros((3, 2, 6), np.float32), "features"),
        (np.full((3, 12), np.nan, np.float32), "features must be finite"),
        (np.zeros((0, 12), np.float32), "queries must be .* not empty"),
    ],
)
def test_features_that_do_not_fit_are_refused_and_not_counted(kind, features, message):
    score = AMS(GOOD, "cosine", (0.5, 0.6))
    with pytest.raises((ValueError, TypeError), match=message):
        score.update(kind(features))
    assert score.num_images == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_a_result_without_images_is_refused():
    for score in make_all(GOOD, "l2").values():
        with pytest.raises(ValueError, match="num_images must be > 0, got 0; call update before"):
            score.compute()


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))


# excess


def planted_controls(metric, num_heldout):
    """Generated images of which eight are copies, training and held-out vectors."""
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(n, 12)) for n in (60, 40, num_heldout)]
    parts[0][:8] = parts[1][:8] + 0.001 * rng.normal(size=(8, 12))
    parts[0][30] = parts[2][5]
    if metric == "cosine":
        parts = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts]
    return [x.astype(np.float32) for x in parts]


@METRICS
@pytest.mark.parametrize("num_heldout", [130, 40, 25], ids=["three sets", "one set", "fewer"])
def test_excess_equals_the_comparison_of_the_pipeline(metric, num_heldout):
    generated, training, heldout = planted_controls(metric, num_heldout)
    rows = np.arange(40 + num_heldout)
    real = real_images(Encoded(rows[:40], training), Encoded(rows[40:], heldout), metric)
    rate = usable_rates([0.05], num_heldout)
    at = counted(compare(generated, None, real, metric), rate)[0]["calibrated"][0]
    score = Excess(training, heldout, metric, 0.05)
    for batch in np.split(generated[::-1], [7, 50]):
        score.update(torch.from_numpy(batch.copy()))
    found = {name: float(value) for name, value in score.compute().items()}
    assert found["hits"] == at["train"]["count"] >= 8
    assert found["threshold"] == at["threshold"]
    assert found["heldout_hits"] == pytest.approx(at["heldout"]["scaled"], rel=1e-12)
    assert found["heldout_hits"] > 0
    expected = [at["excess"]["share"], *at["excess"]["interval"]]
    assert [found[k] for k in ("excess", "excess_low", "excess_high")] == pytest.approx(expected)


def test_excess_refuses_what_can_be_no_control():
    _, training, heldout = planted_controls("l2", 40)
    with pytest.raises(ValueError, match=r"nothing was trained on must be >= 20, .* got 19"):
        Excess(training, heldout[:19], "l2")
    with pytest.raises(ValueError, match=r"false_positive_rate must be in \(0, 1\), got 1"):
        Excess(training, heldout, "l2", 1)
    with pytest.raises(ValueError, match="no image could be a hit"):
        Excess(training, training, "l2")
