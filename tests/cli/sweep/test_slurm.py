"""A sweep on a real Slurm cluster: shared work once, limits, failures, and the same command again.

Skipped where no cluster answers.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidepipe.cli.sweep import cluster, records
from sidepipe.cli.sweep.grid import Sweep, sweep_of
from sidepipe.cli.sweep.states import look
from sidepipe.engine import artifacts

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(not cluster.is_there(), reason="no Slurm cluster answers"),
]
PATIENCE = 600.0  # seconds; jobs of a busy machine take long to start
SMOKE = ("experiment=smoke", "attacks=single", "seed=0")
ALONE = "runtime.slurm.group_minutes=0"  # a job per artifact


@pytest.fixture
def options(tmp_path: Path) -> Iterator[list[str]]:
    """Overrides that name the cluster's jobs' needs; what is left of them is cancelled."""
    yield [
        *(f"runtime.outputs={tmp_path}", "runtime.slurm.gres=null", "runtime.slurm.mem=1500"),
        *("runtime.slurm.cpus_per_task=1", "runtime.num_threads=1"),
    ]
    queue = cluster.queue()
    cluster.cancel([job.id for job in records.jobs(tmp_path / "sweeps") if job.id in queue])


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sidepipe.cli.sweep", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(*overrides: str) -> Sweep:
    """Submits the sweep."""
    command("run", "attack_demo", *overrides)
    return sweep_of("attack_demo", ["runtime=slurm", *overrides])


def wait(until: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not until():
        assert time.monotonic() - started < PATIENCE, "the cluster is too slow, or a job hangs"
        time.sleep(1)


def is_over(sweep: Sweep) -> bool:
    queue = cluster.queue()
    return not any(job.id in queue for job in records.jobs(sweep.folder.parent))


def job_seconds(ids: list[str]) -> int:
    rows = cluster.accounted(ids, "ElapsedRaw")
    whole = [int(row["ElapsedRaw"]) for job, row in rows.items() if "." not in job]
    assert len(whole) >= len(ids)
    return sum(whole)


def test_a_grid_is_made_once_and_in_less_time_than_submitit_takes(
    options: list[str], tmp_path: Path
) -> None:
    grid = [*SMOKE, "stage=evaluate", "extract.guidance.guidance_scale=1,2,3"]
    sweep = run(*grid, *options)
    run(*grid, *options)  # adds nothing
    wait(lambda: is_over(sweep))
    assert {seen.kind for seen in look(sweep).values()} == {"done"}
    submitted = records.jobs(sweep.folder.parent)
    keys = Counter(key for job in submitted for key in job.keys)
    assert keys == dict.fromkeys(sweep.tasks, 1)
    made = [line for job in submitted for line in job.log.read_text().splitlines()]
    assert sum("INFO dpm: done in" in line for line in made) == 1
    ours = job_seconds([job.id for job in submitted])
    # Each point is one job, which finds or waits for what other points have made.
    there = tmp_path / "submitit"
    multirun = ["-m", "hydra/launcher=slurm", "runtime=slurm", *grid, *options]
    point = [sys.executable, "-m", "sidepipe", *multirun, f"runtime.outputs={there}"]
    subprocess.run(point, check=True, capture_output=True)
    ids = {path.name.split("_")[0] for path in there.rglob("*_submitted.pkl")}
    assert len(list(there.glob("evaluate/*/manifest.json"))) == 3
    theirs = job_seconds(sorted(ids))
    print(f"job-seconds: {ours} in {len(submitted)} jobs; by submitit {theirs}")
    assert ours <= 1.2 * theirs


def test_a_fast_point_is_not_held_and_a_failed_input_starts_no_reader(
    options: list[str],
) -> None:
    axes = ("dpm.max_steps=100000,60", "dpm.lr=0.001,1e30")
    sweep = run(*SMOKE, *axes, "stage=generate", ALONE, *options)
    models = [key for key, task in sweep.tasks.items() if task.node.stage.name == "dpm"]
    readers = [key for key, task in sweep.tasks.items() if task.node.stage.name == "generate"]
    slow, _, fast, _ = models
    jobs = {key: job for job in records.jobs(sweep.folder.parent) for key in job.keys}
    wait(lambda: sweep.tasks[readers[2]].is_done)
    assert sweep.tasks[fast].is_done
    assert jobs[slow].id in cluster.queue()
    assert not sweep.tasks[slow].is_done
    bad = [jobs[key].id for key in (models[1], models[3], readers[1], readers[3])]
    wait(lambda: not set(bad) & cluster.queue().keys())
    rows = cluster.accounted(bad, "State", "ElapsedRaw")
    assert [rows[each]["State"].split()[0] for each in bad] == ["FAILED"] * 2 + ["CANCELLED"] * 2
    assert [rows[each]["ElapsedRaw"] for each in bad[2:]] == ["0", "0"]
    said = command("status", "attack_demo", options[0])
    for model in (models[1], models[3]):
        assert f": blocked by dpm {model}" in said
        (failed,) = [line for line in said.splitlines() if f"  dpm {model}" in line]
        assert "the loss is nan" in failed
        assert f"log: {sweep.tasks[model].folder / 'log.txt'}" in failed
    # A killed job is named, and the same command resumes from its checkpoint.
    wait((sweep.tasks[slow].folder / "last.ckpt").exists)
    subprocess.run(["scancel", "--signal=KILL", jobs[slow].id], check=True)
    wait(lambda: is_over(sweep))
    said = command("status", "attack_demo", options[0])
    (killed,) = [line for line in said.splitlines() if f"  dpm {slow}" in line]
    assert f"job {jobs[slow].id} " in killed
    run(*SMOKE, "dpm.max_steps=100000", "dpm.lr=0.001", "stage=generate", ALONE, *options)
    again = [job for job in records.jobs(sweep.folder.parent) if slow in job.keys][-1]
    assert again.id != jobs[slow].id
    wait(lambda: again.log.exists() and "resuming from" in again.log.read_text())
    assert "canceled 2 jobs" in command("cancel", "attack_demo", options[0])
    wait(lambda: is_over(sweep))
    seen = look(
        sweep_of("attack_demo", ["runtime=slurm", *SMOKE, *axes, "stage=generate", *options])
    )
    assert "was canceled" in seen[slow].details
    assert seen[slow].kind == "unfinished"


def slurm(*arguments: str) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def five_jobs() -> Iterator[None]:
    """The cluster accepts arrays of five jobs, and five jobs of a user."""
    config = slurm("scontrol", "show", "config")
    if os.geteuid() != 0 or not re.search(r"^ClusterName\s*= local$", config, re.M):
        pytest.skip("changes limits only of a cluster of this machine, named local, as root")
    path = Path(re.search(r"^SLURM_CONF\s*= (.*)$", config, re.M)[1])
    before = path.read_text()

    def restart() -> None:
        pid = Path(re.search(r"^SlurmctldPidFile\s*= (.*)$", config, re.M)[1]).read_text().strip()
        slurm("scontrol", "shutdown", "slurmctld")
        wait(lambda: not Path(f"/proc/{pid}").exists())
        subprocess.run(["slurmctld"], cwd="/", env={"PATH": os.environ["PATH"]}, check=True)
        wait(cluster.is_there)
        # The nodes register again within seconds.
        job = ["sbatch", "--test-only", "--mem=1500", "--wrap=true"]
        wait(lambda: subprocess.run(job, capture_output=True).returncode == 0)

    def limit(most: int) -> None:
        slurm("sacctmgr", "-i", "modify", "qos", "normal", "set", f"MaxSubmitJobsPerUser={most}")

    path.write_text(f"{before}\nAccountingStorageEnforce=limits\nMaxArraySize=5\n")
    try:
        restart()
        limit(5)
        yield
    finally:
        limit(-1)
        path.write_text(before)
        restart()


@pytest.mark.usefixtures("five_jobs")
def test_a_sweep_larger_than_the_limits_of_jobs_finishes_by_itself(options: list[str]) -> None:
    overrides = ["stage=data", "data.size=range(4,11)", ALONE, *options]
    said = command("run", "attack_demo", *SMOKE, *overrides)
    assert "submitted data: 4 jobs" in said
    assert "3 more: job" in said
    sweep = sweep_of("attack_demo", ["runtime=slurm", *SMOKE, *overrides])
    wait(lambda: is_over(sweep))
    assert {seen.kind for seen in look(sweep).values()} == {"done"}
    keys = Counter(key for job in records.jobs(sweep.folder.parent) for key in job.keys)
    assert keys == dict.fromkeys(sweep.tasks, 1)
    assert len(sweep.tasks) == 7


def test_a_login_node_whose_controller_is_down_computes_nothing(
    options: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "slurm.conf"
    config.write_text("ClusterName=none\nSlurmctldHost=localhost\nSlurmctldPort=1\n")
    arguments = ["run", "attack_demo", *SMOKE, "stage=data", f"runtime.outputs={tmp_path}/out"]
    done = subprocess.run(
        [sys.executable, "-m", "sidepipe.cli.sweep", *arguments, *options[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, "SLURM_CONF": str(config)},
    )
    assert done.returncode == 1
    assert "no Slurm cluster answers" in done.stderr
    assert "LAUNCHER=local" in done.stderr
    assert not (tmp_path / "out").exists()


def test_tasks_of_a_job_near_its_time_limit_save_together_and_go_on(options: list[str]) -> None:
    long = ("dpm.max_steps=200", "stage=dpm")
    sweep = run(*SMOKE, *long, ALONE, "runtime.slurm.tasks_per_node=2", *options)
    *_, key = sweep.tasks
    folder = sweep.tasks[key].folder
    *_, job = records.jobs(sweep.folder.parent)
    wait((folder / "last.ckpt").exists)
    subprocess.run(["scancel", "--signal=USR2", job.id], check=True)
    wait(lambda: is_over(sweep))
    log = job.log.read_text()
    assert "resuming from" in log
    assert log.count("INFO dpm: done in") == 1
    manifest = json.loads((folder / artifacts.MANIFEST).read_text())
    assert manifest["key"] == key
