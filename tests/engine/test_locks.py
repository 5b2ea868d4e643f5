"""Locks. Owners are real processes: threads would share the pid that identifies an owner."""

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
from sidepipe.engine import locks
from sidepipe.engine.locks import Owner


def run_python(code, *arguments, **environment):
    source = str(Path(locks.__file__).parents[2])
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
from sidepipe.engine.locks import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.fixture
def holder(folder):
    """Another process that holds the lock of `folder` until it receives a line."""
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

    with locks.locked(folder, on_wait, poll_seconds=0.01, notice_seconds=0):
        assert locks.owner_of(folder) == Owner.me()
    assert [(owner.host, owner.pid) for owner in looks] == [(socket.gethostname(), holder.pid)] * 3
    assert not folder.exists()
    assert locks.owner_of(folder) is None


def test_try_lock_names_the_living_owner_and_leaves_the_lock_to_it(holder, folder):
    assert locks.try_lock(folder).pid == holder.pid
    assert locks.owner_of(folder).pid == holder.pid


def test_a_long_wait_is_reported_once_per_interval(holder, folder):
    looks, timers = [], []

    def release(owner):
        looks.append(owner)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "released\n"

    def wait_and_look(owner):
        looks.append(owner)
        timers.append(Timer(0.3, release, [owner]))
        timers[0].start()

    with locks.locked(folder, wait_and_look, poll_seconds=0.01, notice_seconds=60):
        pass
    timers[0].join()  # the holder is killed after the test
    assert len(looks) == 2  # one by the wait of some thirty looks, one by the timer


def test_a_killed_owners_lock_is_taken_over_immediately(holder, folder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert locks.try_lock(folder) is None
    assert locks.owner_of(folder) == Owner.me()


def test_an_owner_that_is_a_zombie_counts_as_dead(holder, folder):
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet reaped
    assert locks.owner_of(folder) is None


def test_a_lock_is_released_when_its_owner_raises(folder):
    with pytest.raises(RuntimeError), locks.locked(folder):
        raise RuntimeError
    assert not locks.lock_path(folder).exists()


def test_a_reused_pid_is_not_mistaken_for_the_owner(holder, folder):
    alive = locks.owner_of(folder)
    reused = Owner(alive.host, alive.pid, alive.started - 1)
    files.write_json(locks.lock_path(folder), vars(reused))
    assert locks.owner_of(folder) is None
    assert locks.try_lock(folder) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": "a"}', b"\xff\xfe\x00"])
def test_a_lock_that_cannot_be_read_counts_as_dead(folder, content):
    lock = locks.lock_path(folder)
    lock.parent.mkdir(parents=True)
    lock.write_bytes(content)
    assert locks.try_lock(folder) is None
    assert locks.owner_of(folder) == Owner.me()


def put_foreign_lock(folder, age):
    """A lock of a process on another host, last refreshed `age` seconds ago."""
    lock = locks.lock_path(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    owner = Owner("another-host", os.getpid(), 0)
    files.write_json(lock, vars(owner))
    os.utime(lock, (time.time() - age,) * 2)
    return owner


def test_another_hosts_lock_is_respected_while_it_is_fresh(folder):
    owner = put_foreign_lock(folder, age=locks.STALE_SECONDS - 30)
    assert locks.try_lock(folder) == owner


def test_another_hosts_lock_is_taken_over_when_it_is_stale(folder):
    put_foreign_lock(folder, age=locks.STALE_SECONDS + 30)
    assert locks.try_lock(folder) is None
    assert locks.owner_of(folder) == Owner.me()


@pytest.fixture
def in_job(monkeypatch):
    """Makes this process one of a Slurm job, which was requeued so often."""

    def enter(job, restarts):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))

    return enter


def put_jobs_lock(folder, host, job, restarts):
    """A fresh lock of a Slurm job; on this host its process is this one, alive."""
    locks.try_lock(folder)
    owner = Owner(**{**vars(Owner.me()), "host": host, "job": job, "restarts": restarts})
    files.write_json(locks.lock_path(folder), vars(owner))
    return owner


@pytest.mark.parametrize("host", ["another-host", socket.gethostname()])
def test_a_job_that_is_requeued_takes_over_its_own_lock_immediately(folder, host, in_job):
    put_jobs_lock(folder, host, "45", 0)
    in_job("45", 1)
    assert locks.owner_of(folder) is None
    assert locks.try_lock(folder) is None
    assert locks.owner_of(folder) == Owner.me()
    assert (Owner.me().job, Owner.me().restarts) == ("45", 1)


@pytest.mark.parametrize(("job", "restarts"), [("45", 1), ("46", 0), (None, 0)])
def test_any_other_jobs_lock_is_respected(folder, job, restarts, in_job):
    owner = put_jobs_lock(folder, "another-host", job, restarts)
    in_job("45", 1)
    assert locks.try_lock(folder) == owner


@pytest.mark.parametrize(
    ("answer", "is_dead"),
    [
        ('echo "JobId=45 JobState=RUNNING Restarts=0 NodeList=n1"', False),
        ('echo "JobId=45 JobState=COMPLETING Restarts=0"', False),
        ('echo "JobId=45 JobState=FAILED Restarts=0"', True),
        ('echo "JobId=45 JobState=PENDING Restarts=1"', True),
        ('echo "JobId=45 JobState=RUNNING Restarts=1"', True),
        ('echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1', True),
        ('echo "Unable to contact slurm controller" >&2; exit 1', False),
    ],
)
def test_slurm_tells_whether_the_job_of_a_late_lock_has_ended(
    answer, is_dead, folder, tmp_path, monkeypatch
):
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\n[ "$*" = "--oneliner show job 45" ] || exit 1\n{answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    owner = put_jobs_lock(folder, "another-host", "45", 0)
    assert locks.owner_of(folder) == owner, "its last heartbeat is recent"
    os.utime(locks.lock_path(folder), (time.time() - locks.LATE_SECONDS - 5,) * 2)
    assert locks.owner_of(folder) == (None if is_dead else owner)


def test_a_lock_without_a_job_is_read(folder, in_job):
    owner = put_foreign_lock(folder, age=0)
    content = {name: vars(owner)[name] for name in ("host", "pid", "started")}
    files.write_json(locks.lock_path(folder), content)
    in_job("45", 1)
    assert locks.try_lock(folder) == owner


def test_an_owners_heartbeat_keeps_its_lock_fresh(folder, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.02)
    with locks.locked(folder):
        lock = locks.lock_path(folder)
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 5
        while lock.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert time.time() - lock.stat().st_mtime < 60


def test_several_heartbeats_are_missed_before_a_lock_is_stale():
    assert locks.STALE_SECONDS >= 5 * locks.HEARTBEAT_SECONDS
    assert locks.LATE_SECONDS > locks.HEARTBEAT_SECONDS


def test_an_owner_that_lost_its_lock_does_not_remove_the_new_owners(folder):
    """As when a suspended machine wakes up after another host took its lock over."""
    with locks.locked(folder):
        new_owner = put_foreign_lock(folder, age=0)
    assert locks.owner_of(folder) == new_owner


RACER = """
import os, sys, time
from pathlib import Path
from sidepipe.engine.locks import locked
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


def test_one_of_many_processes_that_race_for_a_dead_lock_works_at_a_time(tmp_path):
    rounds, count = 15, 6
    dead = Owner(socket.gethostname(), os.getpid(), -1)
    for i in range(rounds):
        files.write_json(locks.lock_path(tmp_path / f"round-{i}"), vars(dead))
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
