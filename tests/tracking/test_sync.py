"""The upload of runs made offline, with the real client and a server on loopback."""

import os
import time
from types import SimpleNamespace

import pytest
import wandb
from tests.tracking.conftest import NAMES, python

from sidepipe.base.interruption import Preempted
from sidepipe.tracking import Content, Tracking
from sidepipe.tracking.fragments import read

pytestmark = pytest.mark.slow

SYNC = """
import contextlib, io, json
from sidepipe.tracking import sync
sync.ARRIVE_SECONDS, code, said = 0.5, 0, io.StringIO()
with contextlib.redirect_stdout(said):
    try:
        sync.main()
    except SystemExit as stop:
        code = stop.code
print(json.dumps([code, said.getvalue()]))
"""


def tracked(home, place, run, steps, error=None, inputs=()):
    """A real offline run of these steps, in a folder of its own, that ends as `error` says."""
    config = {"inputs": {name: f"dpm-{name}" for name in inputs}}
    tracking = Tracking(mode="offline", folder=str(home / place), group="sizes")
    try:
        with tracking.run("dpm", run, config) as opened:
            opened.send(lambda images: Content(summary={"dpm/epochs": 2.5}))
            for step in steps:
                opened.log({"loss": 1 / (1 + step)}, step)
            if error:
                raise error
    except (ValueError, Preempted):
        pass


def moved(home, place, run, when, lose=0, age=10_000):
    """The fragment, in the common folder as of `when`, without its last bytes."""
    [path] = (home / place).glob("wandb/offline-run-*/*.wandb")
    folder = home / "runs" / "wandb" / f"offline-run-{when}-{run}"
    path.parent.rename(folder)
    file = folder / path.name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - lose])
    os.utime(file, (time.time() - age,) * 2)
    return file


@pytest.fixture(scope="module")
def synced(tmp_path_factory, server):
    """Runs that ended in every way, uploaded; the command's exit code and what it printed."""
    home = tmp_path_factory.mktemp("sync")
    (home / "runs" / "wandb").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setenv(f"WANDB_{name}", "")
            patch.delenv(f"WANDB_{name}")
        tracked(home, "killed", "aaa", range(5))
        tracked(home, "stopped", "aaa", range(3, 8), Preempted("stop"))
        tracked(home, "ended", "aaa", range(8, 10), inputs=["bbb", "unknown"])
        tracked(home, "failed", "bbb", range(3), ValueError("of the stage"))
        tracked(home, "at work", "ccc", range(4))
        wandb.teardown()  # only then all is written
    killed = moved(home, "killed", "aaa", "20260102_000000", lose=200)
    rows = read(killed).rows  # of those that are whole
    empty = killed.parent.with_name("offline-run-20260101_000000-aaa") / killed.name
    empty.parent.mkdir()
    empty.write_bytes(killed.read_bytes()[:7])
    os.utime(empty, (1e9, 1e9))
    moved(home, "stopped", "aaa", "20260103_000000")
    moved(home, "ended", "aaa", "20260104_000000")
    moved(home, "failed", "bbb", "20260105_000000")
    moved(home, "at work", "ccc", "20260106_000000", lose=100, age=5)
    said = synchronize(server, home)
    return SimpleNamespace(home=home, folder=home / "runs", said=said, rows=rows)


def synchronize(server, home):
    """[exit code, what was printed] of the command."""
    return python(server, home, SYNC, home / "runs")


def test_fragments_of_a_killed_run_arrive_in_order_what_was_torn_off_excepted(synced, server):
    steps = [row["trainer/global_step"] for row in server.runs["aaa"]["history"]]
    assert 0 < synced.rows <= 5
    assert steps == [*range(synced.rows), *range(3, 8), *range(8, 10)]
    assert [row["_step"] for row in server.runs["aaa"]["history"]] == list(range(len(steps)))


def test_a_run_arrives_with_its_group_job_type_and_end(synced, server):
    assert server.unknown == []
    assert set(server.runs) == {"aaa", "bbb"}
    for run in server.runs.values():
        assert (run["groupName"], run["jobType"], run["project"]) == ("sizes", "dpm", "sidepipe")
    assert server.runs["aaa"]["preempting"]
    assert (server.runs["aaa"]["exitcode"], server.runs["bbb"]["exitcode"]) == (0, 1)


def test_a_broken_fragment_is_set_aside_and_a_torn_one_kept_beside(synced):
    assert [p.name for p in (synced.folder / "broken").iterdir()] == [
        "offline-run-20260101_000000-aaa"
    ]
    assert len(list(synced.folder.glob("wandb/*/*.torn"))) == 1


def test_a_run_at_work_is_left_for_later(synced, server):
    assert "ccc" not in server.runs
    assert not list(synced.folder.glob("wandb/*-ccc/*.synced"))


def test_the_table_says_what_became_of_each_run(synced):
    code, said = synced.said
    assert code == 0
    rows = str(synced.rows + 7)
    lines = [line.split() for line in said.splitlines()]
    assert lines == [
        ["run", "stage", "fragments", "rows", "arrived", "inputs", "state"],
        ["aaa", "dpm", "3", rows, rows, "1/2", "uploaded"],
        ["bbb", "dpm", "1", "3", "3", "0/0", "uploaded"],
        ["ccc", "-", "-", "-", "-", "running:", "later"],
    ]


def test_a_repeated_command_sends_nothing_again_and_joins_what_came_late(synced, server):
    rows = {run: list(kept["history"]) for run, kept in server.runs.items()}
    assert server.uses == [("aaa", "dpm-bbb")]
    server.artifacts["dpm-unknown"] = {"type": "dpm", "run": "unknown", "digest": "d"}
    server.runs["bbb"]["history"].clear()
    code, said = synchronize(server, synced.home)
    assert code == 0, said
    assert [line.split()[-2:] for line in said.splitlines()[1:]] == [
        ["2/2", "uploaded"],
        ["there", "already"],  # seen once is enough
        ["running:", "later"],
    ]
    assert server.uses == [("aaa", "dpm-bbb"), ("aaa", "dpm-unknown")]
    assert server.runs["aaa"]["history"] == rows["aaa"]


def test_rows_that_are_missing_on_the_server_fail_the_command(synced, server):
    for mark in synced.folder.glob("wandb/*-bbb/*.arrived"):
        mark.unlink()
    server.runs["bbb"]["history"] = server.runs["aaa"]["history"][:2]
    code, said = synchronize(server, synced.home)
    assert code == "1 of 3 runs failed; the same command tries them again"
    assert [line.split() for line in said.splitlines() if line.startswith("bbb")] == [
        ["bbb", "dpm", "1", "3", "2", "0/0", "FAILED:", "rows", "on", "the", "server", "differ"]
    ]
