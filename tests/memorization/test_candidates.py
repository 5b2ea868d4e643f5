"""Several images per start: hits, intervals and groups are those of starts, on planted images."""

import numpy as np
import pytest

from sidepipe.memorization.blind import candidates
from sidepipe.memorization.comparison import compare
from sidepipe.memorization.real import Encoded, real_images
from sidepipe.memorization.results import counted, extractable, measured, new_hits

RATE = 1 / 80
FAR = 100.0


def real(rng, num_train=40, num_unseen=80):
    points = rng.normal(size=(num_train + num_unseen, 5)).astype(np.float32)
    rows = np.arange(len(points))
    train, unseen = (Encoded(rows[some], points[some]) for some in np.split(rows, [num_train]))
    return real_images(train, unseen, "l2")


def planted(*starts):
    """Three images per start: copies of training images (>= 0) or of held-out ones (< 0)."""
    images = real(np.random.default_rng(0))
    found = np.full((len(starts), 3, 5), FAR, np.float32)
    for start, copied in enumerate(starts):
        for place, number in enumerate(copied):
            source = images.train if number >= 0 else images.unseen
            found[start, place] = source.features[number if number >= 0 else -number - 1]
    return compare(found.reshape(-1, 5), None, images, "l2", per_start=3)


def test_a_start_counts_once_and_every_different_image_that_its_candidates_hit_counts():
    c = planted((3, 3, 7), (7,), (), (-1, 5), (-1, -2, -2))
    found = counted(c, [RATE])[0]["calibrated"][0]
    assert found["train"]["count"] == 3  # starts, of six candidates that hit
    assert found["train"]["unique"] == 3  # 3, 7 and 5
    assert found["train"]["ams"] == pytest.approx(3 / 5)
    assert found["heldout"]["sets"] == [2, 0]
    assert found["heldout"]["unique"] == pytest.approx((2 + 0) / 2)
    assert found["excess"]["share"] == pytest.approx(3 / 5 - (2 / 5 + 0) / 2)


def test_rarefaction_takes_each_pair_of_a_start_and_a_training_image_once():
    c = planted((3, 3, 7), (7,), (), (5,))
    group = np.arange(40)
    _, hits = new_hits(c, 1e-3, group)
    observed = extractable(c, hits, 40)["observed"]
    assert observed == {
        "num_images": 4,
        "unique": 3,
        "hits": 4,  # 3, 7, 7, 5
        "singletons": 2,
        "doubletons": 1,
    }


def test_one_candidate_per_start_gives_the_numbers_of_images():
    rng = np.random.default_rng(1)
    images, queries = real(rng), rng.normal(size=(60, 5)).astype(np.float32)
    ends, levels = {"high": (-np.inf, 0.5), "low": (0.5, 1.0)}, [0.5, 1.0]
    one = compare(queries, None, images, "l2", per_start=1)
    twice = compare(queries.repeat(2, axis=0), None, images, "l2", per_start=2)
    expected, found = (measured(c, [RATE], ends, levels)[0] for c in (one, twice))
    for name in ("calibrated", "curve", "rarefaction"):
        assert found[name] == expected[name], name
    for name in ends:
        for which in ("train", "heldout"):
            for score in ("count", "ams", "ums"):
                assert found["bands"][name][which][score] == expected["bands"][name][which][score]


def test_candidates_of_one_start_are_no_repetition():
    images = np.array([[0.0], [0.01], [0.02], [5.0], [5.01], [9.0]], np.float32)
    alone = candidates(images, "l2", 0.1, per_start=3)
    assert alone.index[alone.size > 1].tolist() == []
    again = candidates(images, "l2", 0.1)
    assert sorted(again.size.tolist()) == [1, 2, 3]
    two = candidates(np.concatenate([images, images]), "l2", 0.1, per_start=3)
    assert sorted(two.size.tolist()) == [2, 2, 2]
