"""Damage and Ctrl-C as a user of the command line meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.test_end_to_end import sidepipe

pytestmark = pytest.mark.e2e
SMOKE = "experiment=smoke"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smoke experiment has run up to its synthetic images."""
    folder = tmp_path_factory.mktemp("run")
    done = sidepipe(SMOKE, "stage=generate", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("name", "change", "command"),
    [
        ("generate/*/shards/000001.npy", np.zeros_like, ["stage=label", "attacks=single"]),
        ("dpm/*/heldout.npy", np.flip, ["stage=generate", "generate.seed=1"]),
    ],
    ids=["a blackened shard", "an edited heldout.npy"],
)
def test_changed_content_is_refused_with_file_and_remedy(folder, name, change, command) -> None:
    (path,) = folder.glob(f"outputs/{name}")
    before = path.read_bytes()
    np.save(path, change(np.load(path)))
    assert len(before) == path.stat().st_size, "a size alone does not tell"
    try:
        done = sidepipe(SMOKE, *command, cwd=folder)
    finally:
        path.write_bytes(before)
    assert done.returncode == 1
    assert f"{path} is damaged: its content has changed since it was made (SHA-256)" in done.stderr
    assert "remedy: restore it, or delete" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_last_shard_is_made_again_to_the_same_bytes(folder: Path) -> None:
    (path,) = folder.glob("outputs/generate/*/shards/000002.npy")
    before = path.read_bytes()
    path.unlink()
    said = sidepipe(SMOKE, "stage=status", cwd=folder).stdout
    assert "damaged: shards/000002.npy missing; the same command makes it again" in said
    done = sidepipe(SMOKE, "stage=generate", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "has lost shards/000002.npy and is made again" in done.stderr
    assert "100 of 120 images exist" in done.stderr
    assert path.read_bytes() == before


def test_ctrl_c_in_training_saves_and_the_same_command_resumes(tmp_path: Path) -> None:
    """To the whole process group, as a terminal sends it."""
    arguments = [SMOKE, "stage=dpm", "dpm.max_steps=400", "dpm.checkpoint_every_steps=400"]
    # A shell that starts tests in the background has SIGINT ignored, and children inherit that.
    start = "import signal, runpy; signal.signal(2, signal.default_int_handler); "
    code = f"{start}runpy.run_module('sidepipe', run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("outputs/dpm/*/metrics.csv")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "saving after this batch; Ctrl-C again stops immediately" in said
    assert "stopped: finished work is saved; to resume, run the same command again" in said
    assert "Traceback" not in said
    (dpm,) = tmp_path.glob("outputs/dpm/*/")
    assert (dpm / "last.ckpt").exists()
    assert not (dpm / "manifest.json").exists()
    spent = json.loads((dpm / "seconds.json").read_text())["seconds"]
    assert spent > 0
    done = sidepipe(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"resuming from {dpm / 'last.ckpt'}" in done.stderr
    assert json.loads((dpm / "manifest.json").read_text())["seconds"] > spent


@pytest.mark.parametrize("place", ["outputs", "outputs/dpm"])
def test_a_file_where_a_folder_belongs_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    done = sidepipe(SMOKE, "stage=dpm", cwd=tmp_path)
    assert done.returncode == 1
    assert str(tmp_path / place) in done.stderr
    assert "Traceback" not in done.stderr
