"""Duplicates against brute force, on planted copies that must be found and near misses that not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sidepipe.features import image_duplicates
from sidepipe.features.image_duplicates import RATIO, duplicates, small, typical_distance
from sidepipe.stages.data.subset import split

FACES = Path(__file__).parents[2].parent / "shared/data/faces"


def digits():
    return np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]


def noisy(images, noise, seed=0):
    added = np.random.default_rng(seed).normal(0, 255 * noise, images.shape)
    return (images + added).round().clip(0, 255).astype(np.uint8)


def textured(count, side=24, channels=3, seed=0):
    """Images of smooth shapes, as photographs are: block means tell them apart."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, channels))
    bicubic = Image.Resampling.BICUBIC
    large = [Image.fromarray(x.astype(np.uint8)).resize((side, side), bicubic) for x in coarse]
    return np.stack([np.asarray(x) for x in large])


def all_distances(images, queries, database, mirrored=False):
    """RMS distances of all pairs, (queries, database)."""
    one, two = (images[rows].astype(float) / 255 for rows in (queries, database))
    turned = one[:, :, ::-1] if mirrored else one
    return np.sqrt(np.square(turned[:, None] - two[None]).mean(axis=(2, 3, 4)))


def searched(images, train, unseen):
    """Duplicates across and within, as the stage dpm searches for them."""
    limit = typical_distance(images, np.concatenate([train, unseen])) / RATIO
    return duplicates(images, unseen, train, limit), duplicates(images, train, train, limit)


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 7, 3), (9, 9, 1), (33, 33, 3), (50, 50, 1)])
def test_small_images_are_never_farther_apart_than_the_images(shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, *shape)).astype(np.uint8)
    images[10:] = noisy(images[:10], 0.05)
    whole = all_distances(images, np.arange(20), np.arange(20))
    for side in (1, 3, 8, 32):
        vectors = small(images, side).astype(float)
        found = np.sqrt(np.square(vectors[:, None] - vectors[None]).sum(axis=2))
        assert (found <= whole + 1e-6).all()
        if side >= shape[0]:
            np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize("tile", [7, 4096])
def test_exactly_the_images_within_the_limit_are_found(tile, monkeypatch):
    monkeypatch.setattr(image_duplicates, "TILE_QUERIES", tile)
    monkeypatch.setattr(image_duplicates, "READ_IMAGES", 5)
    monkeypatch.setattr(image_duplicates, "VERIFIED_PIXELS", 4000)
    images = textured(90)
    train, unseen = np.arange(0, 60), np.arange(60, 90)
    images[60:66], images[66:70] = images[:6], noisy(images[10:14], 0.02)
    images[70:73], images[73:75] = images[20:23, :, ::-1], noisy(images[23:25, :, ::-1], 0.02)
    images[75:78] = images[30:33] + (images[30:33] < 255)  # one gray level brighter
    for limit in (0.0, 0.03, 0.15, 0.3):
        plain = all_distances(images, unseen, train)
        turned = all_distances(images, unseen, train, mirrored=True)
        found = duplicates(images, unseen, train, limit)
        expected = (plain <= limit).any(1) | (turned <= limit).any(1)
        np.testing.assert_array_equal(found.found, expected)
        for i in np.flatnonzero(found.found):
            pairs = turned if found.mirrored[i] else plain
            assert pairs[i, found.row[i]] == pytest.approx(found.distance[i], abs=1e-9)
        np.testing.assert_array_equal(found.exact, (plain == 0).any(1) | (turned == 0).any(1))
        assert (found.row[~found.found] == -1).all()


def test_an_image_is_no_duplicate_of_itself_be_it_symmetric():
    images = textured(12)
    images[:, :, 12:] = images[:, :, 11::-1]  # each one is its own mirror image
    images[7] = images[3]
    found = duplicates(images, np.arange(12), np.arange(12), 0.05)
    assert np.flatnonzero(found.found).tolist() == [3, 7]
    assert found.row[[3, 7]].tolist() == [7, 3]


def test_three_training_images_among_the_unseen_digits_are_found_and_nothing_else():
    images = digits()
    train, unseen = split(np.array(["train"] * 1797), 256, None, 0)
    planted = np.concatenate([images, noisy(images[train[:3]], 0.01)])
    across, within = searched(planted, train, np.concatenate([unseen, [1797, 1798, 1799]]))
    assert np.flatnonzero(across.found).tolist() == [1541, 1542, 1543]
    assert across.row[-3:].tolist() == train[:3].tolist()
    assert (across.distance[-3:] < 0.011).all()
    assert not within.found.any()


