import codecs
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidepipe.stages.data import celeba_files
from sidepipe.stages.data.celeba_files import read_pairs
from sidepipe.stages.data.sources import CelebA
from sidepipe.stages.original.attributes import read_attributes

NAMES = [f"00000{i}.jpg" for i in range(1, 5)]
PARTITIONS = "".join(f"{name} {number}\n" for name, number in zip(NAMES, "0012", strict=True))
PEOPLE = "".join(f"{name} {i}\n" for i, name in enumerate(NAMES))
EXPECTED = [
    ("000001.jpg", "train", "0"),
    ("000002.jpg", "train", "1"),
    ("000003.jpg", "val", "2"),
    ("000004.jpg", "test", "3"),
]


def images(folder: Path, suffix: str = ".jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(NAMES):
        kind = "PNG" if suffix.lower() == ".png" else "JPEG"
        Image.new("L", (8, 8), 10 * i).save(folder / f"{Path(name).stem}{suffix}", kind)
    return folder


def lists(folder: Path, partitions: str = ".", people: str = ".") -> Path:
    for inner, name, text in (
        (partitions, "list_eval_partition.txt", PARTITIONS),
        (people, "identity_CelebA.txt", PEOPLE),
    ):
        (folder / inner).mkdir(parents=True, exist_ok=True)
        (folder / inner / name).write_text(text)
    return folder


def found(folder: Path) -> list[tuple[str, str, str]]:
    """Id, partition and identity of each entry, whose pixels must be its own."""
    entries = CelebA(str(folder)).entries()
    assert not any(entry.problem for entry in entries)
    grays = [int(np.asarray(entry.read())[0, 0]) for entry in entries]
    assert grays == pytest.approx([10 * (int(entry.id[:6]) - 1) for entry in entries], abs=1)
    assert CelebA(str(folder)).listing().startswith(f"{len(entries)} files")
    return [(entry.id, entry.partition, entry.identity) for entry in entries]


@pytest.mark.parametrize(
    ("place", "suffix"),
    [
        ("img_align_celeba", ".jpg"),
        ("img_align_celeba", ".JPG"),
        ("img_align_celeba", ".png"),
        ("img_align_celeba/img_align_celeba", ".jpg"),
        ("img_align_celeba_png", ".png"),
        ("img_align_celeba_png/img_align_celeba_png", ".PNG"),
        ("Img/img_align_celeba", ".jpg"),
        ("Img/img_align_celeba_png", ".png"),
        ("celeba/img_align_celeba/img_align_celeba", ".jpg"),
        ("IMG_ALIGN_CELEBA", ".jpg"),
    ],
)
def test_the_images_are_found_in_every_edition_with_the_list_s_names(tmp_path, place, suffix):
    images(lists(tmp_path) / place, suffix)
    assert found(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("partitions", "people"), [("Eval", "Anno"), ("celeba/Eval", "celeba/Anno"), (".", "Anno")]
)
def test_the_lists_are_found_in_the_official_folders(tmp_path, partitions, people):
    images(lists(tmp_path, partitions, people) / "Img/img_align_celeba")
    assert found(tmp_path) == EXPECTED


def test_kaggle_s_lists_with_commas_and_a_header_are_read(tmp_path):
    images(tmp_path / "img_align_celeba/img_align_celeba")
    text = "image_id,partition\n" + PARTITIONS.replace(" ", ",")
    (tmp_path / "list_eval_partition.csv").write_text(text)
    assert found(tmp_path) == [(*entry[:2], "") for entry in EXPECTED]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lists_in_every_encoding_that_names_itself_are_read(tmp_path, encoding, line_end):
    images(lists(tmp_path) / "img_align_celeba")
    for file in tmp_path.glob("*.txt"):
        file.write_bytes(file.read_text().replace("\n", line_end).encode(encoding))
    assert found(tmp_path) == EXPECTED


def test_a_list_in_another_encoding_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(PARTITIONS.encode("utf-16")[len(codecs.BOM_UTF16_LE) :])
    with pytest.raises(ValueError, match=r"list\.txt line 1 holds a NUL character"):
        read_pairs(file)


def test_a_folder_of_many_images_is_not_searched_for_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(celeba_files, "MANY", 3)
    folder = images(lists(tmp_path) / "img_align_celeba")
    (folder / "list_eval_partition.txt").write_text("000001.jpg 2\n")
    assert found(tmp_path) == EXPECTED


def test_the_edition_in_the_plain_folder_comes_before_the_other(tmp_path):
    images(lists(tmp_path) / "img_align_celeba")
    images(tmp_path / "img_align_celeba_png", ".png")
    assert CelebA(str(tmp_path)).entries()[0].file.endswith("img_align_celeba/000001.jpg")


def test_editions_that_nothing_tells_apart_are_refused(tmp_path):
    images(lists(tmp_path) / "a/img_align_celeba")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match=r"may lie in .*a/img_align_celeba or .*b/img_align_cel"):
        CelebA(str(tmp_path)).entries()
    images(tmp_path / "img_align_celeba")
    (tmp_path / "list_eval_partition.txt").rename(tmp_path / "a/list_eval_partition.txt")
    shutil.copy(tmp_path / "a/list_eval_partition.txt", tmp_path / "b")
    with pytest.raises(ValueError, match=r"list may be .*a/list_eval.* or .*b/list_eval_partition"):
        CelebA(str(tmp_path)).entries()


