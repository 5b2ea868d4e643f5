"""Seconds of work are summed over attempts, whatever ended them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sidepipe.engine import attempts
from sidepipe.engine.attempts import read_seconds, save_seconds, working_seconds


def test_an_attempt_begins_where_earlier_ones_stopped(tmp_path):
    save_seconds(tmp_path, 1000.0)
    with working_seconds(tmp_path) as seconds:
        time.sleep(0.05)
        assert 1000.05 <= seconds() < 1010
    assert 1000.05 <= read_seconds(tmp_path) < 1010


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_attempt_that_fails_or_is_stopped_counts(tmp_path, error):
    for _ in range(3):
        with pytest.raises(error), working_seconds(tmp_path):  # noqa: PT012
            time.sleep(0.05)
            raise error
    assert 0.15 <= read_seconds(tmp_path) < 10


KILLED = """
import sys, time
from pathlib import Path
from sidepipe.engine import attempts
attempts.SAVE_SECONDS = 0.02
with attempts.working_seconds(Path(sys.argv[1])):
    while True:
        time.sleep(0.01)
"""


def test_a_killed_attempt_counts_up_to_its_last_save(tmp_path):
    save_seconds(tmp_path, 1000.0)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ)
    try:
        deadline = time.monotonic() + 60
        while read_seconds(tmp_path) < 1000.2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 1000.2 <= read_seconds(tmp_path) < 1070


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_file_that_holds_no_seconds_counts_for_none(tmp_path, content):
    (tmp_path / "seconds.json").write_text(content)
    assert read_seconds(tmp_path) == 0


def test_a_full_disk_does_not_stop_the_work(tmp_path, monkeypatch):
    refused = []

    def full(path, content):
        refused.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attempts, "write_json", full)
    monkeypatch.setattr(attempts, "SAVE_SECONDS", 0.01)
    worked = 0.0
    with working_seconds(tmp_path) as seconds:
        while len(refused) < 2:
            time.sleep(0.01)
        worked = seconds()
    assert worked > 0, "the block ended"
    assert len(refused) >= 3, "the last save is tried too"
    assert read_seconds(tmp_path) == 0
