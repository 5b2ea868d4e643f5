import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sidepipe.stages.data.cifar10 import BATCHES, CIFAR10, CLASSES

ROWS = 4


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def python2_pickle(
    pixels: np.ndarray, labels: list[int], package: str = "numpy.core", fortran: bool = False
) -> bytes:
    """A batch as Python 2 and the NumPy of its day wrote it, opcode by opcode."""
    raw = pixels.tobytes(order="F" if fortran else "C")
    rows, columns = (struct.pack("<H", n) for n in pixels.shape)
    array = b"".join(
        [
            f"c{package}.multiarray\n_reconstruct\n".encode(),
            b"cnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R",  # (ndarray, (0,), "b")
            b"(K\x01M" + rows + b"M" + columns + b"\x86",  # version 1, shape
            b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R",
            b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x88" if fortran else b"\x89",
            b"T" + struct.pack("<i", len(raw)) + raw + b"tb",
        ]
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = text("batch_label") + text("batch") + text("labels") + numbers + text("data") + array
    return b"\x80\x02}(" + items + b"u."


def images_of(batch: int) -> tuple[np.ndarray, list[int]]:
    pixels = np.random.default_rng(batch).integers(0, 256, (ROWS, 3072), dtype=np.uint8)
    return pixels, [(batch + i) % 10 for i in range(ROWS)]


def python_files(**options) -> dict[str, bytes]:
    return {name: python2_pickle(*images_of(b), **options) for b, name in enumerate(BATCHES)}


def binary_files() -> dict[str, bytes]:
    files = {}
    for batch, name in enumerate(BATCHES):
        pixels, labels = images_of(batch)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
        files[f"{name}.bin"] = records.tobytes()
    return files


def lay_out(folder: Path, form: str, files: dict[str, bytes]) -> CIFAR10:
    inner = {"cifar-10-python.tar.gz": "cifar-10-batches-py"}.get(form, "cifar-10-batches-bin")
    if form.endswith(".tar.gz"):
        with tarfile.open(folder / form, "w:gz") as archive:
            for name, content in reversed(files.items()):  # the archive's order is not ours
                member = tarfile.TarInfo(f"{inner}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        (folder / form).mkdir()
        for name, content in files.items():
            (folder / form / name).write_bytes(content)
    return CIFAR10(str(folder))


FORMS = {
    "cifar-10-batches-py": python_files,
    "cifar-10-batches-bin": binary_files,
    "cifar-10-python.tar.gz": python_files,
    "cifar-10-binary.tar.gz": binary_files,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_cifar10_gives_the_same_images(tmp_path, form):
    entries = lay_out(tmp_path, form, FORMS[form]()).entries()
    assert len(entries) == 6 * ROWS
    assert entries[0].id == "data_batch_1/00000"
    assert [e.partition for e in entries] == ["train"] * 5 * ROWS + ["test"] * ROWS
    for i, entry in enumerate(entries):
        pixels, labels = images_of(i // ROWS)
        planes = pixels[i % ROWS].reshape(3, 32, 32)  # red, green, blue
        np.testing.assert_array_equal(np.asarray(entry.read()).transpose(2, 0, 1), planes)
        assert entry.identity == CLASSES[labels[i % ROWS]]


def test_our_python2_pickle_is_one_for_numpy_too():
    # The oracle of this file's writer: NumPy's own reading of it.
    pixels, labels = images_of(0)
    for fortran in (False, True):
        batch = pickle.loads(
            python2_pickle(pixels, labels, "numpy._core", fortran), encoding="bytes"
        )
        np.testing.assert_array_equal(batch[b"data"], pixels)
        assert batch[b"labels"] == labels


@pytest.mark.parametrize("options", [{"package": "numpy._core"}, {"fortran": True}])
def test_both_names_of_numpy_core_and_both_orders_are_read(tmp_path, options):
    entries = lay_out(tmp_path, "cifar-10-batches-py", python_files(**options)).entries()
    first = images_of(0)[0][0].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(entries[0].read()), first)


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["cifar-10-batches-py", "cifar-10-python.tar.gz"])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, protocol, form):
    trace = tmp_path / "trace"
    attack = pickle.dumps({"data": Malicious(f"touch {trace}")}, protocol=protocol)
    source = lay_out(tmp_path, form, {**python_files(), "data_batch_3": attack})
    with pytest.raises(ValueError, match=r"data_batch_3.*system.*nothing in it was executed"):
        source.entries()
    assert not trace.exists()
    pickle.loads(attack)  # it would have worked
    assert trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("builtins\neval", "__builtin__\neval", "builtins\ngetattr", "numpy\nload"),
        *("numpy\ndtype.__class__", "numpy.core.multiarray\n__loader__", "copyreg\n_reconstructor"),
    ],
)
def test_every_name_but_the_three_is_refused(tmp_path, name):
    attack = b"\x80\x02c" + name.encode() + b"\n."
    source = lay_out(tmp_path, "cifar-10-batches-py", {**python_files(), "data_batch_1": attack})
    with pytest.raises(ValueError, match="it names " + name.replace("\n", r"\.")):
        source.entries()


