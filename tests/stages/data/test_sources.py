from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidepipe.stages.data.sources import CelebA, CelebAHQFI, Digits, ImageFolder, read_images

FACES = Path(__file__).parents[3].parent / "shared/data/faces"


def save(file: Path, gray: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), gray).save(file)


def make_celeba(folder: Path, line_end: str = "\n") -> Path:
    for i in range(4):
        save(folder / f"img_align_celeba/00000{i}.jpg", i)
    numbers = [0, 0, 1, 2]
    lines = [f"00000{i}.jpg {number}{line_end}" for i, number in enumerate(numbers)]
    (folder / "list_eval_partition.txt").write_bytes("".join(lines).encode())
    people = [f"00000{i}.jpg {10 * i}{line_end}" for i in range(4)]
    (folder / "identity_CelebA.txt").write_bytes("".join(people).encode())
    return folder


def table(entries) -> list[tuple[str, str, str]]:
    return [(e.id, e.partition, e.identity) for e in entries]


def test_digits_span_the_whole_range_of_bytes():
    entries = Digits().entries()
    assert len(entries) == 1797
    assert len({e.id for e in entries}) == 1797
    images = np.stack([np.asarray(e.read()) for e in entries])
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    steps = [round(i * 255 / 16) for i in range(17)]
    assert np.unique(images).tolist() == steps
    assert table(entries[:3]) == [(f"000{i}", "train", str(i)) for i in range(3)]
    assert Digits().listing() == Digits().listing()


@pytest.mark.parametrize("line_end", ["\n", "\r\n", " \n", "\n\n"])
def test_celeba_is_read_as_its_lists_say_whatever_their_line_ends(tmp_path, line_end):
    entries = CelebA(str(make_celeba(tmp_path, line_end))).entries()
    assert table(entries) == [
        ("000000.jpg", "train", "0"),
        ("000001.jpg", "train", "10"),
        ("000002.jpg", "val", "20"),
        ("000003.jpg", "test", "30"),
    ]
    assert [np.asarray(e.read())[0, 0] for e in entries] == [0, 1, 2, 3]


def test_a_byte_order_mark_belongs_to_no_name(tmp_path):
    file = make_celeba(tmp_path) / "list_eval_partition.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert CelebA(str(tmp_path)).entries()[0].id == "000000.jpg"


def test_celeba_keeps_the_partitions_asked_for(tmp_path):
    folder = str(make_celeba(tmp_path))
    assert [e.id for e in CelebA(folder, ["test", "val"]).entries()] == ["000002.jpg", "000003.jpg"]
    with pytest.raises(ValueError, match=r"data\.source\.partitions does not accept 'tset'.*test"):
        CelebA(folder, ["tset"]).entries()
    with pytest.raises(ValueError, match=r"data\.source\.partitions must be a list as \[train\]"):
        CelebA(folder, "train").entries()  # type: ignore[arg-type]
    (tmp_path / "list_eval_partition.txt").write_text("000000.jpg 0\n")
    with pytest.raises(ValueError, match=r"test images in .*list_eval_partition.*partitions=null"):
        CelebA(folder, ["test"]).entries()


def test_celeba_needs_no_identities(tmp_path):
    (make_celeba(tmp_path) / "identity_CelebA.txt").unlink()
    assert {e.identity for e in CelebA(str(tmp_path)).entries()} == {""}


def test_a_listed_image_that_is_missing_is_an_error_or_skipped(tmp_path):
    (make_celeba(tmp_path) / "img_align_celeba/000001.jpg").unlink()
    entries = CelebA(str(tmp_path)).entries()
    with pytest.raises(ValueError, match=r"000001\.jpg cannot") as error:
        read_images(entries, tmp_path / "images.npy", 8, 1, None, "error")
    for part in ("img_align_celeba/000001.jpg", "list_eval_partition.txt", "on_bad_file=skip"):
        assert part in str(error.value)
    images, kept, skipped, _ = read_images(entries, tmp_path / "images.npy", 8, 1, None, "skip")
    assert skipped == ["000001.jpg"]
    assert [e.id for e in kept] == ["000000.jpg", "000002.jpg", "000003.jpg"]
    assert images[:, 0, 0, 0].tolist() == [0, 2, 3]


