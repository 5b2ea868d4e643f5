"""Features that a comparison keeps on disk: the same result, and a killed call resumes."""

import numpy as np
import pytest
from PIL import Image

import sidepipe
from sidepipe.api import caching, decoding
from sidepipe.api.comparing import LEAST
from sidepipe.api.decoding import Reading
from sidepipe.api.images import read_sets
from sidepipe.base.image_reading import read_images
from sidepipe.features.encoders import PixelsL2
from sidepipe.memorization import comparison, real
from sidepipe.stages.reference import encoding

RNG = np.random.default_rng(0)
TRAIN, HELDOUT, OTHERS = RNG.integers(0, 256, (3, 40, 4, 4, 1), dtype=np.uint8)
GENERATED = np.concatenate([TRAIN[:5], OTHERS[:20]])


class Counted(PixelsL2):
    """Counts the images that it encodes, and stops before the image `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self._stop, self._count = stop, 0

    def _encode_batch(self, images, device):
        if self._stop is not None and self._count + len(images) > self._stop:
            raise KeyboardInterrupt
        self._count += len(images)
        return super()._encode_batch(images, device)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(encoding, "ENCODE_IMAGES", 8)
    monkeypatch.setattr(real, "ENCODE_IMAGES", 8)


def compared(folder=None, features=None, generated=GENERATED):
    return sidepipe.compare(
        generated, train=TRAIN, heldout=HELDOUT, features=features or Counted(), cache=folder
    )


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_a_killed_call_resumes_to_the_same_bytes(tmp_path):
    plain = compared()
    compared(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "killed", Counted(stop=60))
    rest = Counted()
    found = compared(tmp_path / "killed", rest)
    assert 0 < rest._count < len(TRAIN) + len(HELDOUT) + len(GENERATED) - 40
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    for name in ("hits", "heldout_hits", "threshold", "unique", "excess"):
        assert getattr(found, name) == getattr(plain, name)
    assert found._hits == plain._hits
    assert plain.hits >= 5


def test_only_new_images_are_encoded(tmp_path):
    compared(tmp_path)
    again, other = Counted(), Counted()
    compared(tmp_path, again)
    assert again._count == 0
    compared(tmp_path, other, generated=OTHERS)
    assert len(OTHERS) <= other._count <= len(OTHERS) + 1  # one tells the number of dimensions


def test_a_file_is_no_cache(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache must be a folder, or a new name, got"):
        compared(tmp_path / "file")


def save(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[:, :, 0]).save(folder / f"{i:03d}.png")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "PART_IMAGES", 16)
    images = {"generated": GENERATED, "train": TRAIN, "heldout": HELDOUT}
    for name, some in images.items():
        save(tmp_path / name, some)
    return {name: tmp_path / name for name in images}


def of_folders(folders, cache=None, **settings):
    given = {**folders, **settings}
    return sidepipe.compare(given.pop("generated"), features=Counted(), cache=cache, **given)


@pytest.mark.parametrize("settings", [{}, {"size": 3}, {"on_bad_file": "skip"}])
def test_images_in_parts_on_disk_give_the_result_of_images_in_memory(folders, tmp_path, settings):
    if "on_bad_file" in settings:
        for name in ("train/003.png", "train/039.png", "heldout/000.png"):
            (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    plain = of_folders(folders, **settings)
    for _ in range(2):
        found = of_folders(folders, tmp_path / "cache", **settings)
        for one in vars(plain).keys() - {"pairs", "hit"}:
            assert getattr(found, one) == getattr(plain, one)
        np.testing.assert_array_equal(found.hit, plain.hit)
        for pair, expected in zip(found.pairs, plain.pairs, strict=True):
            assert pair.names == expected.names
            np.testing.assert_array_equal(pair.images, expected.images)
    assert plain.hits >= 4


def test_killed_decoding_resumes_and_changed_files_are_noticed(folders, tmp_path, monkeypatch):
    decoded, stop = [], 60

    def read(entries, *args):
        if len(decoded) + len(entries) > stop:
            raise KeyboardInterrupt
        decoded.extend(entry.file for entry in entries)
        return read_images(entries, *args)

    monkeypatch.setattr(decoding, "read_images", read)
    with pytest.raises(KeyboardInterrupt):
        of_folders(folders, tmp_path / "cache")
    before, stop = len(decoded), 1000
    assert before > len(GENERATED)
    found = of_folders(folders, tmp_path / "cache")
    files = len(GENERATED) + len(TRAIN) + len(HELDOUT)
    assert len(decoded) == len(set(decoded)) == files
    assert (found.hits, found.threshold) == (compared().hits, compared().threshold)
    of_folders(folders, tmp_path / "cache")
    assert len(decoded) == files
    Image.fromarray(OTHERS[30, :, :, 0]).save(tmp_path / "generated" / "000.png")
    changed = of_folders(folders, tmp_path / "cache")
    assert len(decoded) == files + len(GENERATED)
    assert changed.hits == found.hits - 1


def test_pixels_that_are_lost_are_decoded_again(folders, tmp_path):
    found = of_folders(folders, tmp_path / "cache")
    for path in (tmp_path / "cache").glob("*.pixels"):
        path.write_bytes(path.read_bytes()[:100])
    assert of_folders(folders, tmp_path / "cache")._hits == found._hits


def test_images_of_a_cache_are_not_in_memory(folders, tmp_path):
    how = Reading()
    sets = read_sets(folders, LEAST, how, None, tmp_path / "cache")
    train, heldout = sets["train"].images, sets["heldout"].images
    both = decoding.joined(train, heldout)
    assert all(isinstance(one, np.memmap) for one in (train, heldout, both))
    np.testing.assert_array_equal(both, np.concatenate([TRAIN, HELDOUT]))


GROUPS = {"train": 10 * [*"abcd"], "heldout": [str(i // 2) for i in range(40)] + 80 * ["one"]}


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_a_killed_search_resumes_to_the_same_counts(tmp_path, monkeypatch, groups):
    unseen = np.random.default_rng(1).integers(0, 256, (80, 4, 4, 1), dtype=np.uint8)
    given = {"train": TRAIN, "heldout": np.concatenate([HELDOUT, unseen]), "groups": groups}
    plain, searched = sidepipe.compare(GENERATED, **given), []

    def search(queries, *args, **kwargs):
        if len(searched) == 2:
            raise KeyboardInterrupt
        searched.append(len(queries))
        return comparison.compare(queries, *args, **kwargs)

    monkeypatch.setattr(caching, "QUERIES", 10)
    monkeypatch.setattr(caching, "compare", search)
    with pytest.raises(KeyboardInterrupt):
        sidepipe.compare(GENERATED, **given, cache=tmp_path)
    assert searched == [10, 10]
    searched[:] = [0, 0, 0]  # no further stop
    found = sidepipe.compare(GENERATED, **given, cache=tmp_path)
    assert searched == [0, 0, 0, 5, 1]  # the rest, and one that tells the held-out sets
    assert found._counts == plain._counts
    assert found._hits == plain._hits
    assert [pair.names for pair in found.pairs] == [pair.names for pair in plain.pairs]


def test_parts_of_one_mapped_array_are_joined_as_they_are(tmp_path):
    np.save(tmp_path / "all.npy", TRAIN)
    array = np.load(tmp_path / "all.npy", mmap_mode="r")
    np.testing.assert_array_equal(decoding.joined(array[:9], array[9:]), TRAIN)
    np.testing.assert_array_equal(decoding.joined(array[9:], array[:9])[-9:], TRAIN[:9])
