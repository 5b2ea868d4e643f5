import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from sidepipe.base import image_files
from sidepipe.base.image_files import in_words, list_images, open_image, printable

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def save(file: Path, kind: str = "PNG") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 100, 50)).save(file, kind)
    return file


def write(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def names(folder: Path) -> list[str]:
    return list(list_images(folder)[0])


@pytest.fixture
def without_plugins(monkeypatch):
    for cached in (image_files.readable_formats, image_files.readable_suffixes):
        cached.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    yield
    for cached in (image_files.readable_formats, image_files.readable_suffixes):
        cached.cache_clear()


def test_an_image_without_a_suffix_or_with_a_wrong_one_is_found_by_its_content(tmp_path):
    save(tmp_path / "0001")
    save(tmp_path / "b.dat", "JPEG")
    save(tmp_path / "c.2021", "WEBP")
    save(tmp_path / "d.png", "JPEG")
    files, others = list_images(tmp_path)
    assert list(files) == ["0001", "b.dat", "c.2021", "d.png"]
    assert not others
    for name, kind in [("0001", "PNG"), ("b.dat", "JPEG"), ("c.2021", "WEBP"), ("d.png", "JPEG")]:
        with open_image(tmp_path / name) as image:
            assert image.format == kind


@pytest.mark.parametrize("suffix", [s for every in image_files.SUFFIXES.values() for s in every])
def test_the_suffix_of_every_readable_format_counts_in_any_case(tmp_path, suffix):
    if suffix not in image_files.readable_suffixes():
        medical = (".dcm", ".dicom", ".nii", ".nii.gz")
        assert suffix in (".heic", ".heif", ".hif", ".jxl", *medical), "Pillow reads all others"
        return
    write(tmp_path / f"a{suffix.upper()}", b"broken, which is for reading to find")
    assert names(tmp_path) == [f"a{suffix.upper()}"]


def test_what_nobody_takes_for_an_image_is_left_out_and_everything_else_is_counted(tmp_path):
    save(tmp_path / "a.png")
    for name in ("notes.txt", "list.CSV", "meta.json", "README.md", "Thumbs.db", "desktop.ini"):
        write(tmp_path / name, b"x")
    for name in (".DS_Store", "._a.png", ".hidden/b.png", "__MACOSX/b.png", "@eaDir/b.png"):
        save(tmp_path / name)
    write(tmp_path / "LICENSE", b"Python Software License")
    write(tmp_path / "empty", b"")
    write(tmp_path / "sub/a.zip", b"PK\3\4")
    write(tmp_path / "a.MP4", b"\0\0\0\x18ftypisom")
    write(tmp_path / "scans.pdf", b"%PDF-1.7")
    write(tmp_path / "images.db", b"SQLite format 3\0")
    write(tmp_path / "photo.of a friend", b"x")
    write(tmp_path / "bmw", b"BMW makes cars, and this is text")
    files, others = list_images(tmp_path)
    assert list(files) == ["a.png"]
    assert others == {"without suffix": 4, ".zip": 1, ".mp4": 1, ".pdf": 1, ".db": 1}
    said = "8 files are not read: 4 without suffix, 1 .db, 1 .mp4, 1 .pdf, 1 .zip"
    assert in_words(others) == said


def test_arrays_are_images_unless_they_are_next_to_pictures(tmp_path):
    for name in ("a.npy", "sub/b.npz"):
        write(tmp_path / name, b"broken, which is for reading to find")
    assert names(tmp_path) == ["a.npy", "sub/b.npz"]
    save(tmp_path / "c.png")
    files, others = list_images(tmp_path)
    assert (list(files), others) == (["c.png"], {".npy": 1, ".npz": 1})


def test_an_array_stands_for_a_folder(tmp_path):
    for name in ("a.npy", "b.npy"):
        write(tmp_path / name, b"x")
    assert names(tmp_path / "b.npy") == ["b.npy"]


@pytest.mark.usefixtures("without_plugins")
def test_formats_of_plugins_are_counted_with_the_package_that_reads_them(tmp_path):
    save(tmp_path / "a.png")
    for i in range(10):
        write(tmp_path / f"{i}.HEIC", HEIC)
    write(tmp_path / "photo", HEIC)
    write(tmp_path / "x.jxl", b"\xff\x0a....")
    others = list_images(tmp_path)[1]
    assert others == {
        ".heic (HEIF, which needs pillow-heif)": 10,
        "without suffix (HEIF, which needs pillow-heif)": 1,
        ".jxl (JXL, which needs pillow-jxl-plugin)": 1,
    }
    assert in_words(others).startswith("12 files are not read: 10 .heic (HEIF, which needs pillow")
    with pytest.raises(
        UnidentifiedImageError, match="its content is HEIF, which needs pillow-heif"
    ):
        open_image(write(tmp_path / "wrong.jpg", HEIC))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "no image format begins with b'<html>404</html>'"),
        (b"\x89PNG\r\n\x1a\n", "its content is broken PNG"),
    ],
)
def test_an_image_that_cannot_be_opened_is_named_by_what_it_holds(tmp_path, content, message):
    with pytest.raises(UnidentifiedImageError, match=message):
        open_image(write(tmp_path / "a.jpg", content))