def test_an_image_that_no_list_names_is_left_out_and_said(tmp_path, caplog):
    save(make_celeba(tmp_path) / "img_align_celeba/000009.jpg")
    assert len(CelebA(str(tmp_path)).entries()) == 4
    assert "1 images" in caplog.text


def test_celeba_without_its_partition_file_is_an_error_with_a_remedy(tmp_path):
    (make_celeba(tmp_path) / "list_eval_partition.txt").unlink()
    for call in (CelebA(str(tmp_path)).entries, CelebA(str(tmp_path)).listing):
        with pytest.raises(FileNotFoundError, match=r"list_eval_partition\.txt.*data=imagefolder"):
            call()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("000000.jpg 0\n000001.jpg\n", r"line 2 must be '<image> <number>', got '000001\.jpg'"),
        ("000000.jpg 0\n000000.jpg 2\n", r"line 2 repeats 000000\.jpg"),
        ("000000.jpg 3\n", r"0, 1 or 2 for each image, got 3 \(000000\.jpg\)"),
    ],
)
def test_a_malformed_partition_file_is_named_with_the_line(tmp_path, content, message):
    (make_celeba(tmp_path) / "list_eval_partition.txt").write_text(content)
    with pytest.raises(ValueError, match=r"list_eval_partition\.txt.*" + message):
        CelebA(str(tmp_path)).entries()


def test_celeba_hq_fi_takes_partition_and_identity_from_the_folders(tmp_path):
    for name in ("val/9/b.png", "train/12/z.jpg", "train/12/a.jpg", "test/9/c.webp"):
        save(tmp_path / name)
    assert table(CelebAHQFI(str(tmp_path)).entries()) == [
        ("test/9/c.webp", "test", "9"),
        ("train/12/a.jpg", "train", "12"),
        ("train/12/z.jpg", "train", "12"),
        ("val/9/b.png", "val", "9"),
    ]


def test_celeba_hq_fi_maps_the_names_of_splits_and_finds_them_one_folder_too_deep(tmp_path):
    for name in ("set/training/1/a.jpg", "set/valid/9/x.jpg"):
        save(tmp_path / name)
    assert table(CelebAHQFI(str(tmp_path)).entries()) == [
        ("set/training/1/a.jpg", "train", "1"),
        ("set/valid/9/x.jpg", "val", "9"),
    ]


@pytest.mark.parametrize("name", ["x.jpg", "1/x.jpg"])
def test_celeba_hq_fi_without_a_folder_of_a_split_is_refused(tmp_path, name):
    save(tmp_path / name)
    with pytest.raises(ValueError, match="must lie in train/, val/ or test/"):
        CelebAHQFI(str(tmp_path)).entries()
    save(tmp_path / "train/1/a.jpg")
    with pytest.raises(ValueError, match="ambiguous which images belong to the training set"):
        CelebAHQFI(str(tmp_path)).entries()


