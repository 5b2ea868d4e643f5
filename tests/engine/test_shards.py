import os
import shutil
import threading

import numpy as np
import pytest

from sidepipe.engine import shards

SHAPE = (2, 3, 1)


def images_of(indices):
    """Images that say which they are."""
    indices = np.asarray(list(indices), np.uint8)
    return np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 3, 1)).copy()


def write_all(folder, num_images, shard_size, numbers):
    ranges = shards.shard_ranges(num_images, shard_size)
    for shard in numbers:
        shards.write_shard(folder, shard, images_of(ranges[shard]))


@pytest.mark.parametrize(("num_images", "shard_size"), [(10, 4), (8, 4), (3, 4), (1, 1), (5, 5)])
def test_shards_hold_every_image_once_in_order(num_images, shard_size):
    ranges = shards.shard_ranges(num_images, shard_size)
    assert [i for indices in ranges for i in indices] == list(range(num_images))
    assert all(len(indices) == shard_size for indices in ranges[:-1])
    assert 1 <= len(ranges[-1]) <= shard_size


def test_images_come_back_in_index_order_whatever_the_order_of_writing(tmp_path):
    write_all(tmp_path, 250, 20, reversed(range(13)))
    images = shards.load_shards(tmp_path)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, images_of(range(250)))


def test_missing_shards_are_those_not_written(tmp_path):
    assert shards.missing_shards(tmp_path, 10, 4, SHAPE) == [0, 1, 2]
    write_all(tmp_path, 10, 4, [1])
    assert shards.missing_shards(tmp_path, 10, 4, SHAPE) == [0, 2]
    write_all(tmp_path, 10, 4, [0, 2])
    assert shards.missing_shards(tmp_path, 10, 4, SHAPE) == []


def test_a_shard_whose_writing_broke_off_is_missing_and_never_read(tmp_path, monkeypatch):
    write_all(tmp_path, 8, 4, [0])
    save = np.save

    def broken_save(file, array):
        save(file, array[:2])
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", broken_save)
    with pytest.raises(OSError, match="disk full"):
        shards.write_shard(tmp_path, 1, images_of(range(4, 8)))
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["000000.npy"]
    assert shards.missing_shards(tmp_path, 8, 4, SHAPE) == [1]
    np.testing.assert_array_equal(shards.load_shards(tmp_path), images_of(range(4)))
    write_all(tmp_path, 8, 4, [1])
    np.testing.assert_array_equal(shards.load_shards(tmp_path), images_of(range(8)))


def test_a_shard_appears_only_once_it_is_whole(tmp_path, monkeypatch):
    """Where its name appears, every byte is there: it is renamed, not written in place."""
    seen_while_saving = []
    save = np.save

    def watching_save(file, array):
        save(file, array)
        seen_while_saving.append(shards.shard_path(tmp_path, 0).exists())

    monkeypatch.setattr(np, "save", watching_save)
    shards.write_shard(tmp_path, 0, images_of(range(4)))
    assert seen_while_saving == [False]
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["000000.npy"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: np.save(path, np.load(path)[:2]),
        lambda path: np.save(path, np.zeros((4, 2, 2, 1), np.uint8)),
        lambda path: np.save(path, np.zeros((4, *SHAPE), np.float32)),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"\0" * 200),
    ],
    ids=["fewer images", "other size", "other type", "cut short", "empty", "zeros"],
)
def test_a_shard_that_is_not_what_it_should_be_is_missing_with_a_warning(tmp_path, caplog, damage):
    write_all(tmp_path, 10, 4, [0, 1])
    damage(shards.shard_path(tmp_path, 1))
    assert shards.missing_shards(tmp_path, 10, 4, SHAPE) == [1, 2]
    (said,) = [record.message for record in caplog.records]
    assert str(shards.shard_path(tmp_path, 1)) in said
    assert "made again" in said
    write_all(tmp_path, 10, 4, [1, 2])
    np.testing.assert_array_equal(shards.load_shards(tmp_path), images_of(range(10)))


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no shards"):
        shards.load_shards(tmp_path)


def test_the_disk_must_have_a_tenth_more_than_the_images_need(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return shutil._ntuple_diskusage(total=2e9, used=1e9, free=1e9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    missing_folder = tmp_path / "generate" / "0123456789ab"
    shards.check_disk(missing_folder, 900_000_000)
    with pytest.raises(OSError, match=r"must have 1\.045 GB free for the images, got 1\.000 GB"):
        shards.check_disk(missing_folder, 950_000_000)
    assert asked == [tmp_path, tmp_path]


def test_the_first_images_are_read_from_the_shards_that_hold_them(tmp_path, monkeypatch):
    write_all(tmp_path, 20, 8, range(3))
    load, read = np.load, []
    monkeypatch.setattr(np, "load", lambda path, **kw: read.append(path.name) or load(path, **kw))
    for count, shards_read in [(3, 1), (8, 1), (9, 2), (20, 3), (64, 3)]:
        read.clear()
        np.testing.assert_array_equal(
            shards.load_first(tmp_path, count), images_of(range(min(count, 20)))
        )
        assert len(read) == shards_read


# in the background


def parts_of(indices, size=3):
    """The images of a shard, in parts as batches come."""
    indices = list(indices)
    return [
        lambda part=indices[i : i + size]: images_of(part) for i in range(0, len(indices), size)
    ]


def test_shards_written_in_the_background_are_those_given_in_their_order(tmp_path, monkeypatch):
    order, write_shard = [], shards.write_shard

    def noting(folder, shard, images):
        order.append((shard, threading.current_thread() is threading.main_thread()))
        write_shard(folder, shard, images)

    monkeypatch.setattr(shards, "write_shard", noting)
    background = shards.BackgroundShards(tmp_path)
    ranges = shards.shard_ranges(50, 8)
    for shard in (3, 0, 1, 6, 2, 5, 4):
        background.write(shard, parts_of(ranges[shard]))
    background.close()
    assert order == [(shard, False) for shard in (3, 0, 1, 6, 2, 5, 4)]
    np.testing.assert_array_equal(shards.load_shards(tmp_path), images_of(range(50)))


def test_a_caller_faster_than_the_disk_waits_with_two_shards_in_memory(tmp_path, monkeypatch):
    disk, given = threading.Semaphore(0), []
    monkeypatch.setattr(shards, "write_shard", lambda *args: disk.acquire())
    background = shards.BackgroundShards(tmp_path)

    def give():
        for shard in range(5):
            background.write(shard, parts_of(range(4)))
            given.append(shard)

    caller = threading.Thread(target=give)
    caller.start()
    for written in range(3):
        while len(given) < 2 + written:
            pass
        caller.join(0.05)
        assert given == list(range(2 + written))
        disk.release()
    disk.release(2)
    caller.join()
    background.close()


@pytest.mark.parametrize("later", ["write", "close"])
def test_an_error_in_the_background_is_raised_by_what_is_called_next(tmp_path, monkeypatch, later):
    def failing(folder, shard, images):
        raise OSError("the disk is gone")

    monkeypatch.setattr(shards, "write_shard", failing)
    background = shards.BackgroundShards(tmp_path)
    background.write(0, parts_of(range(4)))
    with pytest.raises(OSError, match="the disk is gone"):  # noqa: PT012
        while later == "write":
            background.write(1, parts_of(range(4)))
        background.close()
