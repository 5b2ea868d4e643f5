"""The group and the tags of tracked runs, whatever starts them: read back from W&B's own files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.sweep.conftest import Cluster

pytestmark = pytest.mark.slow

SWEEP, RUN = "sidepipe.cli.sweep", "sidepipe"
HERE = ("experiment=smoke", "stage=data", "tracking=offline")


def started(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def runs(outputs: Path) -> list[tuple[str, list[str]]]:
    """The group and the tags of each run below the folder."""
    found = []
    for path in outputs.glob("wandb/wandb/offline-run-*/*.wandb"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        records = [json.loads(line) for line in text.splitlines()]
        run = next(record["run"] for record in records if record["type"] == "run")
        found.append((run.get("run_group"), run.get("tags")))
    return found


def local(outputs: str, slurm: Cluster, *more: str) -> None:
    started(SWEEP, "run", "attack_demo", "--launcher", "local", *HERE, outputs, *more)


def on_slurm(outputs: str, slurm: Cluster, *more: str) -> None:
    started(SWEEP, "run", "attack_demo", "--launcher", "slurm", *HERE, outputs, *more)
    (jobs,) = Path(outputs.partition("=")[2]).glob("sweeps/attack_demo/jobs/*.json")
    started(SWEEP, "job", str(jobs))


def multirun(outputs: str, slurm: Cluster, *more: str) -> None:
    started(RUN, "sweep=attack_demo", "seed=0,1", *HERE, outputs, *more)


@pytest.mark.parametrize("launcher", [local, on_slurm, multirun])
def test_a_sweep_is_the_group_and_its_experiment_a_tag(
    tmp_path: Path, slurm: Cluster, launcher
) -> None:
    launcher(f"runtime.outputs={tmp_path / 'outputs'}", slurm)
    assert runs(tmp_path / "outputs") == [("attack_demo", ["smoke"])]


def test_a_group_and_tags_of_the_user_take_precedence(tmp_path: Path, slurm: Cluster) -> None:
    local(f"runtime.outputs={tmp_path}", slurm, "tracking.group=mine", "tracking.tags=[a,b]")
    assert runs(tmp_path) == [("mine", ["a", "b"])]


def test_make_sweep_runs_this_command() -> None:
    root = Path(__file__).parents[3]
    command = ["make", "-n", "-o", "v/installed", "VENV=v", "sweep", "SWEEP=attack_demo"]
    said = subprocess.run(
        [*command, "LAUNCHER=local", f"ARGS={' '.join(HERE)}"],
        cwd=root,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split() == [
        *("v/bin/sidepipe-sweep", "run", "attack_demo", "--launcher", "local", *HERE)
    ]
