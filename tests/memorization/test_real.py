"""Sets that an attack is held against, and what is measured of real images, by double loops."""

import numpy as np
import pytest
from tests.repeated import METRICS

from sidepipe.features.encoders import Pixels, PixelsL2
from sidepipe.memorization import real
from sidepipe.memorization.real import (
    Encoded,
    compared_sets,
    encode_rows,
    near_duplicates,
    other_kind,
    real_images,
)


def encoded(count, first_row=0, seed=0):
    features = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Encoded(first_row + np.arange(count)[::-1], features)


def rows_of(sets):
    return {name: images.rows.tolist() for name, images in sets.items()}


def test_held_out_are_the_first_unseen_images_as_many_as_training_images():
    train, unseen = encoded(5), encoded(9, 5)
    assert rows_of(compared_sets(train, unseen)) == {
        "train": [4, 3, 2, 1, 0],
        "heldout": [13, 12, 11, 10, 9],
    }


def test_of_fewer_unseen_images_as_many_training_images_are_a_set_of_their_own():
    train, unseen = encoded(5), encoded(3, 5)
    assert rows_of(compared_sets(train, unseen)) == {
        "train": [4, 3, 2, 1, 0],
        "heldout": [7, 6, 5],
        "train_equal": [4, 3, 2],
    }


def test_images_of_the_attacker_s_are_in_no_control():
    train, unseen = encoded(5), encoded(6, 5)
    assert rows_of(compared_sets(train, unseen, np.array([10, 7]))) == {
        "train": [4, 3, 2, 1, 0],
        "heldout": [9, 8, 6, 5],
        "train_equal": [4, 3, 2, 1],
    }
    assert rows_of(compared_sets(train, encoded(8, 5), np.array([5, 6])))["heldout"] == [
        *(12, 11, 10, 9, 8)
    ]


@METRICS
def test_searches_among_real_images_are_those_of_a_double_loop(metric):
    train, unseen = encoded(7), encoded(4, 7, seed=1)
    train.features[3] = train.features[5]  # the data hold an image twice
    found = real_images(train, unseen, metric)

    def closest(of, among):
        x, y = of.astype(np.float64), among.astype(np.float64)
        if metric == "cosine":
            return (x @ y.T).max(1)
        return np.linalg.norm(x[:, None] - y, axis=2).min(1)

    expected = closest(unseen.features, train.features)
    np.testing.assert_allclose(found.real_gamma, expected, atol=1e-6)
    sets = compared_sets(train, unseen)
    assert set(found.other_gamma) == set(sets) == {"train", "heldout", "train_equal"}
    for name, images in sets.items():
        x = images.features
        others = [closest(x[[i]], np.delete(x, i, axis=0))[0] for i in range(len(x))]
        np.testing.assert_allclose(found.other_gamma[name], others, atol=1e-6)


@METRICS
@pytest.mark.parametrize("grouped", [False, True])
def test_training_images_of_one_subject_make_no_other_kind_of_the_unseen_ones(metric, grouped):
    """Twenty nearly equal images of each of thirty subjects; the unseen ones are other subjects."""
    subjects, unseen = encoded(30), encoded(60, 600, seed=1)
    noise = np.random.default_rng(2).normal(scale=0.02, size=(600, 6)).astype(np.float32)
    features = np.repeat(subjects.features, 20, axis=0) + noise
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    groups = np.repeat(np.arange(30), 20) if grouped else None
    found = near_duplicates(
        real_images(Encoded(np.arange(600), features, groups), unseen, metric), metric
    )
    assert bool(other_kind(found)) is not grouped
    assert other_kind(near_duplicates(real_images(subjects, unseen, metric), metric)) == ""


@METRICS
def test_of_a_set_that_an_attack_changes_nearness_is_measured_anew(metric):
    real_ones = real_images(encoded(5), encoded(12, 5, seed=1), metric)
    found = {"as_it_was": compared_sets(real_ones.train, real_ones.unseen)["heldout"]}
    found["changed"] = compared_sets(real_ones.train, real_ones.unseen, np.array([15]))["heldout"]
    gamma = {n: real_ones.other_gamma_of("heldout", s, metric) for n, s in found.items()}
    assert gamma["as_it_was"] is real_ones.other_gamma["heldout"]
    anew = real_images(found["changed"], encoded(9, 30, seed=2), metric).other_gamma["train"]
    np.testing.assert_array_equal(gamma["changed"], anew)
    assert (gamma["changed"] != gamma["as_it_was"]).any()


@pytest.mark.parametrize("encoder", [Pixels(), PixelsL2()])
def test_features_do_not_depend_on_how_many_images_are_read_at_once(encoder, monkeypatch):
    data = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    rows = np.array([7, 3, 3, 39, 0, 12, 25])
    whole = encode_rows(encoder, data, rows, "cpu")
    monkeypatch.setattr(real, "ENCODE_IMAGES", 3)
    np.testing.assert_array_equal(encode_rows(encoder, data, rows, "cpu"), whole)
    np.testing.assert_array_equal(whole, encoder.encode(data[rows]))
