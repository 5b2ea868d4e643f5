"""Ctrl-C, and files in the place of folders, as a user of the command line meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.test_end_to_end import sidepipe

pytestmark = pytest.mark.e2e
SMOKE = "experiment=smoke"


def test_ctrl_c_in_training_saves_and_the_same_command_resumes(tmp_path: Path) -> None:
    """To the whole process group, as a terminal sends it."""
    arguments = [SMOKE, "stage=dpm", "dpm.max_steps=200", "dpm.checkpoint_every_steps=200"]
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
