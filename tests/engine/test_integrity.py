"""A finished artifact is used only while it is what its manifest says; every kind of damage."""

import json
import os

import numpy as np
import pytest

from sidepipe.base import files
from sidepipe.engine import artifacts, integrity

MANIFEST = {"key": "0123456789ab", "settings": {}, "inputs": {}, "seconds": 1.0}


@pytest.fixture
def folder(tmp_path):
    """A finished artifact with everything that a stage may write."""
    folder = tmp_path / "generate" / MANIFEST["key"]
    for name in ("shards", "model/unet", "previews"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for shard in range(3):
        images = rng.integers(1, 256, (40, 4, 4, 1)).astype(np.uint8)
        np.save(folder / "shards" / f"{shard:06d}.npy", images)
    np.save(folder / "labels.npy", np.arange(120))
    (folder / "model/unet/weights.safetensors").write_bytes(rng.bytes(500))
    (folder / "ids.csv").write_text("index,id\n")
    for name in ("last.ckpt", "best.ckpt", "log.txt", "previews/000010.png", "preview.png"):
        (folder / name).write_bytes(rng.bytes(50))
    artifacts.write_manifest(folder, {**MANIFEST, "summary": {"num_images": 120}})
    assert integrity.is_whole(folder)
    integrity.require_unchanged(folder)
    return folder


def black(folder):
    np.save(folder / "shards/000001.npy", np.zeros((40, 4, 4, 1), np.uint8))
    return "shards/000001.npy is damaged: its content has changed since it was made"


def one_bit(folder):
    path = folder / "model/unet/weights.safetensors"
    content = bytearray(path.read_bytes())
    content[321] ^= 1
    path.write_bytes(content)
    return "weights.safetensors is damaged: its content has changed since it was made"


def other_labels(folder):
    np.save(folder / "labels.npy", np.full(120, 99))
    return "labels.npy is damaged: its content has changed since it was made"


def fewer_labels(folder):
    np.save(folder / "labels.npy", np.arange(50))
    return "labels.npy is damaged: it has 528 bytes where the manifest has 1088"


def cut_short(folder):
    os.truncate(folder / "shards/000002.npy", 300)
    return "shards/000002.npy is damaged: it has 300 bytes where the manifest has 768"


def emptied(folder):
    os.truncate(folder / "ids.csv", 0)
    return "ids.csv is damaged: it has 0 bytes where the manifest has 9"


def one_shard_more(folder):
    np.save(folder / "shards/000003.npy", np.zeros((1, 4, 4, 1), np.uint8))
    return "shards/000003.npy must not be there: the manifest does not list it"


def a_result_of_another(folder):
    np.save(folder / "cohesion.npy", np.zeros(3))
    return "cohesion.npy must not be there: the manifest does not list it"


def renamed(folder):
    folder.rename(folder.with_name("ba9876543210"))
    folder.with_name("ba9876543210").rename(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "key": "ba9876543210"}))
    return "manifest.json is damaged: it belongs to artifact ba9876543210"


