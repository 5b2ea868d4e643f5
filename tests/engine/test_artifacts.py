import hashlib
import os
import socket
import sys

import pytest
from tests.engine.test_locks import run_python

from sidepipe.base import files
from sidepipe.engine import artifacts
from sidepipe.engine.artifacts import Artifact, key_of

SETTINGS = {
    "steps": 3,
    "lr": 0.1,
    "source": {"name": "a", "sizes": [1, 2]},
    "crop": None,
    "on": True,
}
INPUTS = {"data": "0123456789ab", "dpm": "ba9876543210"}


def key(settings=SETTINGS, stage="dpm", version=1, inputs=INPUTS):
    return key_of(stage, version, settings, inputs)


# Keys


def test_a_key_is_twelve_hex_digits():
    assert len(key()) == 12
    assert set(key()) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("one", "other"), [(3, 3.0), (0, 0.0), (0.0, -0.0), (10**17, 1e17), ([1], (1.0,))]
)
def test_a_number_is_the_same_setting_however_it_is_written(one, other):
    assert key({"a": {"b": [one]}}) == key({"a": {"b": [other]}})


def test_the_order_of_settings_does_not_matter_and_that_of_inputs_does():
    settings = {k: SETTINGS[k] for k in reversed(SETTINGS)}
    settings["source"] = {"sizes": [1, 2], "name": "a"}
    assert key(settings) == key()
    assert key(inputs=dict(reversed(INPUTS.items()))) != key()


def test_every_change_changes_the_key():
    changes = [
        {"steps": 4},
        {"steps": "3"},
        {"lr": 0.1000001},
        {"source": {"name": "b", "sizes": [1, 2]}},
        {"source": {"name": "a", "sizes": [2, 1]}},
        {"source": {"name": "a", "sizes": [1, 2], "more": None}},
        {"crop": 0},
        {"crop": False},
        {"crop": "null"},
        {"on": False},
        {"on": 1},
        {"new": None},
    ]
    keys = [key(), *(key({**SETTINGS, **change}) for change in changes)]
    keys += [key({k: v for k, v in SETTINGS.items() if k != left_out}) for left_out in SETTINGS]
    keys += [key(stage="label"), key(version=2), key(inputs={})]
    keys += [key(inputs={"data": INPUTS["data"]}), key(inputs={**INPUTS, "dpm": "000000000000"})]
    keys += [key(inputs={"data": INPUTS["dpm"], "dpm": INPUTS["data"]})]
    assert len(set(keys)) == len(keys)


def test_a_key_is_the_same_in_every_process():
    call = f"key_of('dpm', 1, {SETTINGS!r}, {INPUTS!r})"
    code = f"from sidepipe.engine.artifacts import key_of; print({call})"
    for hash_seed in ("0", "1"):
        done = run_python(code, PYTHONHASHSEED=hash_seed).communicate(timeout=30)[0]
        assert done.strip() == key()


# Files


def test_the_manifest_lists_every_file_with_its_size_and_hash(tmp_path):
    (tmp_path / "shards").mkdir()
    contents = {"a.txt": b"hello", "shards/000000.npy": b"\x00\x01\x02", "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    artifacts.write_manifest(tmp_path, {"key": "abc"})
    manifest = artifacts.read_manifest(tmp_path)
    assert manifest["key"] == "abc"
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def test_the_manifest_leaves_out_itself_progress_and_temporary_files(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "000000.123.tmp").write_text("half a shard")
    (tmp_path / artifacts.PROGRESS).write_text("{}")
    artifacts.write_manifest(tmp_path, {})
    artifacts.write_manifest(tmp_path, {})
    assert list(artifacts.read_manifest(tmp_path)["files"]) == ["a.txt"]


def test_the_manifest_says_with_what_it_was_made(tmp_path):
    artifacts.write_manifest(tmp_path, {})
    manifest = artifacts.read_manifest(tmp_path)
    assert manifest["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["host"] == socket.gethostname()
    assert "torch" in manifest["packages"]


def test_a_folder_is_unfinished_until_its_manifest_is_there(tmp_path):
    assert artifacts.read_manifest(tmp_path / "never made") is None
    (tmp_path / "a.txt").write_text("a")
    assert artifacts.read_manifest(tmp_path) is None
    artifacts.write_manifest(tmp_path, {})
    assert artifacts.read_manifest(tmp_path) is not None


@pytest.fixture
def mitigate(tmp_path):
    """Mitigation in the training of a model, judged by the prompts of another one."""
    made = {
        "data/da": {},
        "dpm/base": {"data": "da"},
        "dpm/filtered": {"data": "da"},
        "detect/de": {"data": "da", "dpm": "base"},
        "mitigate/mi": {"data": "da", "detect": "de", "dpm": "filtered"},
    }
    for name, inputs in made.items():
        (tmp_path / name).mkdir(parents=True)
        content = {"inputs": inputs, "settings": {"of": name}, "summary": {"empty": None}}
        artifacts.write_manifest(tmp_path / name, content)
    artifacts.write_manifest(
        tmp_path / "dpm/base", {"inputs": {"data": "da"}, "summary": {"empty": "why"}}
    )
    return Artifact(tmp_path / "mitigate/mi")


def test_the_lineage_has_every_artifact_once_and_a_stage_more_than_once(mitigate):
    made = [f"{one.stage}/{one.key}" for one in mitigate.lineage()]
    assert made == ["data/da", "dpm/base", "detect/de", "dpm/filtered", "mitigate/mi"]
    assert mitigate.settings == {"of": "mitigate/mi"}


def test_an_artifact_finds_its_inputs_and_prefers_them_to_earlier_ancestors(mitigate):
    assert list(mitigate.inputs) == ["data", "detect", "dpm"]
    assert mitigate.ancestor("dpm").key == "filtered"
    detect = mitigate.ancestor("detect")
    assert detect.ancestor("dpm") == detect.inputs["dpm"] != mitigate.inputs["dpm"]
    assert detect.inputs["dpm"].why_empty == "why"
    assert mitigate.why_empty is None
    assert mitigate.ancestor("label") is None


def test_a_search_among_ancestors_that_were_deleted_is_an_error(mitigate):
    (mitigate.inputs["dpm"].folder / artifacts.MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=r"filtered is not a finished artifact; run its"):
        mitigate.ancestor("original")


def test_a_manifest_that_cannot_be_written_leaves_none(tmp_path):
    with pytest.raises(TypeError):
        artifacts.write_manifest(tmp_path, {"summary": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_breaks_off_leaves_the_old_file_whole_and_no_other_reader_of_the_new(
    tmp_path, monkeypatch
):
    path = tmp_path / artifacts.PROGRESS
    files.write_json(path, {"step": 1})

    def full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"step": 2})
    with pytest.raises(OSError, match="disk full"):
        artifacts.write_manifest(tmp_path, {})
    monkeypatch.undo()
    assert artifacts.read_progress(tmp_path) == {"step": 1}
    assert artifacts.read_manifest(tmp_path) is None
    artifacts.write_manifest(tmp_path, {})
    assert artifacts.read_manifest(tmp_path)["files"] == {}


def test_progress_that_is_absent_or_unreadable_is_none(tmp_path):
    assert artifacts.read_progress(tmp_path) is None
    (tmp_path / artifacts.PROGRESS).write_text('{"step": ')
    assert artifacts.read_progress(tmp_path) is None


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"dpm.schedule.ends.1 must be a finite number, got"):
        artifacts.key_of("dpm", 1, {"schedule": {"ends": [0.5, value]}}, {})