def broken_files() -> dict[str, tuple[bytes, str]]:
    pixels, labels = images_of(0)
    good = python2_pickle(pixels, labels)
    return {
        "truncated": (good[:500], "truncated"),
        "empty": (b"", "EOFError"),
        "not a pickle": (b"<html>404</html>", "UnpicklingError"),
        "other keys": (pickle.dumps({"x": 1}, protocol=2), "KeyError: b'data'"),
        "no dictionary": (pickle.dumps([1, 2], protocol=2), "TypeError"),
        "float pixels": (good.replace(b"U\x02u1", b"U\x02f8"), "dtype u1"),
        "too few labels": (python2_pickle(pixels, labels[:-1]), r"must be \(3, 3072\)"),
        "an eleventh class": (python2_pickle(pixels, [0, 1, 2, 10]), "0 to 9, got 10"),
    }


@pytest.mark.parametrize("kind", broken_files())
def test_a_broken_python_batch_is_named_with_the_remedy(tmp_path, kind):
    content, reason = broken_files()[kind]
    source = lay_out(tmp_path, "cifar-10-batches-py", {**python_files(), "data_batch_2": content})
    with pytest.raises(ValueError, match=f"data_batch_2: .*{reason}.*remedy: download") as error:
        source.entries()
    assert str(tmp_path / "cifar-10-batches-py") in str(error.value)


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes(3074)])
def test_a_broken_binary_batch_is_named_with_the_remedy(tmp_path, content):
    files = {**binary_files(), "test_batch.bin": content}
    with pytest.raises(ValueError, match=r"test_batch\.bin: .*multiple of 3073.*remedy: download"):
        lay_out(tmp_path, "cifar-10-batches-bin", files).entries()


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_batch_is_named(tmp_path, form):
    files = {name: c for name, c in FORMS[form]().items() if not name.startswith("data_batch_4")}
    with pytest.raises(ValueError, match=r"data_batch_4(\.bin)? is missing; remedy: download"):
        lay_out(tmp_path, form, files).entries()


def test_a_broken_archive_is_named_with_the_remedy(tmp_path):
    source = lay_out(tmp_path, "cifar-10-python.tar.gz", python_files())
    archive = tmp_path / "cifar-10-python.tar.gz"
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
    for content in (whole[: len(whole) // 2], bytes(flipped), b"<html>404</html>", b""):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz cannot be read.*download"):
            source.entries()


def test_a_folder_without_cifar10_is_an_error_that_names_what_it_may_hold(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python\.tar\.gz.*data\.source\.folder"):
        CIFAR10(str(tmp_path)).entries()
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder.*runtime\.data_root"):
        CIFAR10(str(tmp_path / "nowhere")).entries()


@pytest.mark.parametrize("form", FORMS)
def test_the_listing_differs_once_a_file_does(tmp_path, form):
    source = lay_out(tmp_path, form, FORMS[form]())
    before = source.listing()
    assert source.listing() == before
    file = tmp_path / form if form.endswith(".gz") else next((tmp_path / form).glob("test_batch*"))
    file.write_bytes(file.read_bytes() + b"more")
    assert source.listing() != before
