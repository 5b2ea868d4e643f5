"""Jobs of a real cluster. Names of jobs start with `ranks-`, and only these are cancelled."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("sbatch") is None
        or subprocess.run(["sinfo"], capture_output=True, check=False).returncode != 0,
        reason="no Slurm cluster answers",
    ),
]
LONGER = (
    *("dpm.max_steps=200", "dpm.preview_every_steps=200", "dpm.checkpoint_every_steps=200"),
    "dpm.log_every_steps=10",
)
SCRIPT = """#!/bin/bash
cd {folder}
exec srun --label --kill-on-bad-exit=1 {python} -m sidepipe experiment=smoke \\
    runtime.accelerator=cpu runtime.num_threads=1 {overrides}
"""


class Job:
    """A job of two tasks on one node that runs `sidepipe <overrides>` in `folder`."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.log = folder, folder / "job.log"
        script = folder / "job.sh"
        said = {"folder": folder, "python": sys.executable, "overrides": " ".join(overrides)}
        script.write_text(SCRIPT.format(**said))
        options = f"--job-name=ranks-test --output={self.log} --open-mode=append --requeue"
        shape = "--nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --mem=3000 --parsable"
        command = ["sbatch", *options.split(), *shape.split(), script]
        self.id = subprocess.check_output(command, text=True).strip()

    def shown(self, name: str) -> str:
        """A field of `scontrol show job`."""
        said = subprocess.check_output(["scontrol", "show", "job", "-o", self.id], text=True)
        return re.search(rf"\b{name}=(\S*)", said)[1]

    def until(self, ready, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def state(self) -> str:
        """How it ended, once it has."""
        self.until(lambda: self.shown("JobState") not in ("PENDING", "RUNNING", "COMPLETING"))
        return self.shown("JobState")

    def signal(self, name: str) -> None:
        """Signals the tasks once the training has got further than before."""
        rows = self.rows()
        self.until(lambda: self.rows() >= rows + 4)
        subprocess.check_call(["scancel", f"--signal={name}", self.id])

    def rows(self) -> int:
        return sum(len(p.read_text().splitlines()) for p in self.folder.glob("*/dpm/*/metrics.csv"))

    def cancel(self) -> None:
        subprocess.run(["scancel", "--quiet", self.id], check=False)


@pytest.fixture(scope="module")
def start():
    """Submits jobs; what is left of them in the end is cancelled."""
    jobs = []

    def submit(folder, *overrides):
        jobs.append(Job(folder, *overrides))
        return jobs[-1]

    yield submit
    for job in jobs:
        job.cancel()


def alone(folder, *overrides):
    """Runs the same command as one process, here."""
    options = ("experiment=smoke", "runtime.accelerator=cpu", "runtime.num_threads=1")
    command = [sys.executable, "-m", "sidepipe", *options, *overrides]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def only(folder, pattern):
    [path] = folder.glob(f"outputs/{pattern}")
    return path


def losses(folder):
    """Those of validation, by name."""
    summary = json.loads(only(folder, "dpm/*/manifest.json").read_text())["summary"]
    return {name: value for name, value in summary.items() if name.startswith("val/")}


def weights(folder):
    return load_file(only(folder, "dpm/*/model/unet/*.safetensors"))


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    """The folder in which a job of two tasks has trained and sampled."""
    job = start(tmp_path_factory.mktemp("uninterrupted"), "stage=generate", *LONGER)
    assert job.state() == "COMPLETED", job.log.read_text()
    return job.folder


def test_two_tasks_make_what_one_process_makes(uninterrupted, tmp_path):
    """Losses to rounding; of one and the same model the same images."""
    alone(tmp_path, "stage=dpm", *LONGER)
    for name, value in losses(tmp_path).items():
        assert losses(uninterrupted)[name] == pytest.approx(value, abs=1e-3)
    shutil.rmtree(tmp_path / "outputs/dpm")
    shutil.copytree(uninterrupted / "outputs/dpm", tmp_path / "outputs/dpm")
    alone(tmp_path, "stage=generate", *LONGER)
    ours, theirs = (only(f, "generate/*/shards") for f in (tmp_path, uninterrupted))
    names = sorted(path.name for path in ours.iterdir())
    assert names == sorted(path.name for path in theirs.iterdir())
    for name in names:
        np.testing.assert_array_equal(np.load(ours / name), np.load(theirs / name))


def test_a_job_near_its_time_limit_and_one_that_is_killed_go_on_to_the_same_result(
    uninterrupted, start, tmp_path
):
    job = start(tmp_path / "run", "stage=dpm", *LONGER)
    job.signal("USR2")
    job.until(lambda: job.shown("Restarts") == "1")
    saved = only(job.folder, "dpm/*/last.ckpt")
    assert 4 <= torch.load(saved, weights_only=True)["global_step"] < 200
    job.signal("KILL")
    assert job.state() in ("FAILED", "CANCELLED")
    assert not list(job.folder.glob("outputs/dpm/*/manifest.json"))
    again = start(tmp_path / "run", "stage=dpm", *LONGER)
    assert again.state() == "COMPLETED", again.log.read_text()
    said = job.log.read_text()
    assert said.count("is requeued") == 1
    assert said.count("resuming from") == 2
    assert "waiting for" not in said
    for name, value in weights(uninterrupted).items():
        torch.testing.assert_close(weights(job.folder)[name], value, rtol=0, atol=0)
