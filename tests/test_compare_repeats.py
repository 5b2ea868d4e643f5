"""Repeated images: one picture in several files is one observation, and intervals show it."""

import re

import numpy as np
import pytest
from PIL import Image

import sidepipe
from sidepipe.features.image_duplicates import repeats
from sidepipe.memorization.collapse import pictures
from sidepipe.memorization.excess import HeldoutHits, design_effect, excess, wilson


def random_images(count, seed, shape=(8, 8, 1)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


TRAIN, HELDOUT = random_images(40, 0), random_images(60, 12)
GENERATED = np.concatenate([TRAIN[:10], random_images(40, 2)])


def numbers(found):
    return found.threshold, found.false_positive_rate, found.heldout_hits, found.excess.interval


@pytest.mark.parametrize("change", ["same", "near", "mirrored"])
def test_a_held_out_picture_in_several_files_counts_once(change):
    again = {
        "same": HELDOUT,
        "near": np.clip(HELDOUT.astype(int) + 2, 0, 255).astype(np.uint8),
        "mirrored": HELDOUT[:, :, ::-1],
    }[change]
    several = np.concatenate([HELDOUT, *[again] * 4])
    once = sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT)
    found = sidepipe.compare(GENERATED, train=TRAIN, heldout=several)
    assert numbers(found) == numbers(once)
    assert found.warnings[0].startswith(
        "240 of 300 held-out images repeat other held-out images and are left out, so that each "
        "picture counts once: heldout[60] = heldout[0], "
    )


def test_a_few_held_out_pictures_in_many_files_are_too_few():
    several = np.repeat(HELDOUT[:19], 20, axis=0)
    message = "the number of different held-out images among 380 must be >= 20, got 19"
    with pytest.raises(ValueError, match=message):
        sidepipe.compare(GENERATED, train=TRAIN, heldout=several)


def test_slices_of_a_group_that_are_alike_stay_and_equal_ones_do_not():
    near = np.clip(HELDOUT.astype(int) + 2, 0, 255).astype(np.uint8)
    groups = {"train": [*range(40)], "heldout": [f"h{i}" for i in (*range(60), *range(60))]}
    both = np.concatenate([HELDOUT, near])
    found = sidepipe.compare(GENERATED, train=TRAIN, heldout=both, groups=groups)
    assert not any("repeat" in text for text in found.warnings)
    groups["heldout"][:2] = ["h0", "other"]
    both[1] = both[0]
    found = sidepipe.compare(GENERATED, train=TRAIN, heldout=both, groups=groups)
    assert found.warnings[0].startswith("1 of 120 held-out images repeats other held-out images")


def test_every_image_that_stays_is_unlike_all_others_and_the_first_stays():
    images = np.concatenate([random_images(6, 1)] * 3)
    images[12:] = np.clip(images[12:].astype(int) + 3, 0, 255)
    rows = np.random.default_rng(0).permutation(18)
    stands = repeats(images, rows, 0.02)
    kept = rows[stands < 0]
    assert sorted(kept % 6) == list(range(6))
    for i in np.flatnonzero(stands >= 0):
        assert stands[i] % 6 == rows[i] % 6
        assert list(rows).index(stands[i]) < i
    assert (repeats(images, rows, None) >= 0).sum() == 6


def test_repeated_generated_files_widen_the_interval_to_that_of_the_pictures():
    once = sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT)
    found = sidepipe.compare(np.repeat(GENERATED, 20, axis=0), train=TRAIN, heldout=HELDOUT)
    assert (found.hits, found.unique) == (200, once.unique)
    assert found.excess.share == pytest.approx(once.excess.share)
    assert found.excess.interval == pytest.approx(once.excess.interval)
    said = [text for text in found.warnings if "different pictures" in text]
    assert said[0].startswith("the 1,000 generated images are 50 different pictures; the others")
    assert not any("different pictures" in text for text in once.warnings)


def test_one_copied_picture_in_thirty_files_is_no_certain_finding():
    generated = np.concatenate([np.repeat(TRAIN[:1], 30, axis=0), random_images(970, 3)])
    low, high = sidepipe.compare(generated, train=TRAIN, heldout=HELDOUT).excess.interval
    assert low < 0.01
    assert high > 0.1


def test_two_files_of_one_name_are_one_picture(tmp_path):
    folder = tmp_path / "generated"
    folder.mkdir()
    for i, image in enumerate(random_images(30, 5)[..., 0]):
        for ending in ("png", "jpg"):
            Image.fromarray(image).save(folder / f"{i}.{ending}")
    found = sidepipe.compare(folder, train=TRAIN, heldout=HELDOUT)
    assert any("the 60 generated images are 30 different pictures" in t for t in found.warnings)


def test_pixels_and_names_join_pictures_and_places_in_a_file_do_not():
    hashes = ["a", "b", "b", "c", "d", "e"]
    names = ["x.png", "x.jpg", "y.png", "z.npy[0]", "z.npy[1]", "sub/x.png"]
    found = pictures(hashes, names)
    assert len({found[0], found[1], found[2]}) == 1
    assert len(set(found.tolist())) == 4


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_interval_of_repeated_pictures_covers_the_truth_and_the_naive_one_does_not(share):
    rng, covers, naive = np.random.default_rng(0), 0, 0
    for _ in range(200):
        draws = np.repeat(np.arange(150), rng.integers(1, 12, 150))
        hit = (rng.random(150) < share)[draws]
        nothing = np.zeros((1, len(hit)))
        for number in (draws, None):
            control = HeldoutHits(nothing[0], 0, 1, 1.0, number)
            _, (low, high) = excess(hit, control)
            covers += number is not None and low <= share <= high
            naive += number is None and low <= share <= high
    assert covers >= 184
    assert naive < 150


def test_the_effect_of_equal_repeats_is_their_number_and_of_none_one():
    share = np.repeat(np.random.default_rng(0).random(40) < 0.3, 5).astype(float)
    assert design_effect(share, np.repeat(np.arange(40), 5)) == pytest.approx(5)
    assert design_effect(share, np.arange(200)) == pytest.approx(1)
    assert design_effect(np.zeros(200), np.repeat(np.arange(40), 5)) == pytest.approx(5)
    assert wilson(0.0, 40)[1] > wilson(0.0, 200)[1]


def test_the_first_line_is_the_excess_and_not_the_hits(tmp_path):
    heldout = random_images(400, 12)
    copies = heldout.reshape(10, 40, 8, 8, 1)[:, :28].reshape(280, 8, 8, 1)
    generated = np.concatenate([TRAIN[:30], copies, random_images(690, 4)])
    found = sidepipe.compare(generated, train=TRAIN, heldout=heldout)
    assert 30 <= found.hits <= 40
    assert 28 <= found.heldout_hits <= 40
    finding = "No evidence that training images are reproduced."
    assert str(found).splitlines()[0] == finding
    assert found.table().splitlines()[0] == finding
    page = found.report(tmp_path / "report.html").read_text()
    shown = re.findall(r'class="finding"><b>(.*?)</b>', page)
    assert shown == [finding]
    assert "Gamma" not in page
    found = sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT)
    assert str(found).startswith("10 of 40 training images are reproduced; 1 of 40 held-out ones.")


def test_without_training_images_the_error_names_them_and_a_way_forward():
    message = (
        r"^train must be the images that the model was trained on, got None; pass train=\.\.\."
    )
    with pytest.raises(ValueError, match=message):
        sidepipe.compare(GENERATED, heldout=HELDOUT)