DAMAGE = [
    *(black, one_bit, other_labels, fewer_labels, cut_short, emptied),
    *(one_shard_more, a_result_of_another, renamed),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_whatever_changed_is_an_error_that_names_the_file_and_the_remedy(folder, damage):
    expected = damage(folder)
    with pytest.raises(ValueError, match="remedy: ") as raised:
        integrity.require_unchanged(folder)
    assert expected in str(raised.value)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("damage", [fewer_labels, cut_short, emptied, renamed])
def test_a_wrong_size_is_noticed_without_reading_the_file(folder, damage, monkeypatch):
    monkeypatch.setattr(integrity, "sha256_of", lambda path: pytest.fail("read"))
    expected = damage(folder)
    with pytest.raises(ValueError, match="damaged") as raised:
        integrity.is_whole(folder)
    assert expected in str(raised.value)
    assert not integrity.is_done(folder)


@pytest.mark.parametrize("name", ["shards/000002.npy", "labels.npy", "ids.csv"])
def test_a_missing_file_leaves_the_artifact_unfinished_and_the_rest_unchanged(folder, name):
    (folder / name).unlink()
    assert not integrity.is_whole(folder)
    assert integrity.missing_files(folder, artifacts.read_manifest(folder)) == [name]
    integrity.require_unchanged(folder)


def test_what_no_stage_reads_may_be_deleted_edited_or_added(folder):
    for name in ("last.ckpt", "best.ckpt", "previews/000010.png", "preview.png"):
        (folder / name).unlink()
    (folder / "log.txt").write_text("a note")
    for name in (".DS_Store", "notes.md", "shards/.nfs0001", "error.json"):
        (folder / name).write_text("{}")
    assert integrity.is_whole(folder)
    integrity.require_unchanged(folder)


def test_a_folder_without_manifest_is_not_finished(tmp_path):
    assert not integrity.is_whole(tmp_path / "dpm" / "0123456789ab")


NO_MANIFEST = [
    *("", "{}", "[]", "null", '{"files": ', "\x00\x00"),
    *('{"files": ["a.npy"]}', '{"files": {"a.npy": 5}}', '{"files": {"a.npy": {"bytes": 5}}}'),
    *('{"files": {"a.npy": {"bytes": "5", "sha256": ""}}}', '{"files": "a.npy"}'),
]


@pytest.mark.parametrize("text", NO_MANIFEST)
def test_a_manifest_that_is_none_is_named_with_the_remedy(folder, text):
    (folder / "manifest.json").write_text(text)
    rule = r"0123456789ab/manifest\.json is damaged: .*; remedy: restore it, or delete /"
    with pytest.raises(ValueError, match=rule):
        integrity.is_whole(folder)
    assert not integrity.is_done(folder)


def test_a_manifest_that_lacks_an_entry_says_which(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["summary"], manifest["seconds"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="damaged: it has no valid summary, seconds;"):
        integrity.is_whole(folder)


@pytest.mark.parametrize(("name", "value"), [("seconds", None), ("seconds", "x"), ("summary", 5)])
def test_an_entry_of_another_type_is_named(folder, name, value):
    manifest = json.loads((folder / "manifest.json").read_text()) | {name: value}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"damaged: it has no valid {name};"):
        integrity.is_whole(folder)


def test_a_file_is_hashed_once_while_it_stays_as_it_is(folder, monkeypatch):
    hashed = []
    digest = files.hashlib.file_digest
    monkeypatch.setattr(
        files.hashlib,
        "file_digest",
        lambda file, kind: hashed.append(file.name) or digest(file, kind),
    )
    files._hashes.clear()
    integrity.require_unchanged(folder)
    count = len(hashed)
    assert count == len(set(hashed)) == 6  # three shards, labels, weights, ids
    integrity.require_unchanged(folder)
    assert len(hashed) == count
    os.utime(folder / "labels.npy", (0, 0))
    integrity.require_unchanged(folder)
    assert hashed[count:] == [str(folder / "labels.npy")]


# Before the manifest


def test_no_manifest_over_an_array_that_is_cut_short(folder):
    os.truncate(folder / "labels.npy", 200)
    with pytest.raises(
        ValueError, match=r"labels\.npy is truncated: .*; remedy: delete it and run"
    ):
        integrity.require_complete(folder, {"num_images": 120})


@pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: np.save(p, np.load(p)[:20])])
def test_no_manifest_over_fewer_images_than_were_to_be_made(folder, change):
    integrity.require_complete(folder, {"num_images": 120})
    integrity.require_complete(folder, {"num_images": 40, "candidates": 3})
    change(folder / "shards/000001.npy")
    with pytest.raises(ValueError, match=r"shards must hold 120 images, got (80|100)"):
        integrity.require_complete(folder, {"num_images": 120})
