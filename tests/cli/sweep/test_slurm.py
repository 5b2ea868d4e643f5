"""A sweep on a real Slurm cluster: shared work once, failures named, the same command goes on.

Skipped where no cluster answers.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidepipe.cli.sweep import cluster, jobs
from sidepipe.cli.sweep.grid import Sweep, sweep_of
from sidepipe.cli.sweep.states import look
from sidepipe.engine import artifacts

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(not cluster.is_there(), reason="no Slurm cluster answers"),
]
PATIENCE = 600.0  # seconds; jobs of a busy machine take long to start
GRID = (
    *("experiment=smoke", "attacks=single", "seed=0", "stage=evaluate"),
    *("dpm.num_train_images=32,64", "extract.guidance.guidance_scale=1,2,3"),
)


@pytest.fixture
def options(tmp_path: Path) -> Iterator[list[str]]:
    """Overrides that name the cluster's jobs' needs; what is left of them is cancelled."""
    yield [
        *(f"runtime.outputs={tmp_path}", "runtime.slurm.gres=null", "runtime.slurm.mem=1500"),
        *("runtime.slurm.cpus_per_task=1", "runtime.num_threads=1"),
    ]
    mine = jobs.at_work(tmp_path / "sweeps", cluster.queue())
    cluster.cancel([job.id for job in mine.values()])


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sidepipe.cli.sweep", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait(until: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not until():
        assert time.monotonic() - started < PATIENCE, "the cluster is too slow, or a job hangs"
        time.sleep(1)


def is_over(sweep: Sweep) -> bool:
    return not jobs.at_work(sweep.folder.parent, cluster.queue())


def manifests(sweep: Sweep) -> dict[str, dict]:
    found = {key: artifacts.read_manifest(task.folder) for key, task in sweep.tasks.items()}
    return {key: manifest for key, manifest in found.items() if manifest is not None}


def test_a_grid_is_made_with_each_artifact_once(options: list[str]) -> None:
    sweep = sweep_of("attack_demo", ["runtime=slurm", *GRID, *options])
    command("run", "attack_demo", "--launcher", "slurm", *GRID, *options)
    command("run", "attack_demo", "--launcher", "slurm", *GRID, *options)  # adds nothing
    wait(lambda: is_over(sweep))
    assert {seen.kind for seen in look(sweep).values()} == {"done"}
    submitted = jobs.jobs(sweep.folder.parent)
    assert Counter(job.key for job in submitted) == dict.fromkeys(sweep.tasks, 1)
    stages = Counter(task.node.stage.name for task in sweep.tasks.values())
    assert (stages["dpm"], stages["extract"]) == (2, 6)
    made = [line for job in submitted for line in job.log.read_text().splitlines()]
    assert sum("INFO dpm: done in" in line for line in made) == 2


def test_what_was_killed_or_failed_is_named_and_the_same_command_goes_on(
    options: list[str],
) -> None:
    slow = ("dpm.max_steps=100000", "stage=generate")
    given = [*GRID[:3], *slow, "dpm.lr=0.001,1e30", "extract.guidance.guidance_scale=1", *options]
    sweep = sweep_of("attack_demo", ["runtime=slurm", *given])
    command("run", "attack_demo", "--launcher", "slurm", *given)
    good, bad = (key for key, task in sweep.tasks.items() if task.node.stage.name == "dpm")
    job = next(job for job in jobs.jobs(sweep.folder.parent) if job.key == good)
    checkpoint = sweep.tasks[good].folder / "last.ckpt"
    wait(checkpoint.exists)
    subprocess.run(["scancel", "--signal=KILL", job.id], check=True)
    wait(lambda: is_over(sweep))
    said = command("status", "attack_demo", options[0])
    (killed,) = [line for line in said.splitlines() if f"job {job.id} was canceled" in line]
    assert killed.startswith(f"  dpm {good}")
    (failed,) = [line for line in said.splitlines() if "the loss is nan" in line]
    assert f"dpm {bad}" in failed
    assert f"log: {sweep.tasks[bad].folder / 'log.txt'}" in failed
    assert sum("reads dpm" in line for line in said.splitlines()) == 2
    # The same command submits them again, and the killed one goes on from its checkpoint.
    command("run", "attack_demo", "--launcher", "slurm", *given)
    again = [job for job in jobs.jobs(sweep.folder.parent) if job.key == good][-1]
    assert again.id != job.id
    wait(lambda: again.log.exists() and "resuming from" in again.log.read_text())
    assert "canceled" in command("cancel", "attack_demo", options[0])
    wait(lambda: is_over(sweep))
    assert manifests(sweep).keys() == {
        key for key, task in sweep.tasks.items() if task.node.stage.name == "data"
    }


def test_tasks_of_a_job_near_its_time_limit_save_together_and_go_on(options: list[str]) -> None:
    long = ("dpm.max_steps=600", "stage=dpm", "extract.guidance.guidance_scale=1")
    given = [*GRID[:3], *long, "runtime.slurm.tasks_per_node=2", *options]
    sweep = sweep_of("attack_demo", ["runtime=slurm", *given])
    command("run", "attack_demo", "--launcher", "slurm", *given)
    *_, key = sweep.tasks
    folder = sweep.tasks[key].folder
    *_, job = jobs.jobs(sweep.folder.parent)
    wait((folder / "last.ckpt").exists)
    subprocess.run(["scancel", "--signal=USR2", job.id], check=True)
    wait(lambda: is_over(sweep))
    log = job.log.read_text()
    assert "resuming from" in log
    assert log.count("INFO dpm: done in") == 1
    manifest = json.loads((folder / artifacts.MANIFEST).read_text())
    assert manifest["key"] == key
