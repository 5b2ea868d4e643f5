"""Finished artifacts sent to W&B, by the real client and a server on loopback."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.tracking.conftest import python
from tests.tracking.wandb_server import wandb_server

from sidepipe.base import files
from sidepipe.engine.artifacts import write_manifest

pytestmark = pytest.mark.slow

SYNC = """
import contextlib, io, json
from sidepipe.cli import sync
sync.ARRIVE_SECONDS, code, said = 0.5, 0, io.StringIO()
with contextlib.redirect_stdout(said):
    try:
        sync.main()
    except SystemExit as stop:
        code = stop.code
print(json.dumps([code, said.getvalue()]))
"""
METRICS = "step,metric,value\n10,loss,0.5\n20,loss,0.25\n20,val/loss_train,0.3\n30,loss,0.125\n"


def finish(outputs, stage, key, inputs=None, **more):
    """A finished artifact: of a training, its metrics."""
    folder = outputs / stage / key
    folder.mkdir(parents=True)
    read = dict(inputs or {})
    content = {"stage": stage, "version": 1, "key": key, "settings": {"a": 1}, "inputs": read}
    files.write_json(folder / "settings.json", content)
    lineage = {k: {"stage": name, "inputs": {}} for name, k in read.items()}
    files.write_json(folder / "lineage.json", {**lineage, key: {"stage": stage, "inputs": read}})
    if stage == "dpm":
        (folder / "metrics.csv").write_text(METRICS)
    made = {"summary": {"n": 3}, "seconds": 4.5, "device": "2 x H100", "attacks": []}
    write_manifest(folder, {**content, **made, **more})


def synchronize(server, outputs, *options):
    """[exit code, what was printed] of the command."""
    return python(server, outputs.parent, SYNC, outputs, *options)


@pytest.fixture(scope="module")
def synced(tmp_path_factory):
    """Artifacts that were made without tracking, sent; next to files of other programs."""
    outputs = tmp_path_factory.mktemp("sync") / "outputs"
    finish(outputs, "data", "0000000000dd")
    tracking = {"group": "mine", "tags": ["smoke"]}
    finish(outputs, "dpm", "0000000000aa", {"data": "0000000000dd"}, tracking=tracking)
    foreign = outputs / "wandb" / "wandb" / "offline-run-20260101_000000-foreign"
    foreign.mkdir(parents=True)
    (foreign / "run-foreign.wandb").write_bytes(b"of another program")
    (outputs / "notes").mkdir()
    (outputs / "dpm" / "unfinished").mkdir()
    with wandb_server() as server:
        yield SimpleNamespace(server=server, outputs=outputs, said=synchronize(server, outputs))


def test_a_run_of_each_finished_artifact_is_made_from_its_files(synced):
    assert synced.server.unknown == []
    assert set(synced.server.runs) == {"0000000000dd", "mine-0000000000aa"}
    run = synced.server.runs["mine-0000000000aa"]
    assert (run["groupName"], run["jobType"], run["tags"]) == ("mine", "dpm", ["smoke"])
    assert run["exitcode"] == 0
    rows = [(r["trainer/global_step"], r["dpm/loss"]) for r in run["history"]]
    assert rows == [(10, 0.5), (20, 0.25), (30, 0.125)]
    assert run["history"][1]["dpm/val/loss_train"] == 0.3
    assert run["summary"]["dpm/n"] == 3
    assert run["summary"]["artifact/seconds"] == 4.5
    assert run["summary"]["artifact/device"] == "2 x H100"


def test_the_table_has_a_line_per_run_and_foreign_files_are_not_read(synced):
    code, said = synced.said
    assert code == 0, said
    assert [line.split() for line in said.splitlines()] == [
        ["run", "stage", "rows", "inputs", "state"],
        ["0000000000dd", "data", "-", "-", "sent"],
        ["mine-0000000000aa", "dpm", "3", "1/1", "sent"],
    ]
    assert synced.server.uses == [("mine-0000000000aa", "data-0000000000dd")]


def test_a_repeated_command_sends_nothing_again(synced):
    before = len(synced.server.received)
    code, said = synchronize(synced.server, synced.outputs)
    assert code == 0
    assert [line.split()[-2:] for line in said.splitlines()[1:]] == [["there", "already"]] * 2
    assert not [text for text in synced.server.received[before:] if "UpsertBucket" in text]


def test_a_run_that_was_cut_off_gets_the_rows_that_it_misses(synced):
    run = synced.server.runs["mine-0000000000aa"]
    whole = run["history"]
    run["history"] = whole[:1]
    run["summary"] = {"trainer/global_step": 10}
    (mark,) = synced.outputs.glob("wandb/sent/*/*/mine-*")
    mark.unlink()
    code, said = synchronize(synced.server, synced.outputs)
    assert code == 0, said
    steps = [(row["_step"], row["trainer/global_step"]) for row in run["history"]]
    assert steps == [(0, 10), (1, 20), (2, 30)]


def test_rows_that_the_server_loses_fail_the_command(synced, tmp_path):
    outputs = tmp_path / "outputs"
    finish(outputs, "dpm", "0000000000bb")
    synced.server.loses.add("0000000000bb")
    code, said = synchronize(synced.server, outputs)
    assert code == "1 of 1 runs failed; the same command tries them again"
    assert "FAILED: the server has 0 of 3 rows" in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("settings.json", "settings.json is damaged: its content has changed"),
        ("metrics.csv", "metrics.csv is damaged: its content has changed since it was made"),
        ("manifest.json", "manifest.json is damaged"),
    ],
)
def test_flipped_bytes_are_named_and_the_others_are_sent(synced, tmp_path, name, reason):
    outputs = tmp_path / "outputs"
    finish(outputs, "dpm", "0000000000cc")
    finish(outputs, "dpm", "0000000000ee")
    path = outputs / "dpm" / "0000000000cc" / name
    content = bytearray(path.read_bytes())
    content[1:3] = bytes(255 - byte for byte in content[1:3])
    path.write_bytes(content)
    code, said = synchronize(synced.server, outputs)
    assert code == "1 of 2 runs failed; the same command tries them again"
    (failed,) = [line for line in said.splitlines() if "FAILED" in line]
    assert reason in failed
    assert "remedy: " in failed
    assert said.splitlines()[-1].endswith("sent")
    shutil.rmtree(outputs / "wandb")


def test_a_folder_without_artifacts_and_an_unknown_sweep_are_refused(synced, tmp_path):
    code, _ = synchronize(synced.server, tmp_path / "outputs")
    assert "holds no finished artifacts; remedy: name runtime.outputs" in code
    code, _ = synchronize(synced.server, synced.outputs, "--sweep", "mine")
    assert "has no record of its points; remedy: run make sweep SWEEP=mine" in code


def test_no_path_of_this_machine_is_sent(synced):
    sent = json.dumps(synced.server.received)
    assert str(Path(synced.outputs).parent) not in sent
    assert "file://" not in sent
    metadata = json.loads(synced.server.artifacts["dpm-0000000000aa"]["metadata"])
    assert set(metadata["files"]) == {"settings.json", "lineage.json"}
    assert all(set(file) == {"bytes", "sha256"} for file in metadata["files"].values())
