"""Files are whole or absent, and a full disk is named; /dev/full stands for one."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from sidepipe.base.files import CannotWrite, cannot_write, gigabytes, is_disk_full, whole_file
from sidepipe.base.image_reading import Entry, read_images
from sidepipe.base.images import save_grid
from sidepipe.engine import resuming, shards
from sidepipe.engine.checkpoints import CheckpointByRename
from sidepipe.stages.reference import encoding

FULL = Path("/dev/full")


@pytest.fixture
def full_disk(monkeypatch):
    """Makes every file that is written under a temporary name lie on a full device."""
    if not FULL.exists() or not stat.S_ISCHR(FULL.stat().st_mode):
        pytest.skip("there is no /dev/full")
    open_file = Path.open

    def opened(path, mode="r", *args, **options):
        on_it = path.suffix == ".tmp" and "w" in mode
        return open_file(FULL if on_it else path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", opened)


def test_bytes_are_given_in_gigabytes():
    assert gigabytes(1_234_500_000_000) == "1,234.500 GB"
    assert gigabytes(999_499) == "0.001 GB"


def test_the_file_appears_once_the_block_has_ended(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), whole_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


IMAGES = np.zeros((500, 8, 8, 1), np.uint8)
WRITES = {
    "shards/000003.npy": lambda folder: shards.write_shard(folder, 3, IMAGES),
    "last.ckpt": lambda folder: CheckpointByRename().save_checkpoint(
        {"weight": torch.zeros(10**5)}, folder / "last.ckpt"
    ),
    "preview.png": lambda folder: save_grid(folder / "preview.png", IMAGES),
    "images.npy": lambda folder: read_images(
        [Entry("a", "train", "", lambda: Image.new("L", (8, 8)), "/somewhere/a")] * 500,
        folder / "images.npy",
        *(8, 1, None, "error"),
    ),
    "train.npy": lambda folder: encoding._write_unknown(folder / "train.npy", 1000, 64),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_names_the_file_and_the_same_write_succeeds_later(
    tmp_path, full_disk, monkeypatch, name
):
    with pytest.raises(CannotWrite) as raised:
        WRITES[name](tmp_path)
    message = str(raised.value)
    assert message.startswith(
        f"{tmp_path / name} cannot be written: its disk or your quota is full"
    )
    assert message.endswith("; remedy: free space and run the same command again, which resumes")
    assert "\n" not in message
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.undo()
    WRITES[name](tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / name]


def test_a_part_that_does_not_fit_is_named(tmp_path, monkeypatch):
    words = "Error while serializing: I/O error: No space left on device (os error 28)"

    def full(arrays, path):
        save_file({"half": arrays["x"][:1]}, path)
        raise RuntimeError(words)  # as safetensors, whose errors have no number

    monkeypatch.setattr(resuming, "save_file", full)

    def make(items):
        return {"x": np.array(items)}

    with pytest.raises(CannotWrite, match=r"0000000-0000004\.safetensors cannot be written"):
        resuming.in_parts(tmp_path, 6, 4, make, "item")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    np.testing.assert_array_equal(resuming.in_parts(tmp_path, 6, 4, make, "item")["x"], range(6))


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704"), True),
        (RuntimeError("-- Process 1 ...\nOSError: [Errno 28] No space left on device"), True),
        (OSError(2, "No such file or directory"), False),
        (ValueError("the loss is nan"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error, full):
    assert is_disk_full(error) == full


def test_an_error_that_names_its_file_is_kept(tmp_path):
    first = cannot_write(tmp_path / "a", OSError(os.strerror(28)))
    assert cannot_write(tmp_path, first) is first