@pytest.mark.parametrize("count", [20, 256, 1000])
def test_real_digits_are_no_duplicates_however_close_two_of_them_are(count):
    images = digits()
    train, unseen = split(np.array(["train"] * 1797), count, None, 0)
    if count == 256:
        closest = np.sort(all_distances(images, unseen, train).min(1))[:3]
        np.testing.assert_allclose(closest, [0.0592, 0.0640, 0.0738], atol=5e-5)
    for found in searched(images, train, unseen):
        assert not found.found.any()


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_held_out_images_that_are_all_copies_are_all_found(noise):
    train = digits()[:300]
    images = np.concatenate([train, noisy(train, noise)])
    across, within = searched(images, np.arange(300), np.arange(300, 600))
    assert across.row.tolist() == list(range(300))
    assert across.exact.all() == (noise == 0)
    assert not within.found.any()


def test_five_copies_of_each_training_image_do_not_hide_copies_among_the_held_out():
    originals = digits()[:200]
    images = np.concatenate([noisy(originals, 0.01, seed) for seed in range(5)] + [digits()[200:]])
    copies = noisy(originals[:30], 0.01, seed=9)
    images = np.concatenate([images, copies])
    unseen = np.arange(1000, len(images))
    across, within = searched(images, np.arange(1000), unseen)
    assert np.flatnonzero(across.found).tolist() == list(range(len(unseen) - 30, len(unseen)))
    assert within.found.all()


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "edit",
    [
        lambda x: np.stack([jpeg(image, 75) for image in x]),
        lambda x: x + (x < 255),  # one gray level brighter
        lambda x: noisy(x, 0.02),
        lambda x: x,
    ],
    ids=["jpeg", "brighter", "noise", "exact"],
)
def test_edited_and_mirrored_copies_are_found(edit, mirrored):
    images = textured(200, side=48)
    unseen = textured(100, side=48, seed=1)
    copies = edit(images[:20])
    unseen[:20] = copies[:, :, ::-1] if mirrored else copies
    both = np.concatenate([images, unseen])
    across, within = searched(both, np.arange(200), np.arange(200, 300))
    assert np.flatnonzero(across.found).tolist() == list(range(20))
    assert across.row[:20].tolist() == list(range(20))
    assert (across.mirrored[:20] == mirrored).all()
    assert not within.found.any()


def test_blank_images_are_duplicates_of_each_other_and_of_nothing_else():
    images = digits()[:400]
    images[[5, 50, 350]] = 0  # equal
    images[70], images[360] = 1, 2  # nearly
    across, within = searched(images, np.arange(300), np.arange(300, 400))
    assert np.flatnonzero(across.found).tolist() == [50, 60]
    assert np.flatnonzero(within.found).tolist() == [5, 50, 70]
    assert across.exact.sum() == 1


@pytest.mark.parametrize("value", [0, 255])
def test_images_that_are_all_alike_are_all_duplicates(value):
    images = np.full((30, 8, 8, 1), value, np.uint8)
    across, within = searched(images, np.arange(20), np.arange(20, 30))
    assert across.exact.all()
    assert within.exact.all()


def test_many_nearly_blank_images_are_compared_one_by_one_and_not_all_with_all(monkeypatch):
    images = np.concatenate([digits()[:200], noisy(np.zeros((600, 8, 8, 1), np.uint8), 0.004)])
    compared, distances = [], image_duplicates._distances

    def counted(images, rows, others, mirrored):
        compared.append(len(rows))
        return distances(images, rows, others, mirrored)

    monkeypatch.setattr(image_duplicates, "_distances", counted)
    found = duplicates(images, np.arange(800), np.arange(800), 0.04)
    assert found.found[200:].all()
    assert sum(compared) < 2 * 800


def test_without_images_or_others_there_are_no_duplicates():
    images = digits()[:3]
    nothing = np.arange(0)
    for train, unseen in ((nothing, nothing), (np.arange(1), nothing), (nothing, np.arange(3))):
        assert not any(found.found.any() for found in searched(images, train, unseen))
    assert typical_distance(images, np.arange(1)) == 0


def test_progress_counts_the_images_that_are_done(monkeypatch):
    monkeypatch.setattr(image_duplicates, "TILE_QUERIES", 40)
    said = []
    duplicates(digits(), np.arange(100), np.arange(100, 200), 0.01, said.append)
    assert said == [40, 80, 100]


# Looked at: the same photographs, although the data set gives each of them two people's names.
SAME_PHOTOGRAPHS = {
    16: {("004426.jpg", "003972.jpg"), ("005324.jpg", "003550.jpg")},
    32: {("005324.jpg", "003550.jpg")},
}


@pytest.mark.skipif(not FACES.is_dir(), reason="faces lie beside the checkout")
@pytest.mark.parametrize("size", [16, 32])
def test_of_real_faces_only_the_same_photograph_is_a_duplicate(size):
    names = [f"{number:06d}.jpg" for number in range(1, 6001)]
    faces = []
    for name in names:
        with Image.open(FACES / "img_align_celeba" / name) as image:
            faces.append(np.asarray(image.convert("L").resize((size, size), Image.Resampling.BOX)))
    across, _ = searched(np.stack(faces)[..., None], np.arange(4000), np.arange(4000, 6000))
    flagged = {(names[4000 + i], names[across.row[i]]) for i in np.flatnonzero(across.found)}
    assert flagged == SAME_PHOTOGRAPHS[size]
