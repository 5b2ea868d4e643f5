"""Every row of the table of arrays in docs/reading-images.md, written, listed and read."""

import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sidepipe
from sidepipe.base.image_arrays import kept
from sidepipe.base.image_reading import read_images
from sidepipe.base.image_stacks import images_in
from sidepipe.stages.data.sources import ImageFolder

DOC = Path(__file__).parents[2] / "docs/reading-images.md"
RNG = np.random.default_rng(0)
MANY = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
GRAY = MANY[..., 0]
CLEAR = np.concatenate([MANY, np.zeros((5, 8, 8, 1), np.uint8)], axis=3)


def as_rgb(gray):
    return np.repeat(gray[..., None], 3, axis=-1)


# By row of the table: the arrays of the file, and the RGB images that are read, or the error.
MADE = {
    "uint8 (h, w) or (h, w, 1)": [
        (GRAY[0], as_rgb(GRAY[:1])),
        (GRAY[0, ..., None], as_rgb(GRAY[:1])),
    ],
    "uint8 (h, w, 3)": [(MANY[0], MANY[:1])],
    "uint8 (h, w, 4)": [(CLEAR[0], np.full((1, 8, 8, 3), 255))],
    "uint8 (n, h, w)": [(GRAY, as_rgb(GRAY))],
    "uint8 (n, h, w, c) with c of 1, 3 or 4": [
        (MANY, MANY),
        (GRAY[..., None], as_rgb(GRAY)),
        (CLEAR, np.full((5, 8, 8, 3), 255)),
    ],
    "uint16": [(GRAY.astype(np.uint16) * 257 + 100, as_rgb(GRAY))],
    "bool": [(GRAY > 100, as_rgb(255 * (GRAY > 100)))],
    "several arrays in one .npz": [
        ({"a": MANY[0], "labels": np.arange(2), "b": MANY[1]}, MANY[:2]),
        ({"images": MANY, "labels": np.arange(5)}, MANY),
    ],
    "several arrays of many images in one .npz": [
        ({"train": MANY[:2], "test": MANY[2:]}, r"got 'train \(2\), test \(3\)'; save the array"),
        ({"a": MANY, "b": MANY[0]}, r"got 'a \(5\), b \(1\)'"),
    ],
    "(n, c, h, w) or (c, h, w)": [
        (MANY.transpose(0, 3, 1, 2), r"must be \(h, w\), .* got \(5, 3, 8, 8\); x\.transpose"),
        (MANY[0].transpose(2, 0, 1), r"must be \(h, w\), .* got \(3, 8, 8\)"),
    ],
    "floating point, other integers": [
        (MANY / 255, "must be uint8, uint16 or bool, got 'float64'; save levels of 0 to 255"),
        (MANY.astype(np.int32), "got 'int32'"),
    ],
    "Python objects": [
        (np.array([{}, {}], dtype=object), "it holds no array of numbers, or is cut off"),
    ],
}


def rows(heading):
    section = DOC.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    return [row for row in found if row[0] not in ("array", "file")]


def test_the_table_has_a_row_for_each_kind_that_is_tried_and_no_other():
    assert [kind for kind, _ in rows("Arrays")] == list(MADE)


def written(path, arrays):
    if isinstance(arrays, dict):
        np.savez(path.with_suffix(".npz"), **arrays)
    else:
        np.save(path.with_suffix(".npy"), arrays)


@pytest.mark.parametrize(
    ("kind", "arrays", "expected"),
    [(kind, *case) for kind, cases in MADE.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) and "(" in value else "",
)
def test_each_row_of_the_table_is_true(tmp_path, kind, arrays, expected):
    written(tmp_path / "x", arrays)
    entries = ImageFolder(str(tmp_path)).entries()
    said = dict(rows("Arrays"))[kind]
    if isinstance(expected, str):
        assert said.startswith("error")
        with pytest.raises(ValueError, match=rf"x\.np[yz] cannot be read: .*{expected}"):
            read_images(entries, tmp_path / "out.npy", 8, 3, None, "error")
        return
    assert not said.startswith("error")
    images, *_ = read_images(entries, tmp_path / "out" / "images.npy", 8, 3, None, "error")
    np.testing.assert_array_equal(images, expected)