@pytest.mark.parametrize("name", ["train/x.jpg", "train/9/more/x.jpg"])
def test_celeba_hq_fi_names_an_image_that_lies_elsewhere(tmp_path, name):
    save(tmp_path / "train/1/a.jpg")
    save(tmp_path / name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.") + ".*remedy: move it"):
        CelebAHQFI(str(tmp_path)).entries()


def test_any_folder_is_read_with_partitions_and_identities_where_it_has_them(tmp_path):
    names = ("Test/e.jpg", "heldout/d.jpg", "val/ann/c.jpg", "train/x/y/f.JPG", "train/g.tif")
    for name in names:
        save(tmp_path / name)
    save(tmp_path / ".hidden/h.png")
    save(tmp_path / "._b.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    assert table(ImageFolder(str(tmp_path)).entries()) == [
        ("Test/e.jpg", "test", ""),
        ("heldout/d.jpg", "test", ""),
        ("train/g.tif", "train", ""),
        ("train/x/y/f.JPG", "train", "x/y"),
        ("val/ann/c.jpg", "val", "ann"),
    ]


def test_the_order_depends_on_names_not_on_the_disk(tmp_path):
    names = [f"{i * 7919 % 100}/{i}.png" for i in range(40)]
    for folder, order in (("a", names), ("b", names[::-1])):
        for name in order:
            save(tmp_path / folder / name)
    a, b = (ImageFolder(str(tmp_path / folder)) for folder in "ab")
    assert table(a.entries()) == table(b.entries())
    assert [e.id for e in a.entries()] == sorted(names)
    assert a.listing() == b.listing()


def test_a_link_to_a_folder_is_followed_and_one_to_nowhere_is_a_bad_file(tmp_path):
    save(tmp_path / "elsewhere/a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/test").mkdir()
    (tmp_path / "set/test/gone.png").symlink_to(tmp_path / "nowhere.png")
    source = ImageFolder(str(tmp_path / "set"))
    assert source.listing()
    _, kept, skipped, _ = read_images(source.entries(), tmp_path / "x.npy", 8, 1, None, "skip")
    assert [e.id for e in kept] == ["train/a.png"]
    assert skipped == ["test/gone.png"]


def test_a_file_that_is_no_image_is_a_bad_file(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    (tmp_path / "c.jpg").write_text("<html>404</html>")
    entries = ImageFolder(str(tmp_path)).entries()
    with pytest.raises(ValueError, match=r"b\.png cannot be read: .*remedy.*on_bad_file=skip"):
        read_images(entries, tmp_path / "images.npy", 8, 1, None, "error")
    _, _, skipped, _ = read_images(entries, tmp_path / "images.npy", 8, 1, None, "skip")
    assert skipped == ["b.png", "c.jpg"]


@pytest.mark.parametrize("source", [CelebA, CelebAHQFI, ImageFolder])
def test_a_missing_folder_is_named_with_both_remedies(tmp_path, source):
    missing = source(str(tmp_path / "nowhere"))
    for call in (missing.entries, missing.listing):
        with pytest.raises(FileNotFoundError) as error:
            call()
        for part in (str(tmp_path / "nowhere"), "runtime.data_root=", "data.source.folder="):
            assert part in str(error.value)


@pytest.mark.parametrize("source", [CelebA, CelebAHQFI, ImageFolder])
def test_an_empty_folder_says_which_extensions_count(tmp_path, source):
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "list_eval_partition.txt").touch()
    with pytest.raises(
        ValueError, match=r"holds no images; remedy: .*\(suffixes: .*\.jpeg, .*\.jpg.*\.webp\)"
    ):
        source(str(tmp_path)).entries()


def test_the_listing_differs_once_a_file_is_added_renamed_changed_or_relabeled(tmp_path):
    source = CelebA(str(make_celeba(tmp_path)))
    images, seen = tmp_path / "img_align_celeba", [source.listing()]
    assert seen[0].startswith("4 files, ")
    assert source.listing() == seen[0]
    save(images / "000004.jpg")
    seen.append(source.listing())
    (images / "000004.jpg").rename(images / "000005.jpg")
    seen.append(source.listing())
    with (images / "000005.jpg").open("ab") as file:
        file.write(b"x")
    seen.append(source.listing())
    (tmp_path / "list_eval_partition.txt").write_text("000000.jpg 2\n")
    seen.append(source.listing())
    assert len(set(seen)) == len(seen)


@pytest.mark.skipif(not FACES.is_dir(), reason="the faces are not at hand")
def test_real_faces_in_celebas_layout_are_read(tmp_path):
    entries = CelebA(str(FACES)).entries()
    assert len(entries) == 12792
    assert all(e.identity and not e.problem for e in entries)
    some = entries[::40]
    images, kept, skipped, _ = read_images(some, tmp_path / "images.npy", 32, 1, 148, "error")
    assert images.shape == (320, 32, 32, 1)
    assert kept == some
    assert skipped == []
    assert {e.partition for e in kept} == {"train", "val", "test"}
    expected = some[5].read().resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images[5, :, :, 0], np.asarray(expected))