def test_too_many_pixels_are_an_error_before_they_are_decoded(tmp_path):
    for side in (10_000, 24_000):  # Pillow warns of the first, and refuses the second
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        chunks += struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
        file = write(tmp_path / f"{side}.png", b"\x89PNG\r\n\x1a\n" + chunks)
        with pytest.raises(ValueError, match="more than 89,478,485 pixels; remedy: make it small"):
            open_image(file)


def test_a_link_to_a_folder_above_is_skipped_and_named(tmp_path, caplog):
    save(tmp_path / "set/a/x.png")
    (tmp_path / "set/a/self").symlink_to(tmp_path / "set/a")
    (tmp_path / "set/a/up").symlink_to("..")
    (tmp_path / "set/out").symlink_to("../..")
    (tmp_path / "set/loop").symlink_to("loop")
    assert names(tmp_path / "set") == ["a/x.png"]
    for link in ("a/self", "a/up", "out"):
        assert f"{tmp_path}/set/{link} is skipped: it is a link to" in caplog.text


@pytest.mark.parametrize("target", ["a", "a/inner"])
def test_a_link_to_a_folder_that_is_listed_anyway_would_count_its_images_twice(tmp_path, target):
    save(tmp_path / "a/inner/x.png")
    (tmp_path / "z").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=rf"{target} and .*z are one folder; remedy: remove the l"):
        list_images(tmp_path)


def test_two_links_to_one_folder_elsewhere_are_refused_and_one_is_followed(tmp_path):
    save(tmp_path / "elsewhere/in/x.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "set") == ["train/in/x.png"]
    (tmp_path / "set/test").symlink_to(tmp_path / "elsewhere/in")
    with pytest.raises(ValueError, match="are one folder"):
        list_images(tmp_path / "set")


def test_a_link_into_a_hidden_folder_is_followed(tmp_path):
    save(tmp_path / ".store/1/x.png")
    (tmp_path / "train").symlink_to(".store/1")
    assert names(tmp_path) == ["train/x.png"]


def test_a_folder_that_must_not_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    save(tmp_path / "a/x.png")
    (tmp_path / "b").mkdir()

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    scan = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match=r"/b cannot be listed: Permission denied; remedy"):
        list_images(tmp_path)


def test_pipes_are_counted_and_never_waited_for(tmp_path):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert list_images(tmp_path)[1] == {"no regular file": 1}


def test_a_name_that_is_not_utf_8_is_listed_and_can_be_printed(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    save(tmp_path / "plain.png").rename(os.fsdecode(raw))
    (name,) = names(tmp_path)
    assert printable(name) == r"caf\xe9.png"
    assert printable("gr\u00fcn.png") == "gr\u00fcn.png"
    with open_image(tmp_path / name) as image:
        assert image.size == (8, 8)