@pytest.fixture(autouse=True)
def out(tmp_path):
    (tmp_path / "out").mkdir()


def test_images_are_named_by_file_and_place(tmp_path):
    np.savez(tmp_path / "x.npz", MANY)
    np.savez(tmp_path / "y.npz", a=MANY[1], b=MANY[0])
    names = [entry.id for entry in ImageFolder(str(tmp_path)).entries()]
    assert names[:2] == ["x.npz[0]", "x.npz[1]"]
    assert names[5:] == ["y.npz[a]", "y.npz[b]"]


def test_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    np.save(tmp_path / "x.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "y.npz", np.array([Bomb()], dtype=object))
    for file in ("x.npy", "y.npz"):
        with pytest.raises(ValueError, match="it holds no array of numbers"):
            images_in(str(tmp_path / file))
    for file in ("z.npy", "z.npz"):  # NumPy's own message proposes to load it
        (tmp_path / file).write_bytes(pickle.dumps([Bomb()]))
        with pytest.raises(ValueError, match="it holds no array of numbers") as error:
            images_in(str(tmp_path / file))
        assert "unsafely" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_a_cut_off_file_is_named(tmp_path):
    np.save(tmp_path / "x.npy", MANY)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"x\.npy cannot be read"):
        read_images(ImageFolder(str(tmp_path)).entries(), tmp_path / "out.npy", 8, 3, None, "error")


def test_a_file_stands_for_a_folder_and_a_changed_file_is_read_again(tmp_path):
    train, heldout = (RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8) for _ in range(2))
    np.save(tmp_path / "train.npy", train)
    np.savez(tmp_path / "generated.npz", train[:20])
    folder = tmp_path / "heldout"
    folder.mkdir()
    for i, image in enumerate(heldout):
        Image.fromarray(image).save(folder / f"{i}.png")

    def compared():
        return sidepipe.compare(
            tmp_path / "generated.npz", train=str(tmp_path / "train.npy"), heldout=folder
        )

    found = compared()
    assert found.hits == found.unique == 20
    assert found.pairs[0].names[:2] == ("generated.npz[0]", "train.npy[0]")
    np.savez(tmp_path / "generated.npz", heldout[:20])
    assert compared().hits == 0


REFUSED = [
    (arrays, error) for cases in MADE.values() for arrays, error in cases if isinstance(error, str)
]


@pytest.mark.parametrize(("arrays", "error"), [*REFUSED, (MANY[None], r"got \(1, 5, 8, 8, 3\)")])
@pytest.mark.parametrize("name", ["generated", "train", "heldout"])
@pytest.mark.parametrize("on_bad_file", ["error", "skip"])
@pytest.mark.parametrize("place", ["", "x.npy"])
def test_compare_names_a_wrong_array_and_not_the_number_of_images(
    tmp_path, arrays, error, name, on_bad_file, place
):
    """As a file, and as the only file of a folder."""
    written(tmp_path / "x", arrays)
    (tmp_path / "out").rmdir()
    place = place and next(path.name for path in tmp_path.iterdir())
    images = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    sets = {"generated": images, "train": images, "heldout": images, name: tmp_path / place}
    with pytest.raises(ValueError, match=rf"^{name}: .*x\.np[yz] cannot be read: .*{error}"):
        sidepipe.compare(sets.pop("generated"), **sets, on_bad_file=on_bad_file)


def test_compare_counts_the_images_that_can_be_read(tmp_path):
    for i, image in enumerate(RNG.integers(0, 256, (19, 8, 8), dtype=np.uint8)):
        np.save(tmp_path / f"{i}.npy", image)
    np.save(tmp_path / "x.npy", MANY / 255)
    with pytest.raises(ValueError, match="generated must be >= 20 images, got 19"):
        sidepipe.compare(tmp_path, train=MANY, heldout=MANY, on_bad_file="skip")


def test_many_threads_load_a_file_once(tmp_path):
    loads = []

    @kept
    def load(file):
        time.sleep(0.02)
        loads.append(file)
        return file

    (tmp_path / "x").write_bytes(b"x")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(load, [str(tmp_path / "x")] * 20)) == [str(tmp_path / "x")] * 20
    assert len(loads) == 1
