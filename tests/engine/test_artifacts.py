import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from sidepipe.base import files
from sidepipe.engine import artifacts
from sidepipe.engine.artifacts import Artifact, Owner, key_of

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


# Locks. Owners are real processes: threads would share the pid that the lock goes by.


def run_python(code, *arguments, **environment):
    source = str(Path(artifacts.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": source, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLDER = """
import sys
from pathlib import Path
from sidepipe.engine.artifacts import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.fixture
def holder(folder):
    """Another process that holds the lock of `folder` until told a line."""
    process = run_python(HOLDER, folder)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "dpm" / "0123456789ab"


def test_a_lock_keeps_another_process_out_until_its_owner_is_done(holder, folder):
    looks = []

    def on_wait(owner):
        looks.append(owner)
        assert len(looks) <= 3, "the lock outlived its owner"
        if len(looks) == 3:
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "released\n"

    with artifacts.locked(folder, on_wait, poll_seconds=0.01, say_seconds=0):
        assert artifacts.owner_of(folder) == Owner.me()
    assert [(owner.host, owner.pid) for owner in looks] == [(socket.gethostname(), holder.pid)] * 3
    assert not folder.exists()
    assert artifacts.owner_of(folder) is None


def test_try_lock_names_the_living_owner_and_leaves_the_lock_to_it(holder, folder):
    assert artifacts.try_lock(folder).pid == holder.pid
    assert artifacts.owner_of(folder).pid == holder.pid


def test_a_long_wait_is_spoken_of_now_and_then_only(holder, folder):
    looks = []

    def release(owner):
        looks.append(owner)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "released\n"

    def wait_and_look(owner):
        looks.append(owner)
        Timer(0.3, release, [owner]).start()

    with artifacts.locked(folder, wait_and_look, poll_seconds=0.01, say_seconds=60):
        pass
    assert len(looks) == 2  # one by the wait of some thirty looks, one by the timer


def test_a_killed_owners_lock_is_taken_over_at_once(holder, folder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert artifacts.try_lock(folder) is None
    assert artifacts.owner_of(folder) == Owner.me()


def test_an_owner_that_is_a_zombie_counts_as_dead(holder, folder):
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet reaped
    assert artifacts.owner_of(folder) is None


def test_a_lock_is_released_when_its_owner_raises(folder):
    with pytest.raises(RuntimeError), artifacts.locked(folder):
        raise RuntimeError
    assert not artifacts.lock_path(folder).exists()


def test_a_reused_pid_is_not_mistaken_for_the_owner(holder, folder):
    alive = artifacts.owner_of(folder)
    reused = Owner(alive.host, alive.pid, alive.started - 1)
    files.write_json(artifacts.lock_path(folder), vars(reused))
    assert artifacts.owner_of(folder) is None
    assert artifacts.try_lock(folder) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": "a"}', b"\xff\xfe\x00"])
def test_a_lock_that_cannot_be_read_counts_as_dead(folder, content):
    lock = artifacts.lock_path(folder)
    lock.parent.mkdir(parents=True)
    lock.write_bytes(content)
    assert artifacts.try_lock(folder) is None
    assert artifacts.owner_of(folder) == Owner.me()


def put_foreign_lock(folder, age):
    """A lock of a process on another host, last refreshed `age` seconds ago."""
    lock = artifacts.lock_path(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    owner = Owner("another-host", os.getpid(), 0)
    files.write_json(lock, vars(owner))
    os.utime(lock, (time.time() - age,) * 2)
    return owner


def test_another_hosts_lock_is_respected_while_it_is_fresh(folder):
    owner = put_foreign_lock(folder, age=artifacts.STALE_SECONDS - 30)
    assert artifacts.try_lock(folder) == owner


def test_another_hosts_lock_is_taken_over_when_it_is_stale(folder):
    put_foreign_lock(folder, age=artifacts.STALE_SECONDS + 30)
    assert artifacts.try_lock(folder) is None
    assert artifacts.owner_of(folder) == Owner.me()


@pytest.fixture
def in_job(monkeypatch):
    """Makes this process one of a Slurm job, which was queued again so often."""

    def enter(job, restarts):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))

    return enter


def put_jobs_lock(folder, host, job, restarts):
    """A fresh lock of a Slurm job; on this host its process is this one, alive."""
    artifacts.try_lock(folder)
    owner = Owner(**{**vars(Owner.me()), "host": host, "job": job, "restarts": restarts})
    files.write_json(artifacts.lock_path(folder), vars(owner))
    return owner


@pytest.mark.parametrize("host", ["another-host", socket.gethostname()])
def test_a_job_that_was_queued_again_takes_over_its_own_lock_at_once(folder, host, in_job):
    put_jobs_lock(folder, host, "45", 0)
    in_job("45", 1)
    assert artifacts.owner_of(folder) is None
    assert artifacts.try_lock(folder) is None
    assert artifacts.owner_of(folder) == Owner.me()
    assert (Owner.me().job, Owner.me().restarts) == ("45", 1)


@pytest.mark.parametrize(("job", "restarts"), [("45", 1), ("46", 0), (None, 0)])
def test_any_other_jobs_lock_is_respected(folder, job, restarts, in_job):
    owner = put_jobs_lock(folder, "another-host", job, restarts)
    in_job("45", 1)
    assert artifacts.try_lock(folder) == owner


def test_a_lock_of_a_version_that_knew_no_jobs_is_read(folder, in_job):
    owner = put_foreign_lock(folder, age=0)
    content = {name: vars(owner)[name] for name in ("host", "pid", "started")}
    files.write_json(artifacts.lock_path(folder), content)
    in_job("45", 1)
    assert artifacts.try_lock(folder) == owner


def test_an_owners_heartbeat_keeps_its_lock_fresh(folder, monkeypatch):
    monkeypatch.setattr(artifacts, "HEARTBEAT_SECONDS", 0.02)
    with artifacts.locked(folder):
        lock = artifacts.lock_path(folder)
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 5
        while lock.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert time.time() - lock.stat().st_mtime < 60


def test_several_heartbeats_are_missed_before_a_lock_is_stale():
    assert artifacts.STALE_SECONDS >= 5 * artifacts.HEARTBEAT_SECONDS


def test_an_owner_that_lost_its_lock_does_not_remove_the_new_owners(folder):
    """As when a suspended machine wakes up after another host took its lock over."""
    with artifacts.locked(folder):
        new_owner = put_foreign_lock(folder, age=0)
    assert artifacts.owner_of(folder) == new_owner


RACER = """
import os, sys, time
from pathlib import Path
from sidepipe.engine.artifacts import locked
root, rounds = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
overlaps = 0
for i in range(rounds):
    while not (root / f"go-{i}").exists():
        time.sleep(0.0005)
    with locked(root / f"round-{i}", poll_seconds=0.002):
        try:
            busy = os.open(root / f"busy-{i}", os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            overlaps += 1
        else:
            time.sleep(0.005)
            os.close(busy)
            os.unlink(root / f"busy-{i}")
    (root / f"done-{i}-{os.getpid()}").touch()
print(overlaps, flush=True)
"""


def test_of_many_processes_that_race_for_a_dead_lock_one_works_at_a_time(tmp_path):
    rounds, count = 15, 6
    dead = Owner(socket.gethostname(), os.getpid(), -1)
    for i in range(rounds):
        files.write_json(artifacts.lock_path(tmp_path / f"round-{i}"), vars(dead))
    racers = [run_python(RACER, tmp_path, rounds) for _ in range(count)]
    try:
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        deadline = time.monotonic() + 60
        for i in range(rounds):
            (tmp_path / f"go-{i}").touch()
            while len(list(tmp_path.glob(f"done-{i}-*"))) < count:
                assert time.monotonic() < deadline, f"stuck in round {i}"
                time.sleep(0.005)
        overlaps = [racer.communicate(timeout=10)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert overlaps == ["0\n"] * count
    assert list(tmp_path.glob("*.lock")) == []


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"dpm.schedule.ends.1 must be a finite number, got"):
        artifacts.key_of("dpm", 1, {"schedule": {"ends": [0.5, value]}}, {})