@pytest.mark.parametrize("name", ["img_align_celeba.zip", "img_celeba.7z"])
def test_where_the_images_are_missing_the_message_says_what_was_found_instead(tmp_path, name):
    (lists(tmp_path) / name).touch()
    message = f"folder img_align_celeba/, found were identity_CelebA.txt, {name}, list.*unzip"
    for call in (CelebA(str(tmp_path)).entries, CelebA(str(tmp_path)).listing):
        with pytest.raises(FileNotFoundError, match=message):
            call()


def test_where_the_partitions_are_missing_the_message_says_what_was_found_instead(tmp_path):
    images(tmp_path / "img_align_celeba")
    (tmp_path / "list_eval_partition.txt.gz").touch()
    with pytest.raises(
        FileNotFoundError, match=r"found were img_align_celeba/, list_eval_part.*gz"
    ):
        CelebA(str(tmp_path)).entries()


def test_images_of_other_names_than_the_list_s_are_refused_with_an_example(tmp_path):
    (lists(tmp_path) / "img_align_celeba").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "img_align_celeba/face1.png")
    with pytest.raises(
        ValueError, match=r"none of the images that .*partition.txt lists.*face1.png"
    ):
        CelebA(str(tmp_path)).entries()


def test_an_image_that_could_be_two_files_is_refused(tmp_path):
    images(lists(tmp_path) / "img_align_celeba", ".png")
    images(tmp_path / "img_align_celeba", ".JPG")
    with pytest.raises(ValueError, match=r"000001\.jpg of .* may be 000001\.JPG or 000001\.png"):
        CelebA(str(tmp_path)).entries()


ATTRIBUTES = "2\nMale Smiling \n000001.jpg  1 -1\n000002.jpg -1  1\n"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("list_attr_celeba.txt", ATTRIBUTES),
        ("Anno/list_attr_celeba.txt", ATTRIBUTES),
        ("list_attr_celeba.csv", "image_id,Male,Smiling\n000001.jpg,1,-1\n000002.jpg,-1,1\n"),
        ("list_attr_celeba.txt", ATTRIBUTES.replace("\n", "\r\n")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_attributes_are_read_from_every_edition_of_their_list(tmp_path, place, text, encoding):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(text.encode(encoding))
    has = read_attributes(
        tmp_path / "list_attr_celeba.txt", ["Smiling", "Male"], ["000002.jpg", "000001.jpg"]
    )
    assert has.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("row", ["000003.jpg 1", "000003.jpg 1 1 1", "000003.jpg 1 yes"])
def test_a_row_of_attributes_of_another_form_is_named_with_its_line(tmp_path, row):
    (tmp_path / "a.txt").write_text(ATTRIBUTES + row + "\n")
    with pytest.raises(ValueError, match=r"a\.txt line 5 must give 1 or -1 for each of 2"):
        read_attributes(tmp_path / "a.txt", ["Male"], ["000001.jpg"])
