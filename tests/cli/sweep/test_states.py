"""What is told of a sweep: disk and cluster together, and who waits for whom."""

import json
from pathlib import Path

from tests.cli.sweep.conftest import Cluster
from tests.cli.sweep.test_jobs import ALONE, finish, smoke

from sidepipe.base import files
from sidepipe.cli.sweep import jobs, records
from sidepipe.cli.sweep.grid import Sweep
from sidepipe.cli.sweep.resources import Slurm
from sidepipe.cli.sweep.states import about, last_lines, look, table
from sidepipe.engine import artifacts, locks, pipeline


def kinds(sweep: Sweep) -> dict[str, str]:
    return {sweep.tasks[key].title: seen.kind for key, seen in look(sweep).items()}


def fail(sweep: Sweep, stage: str, error: str) -> None:
    task = next(task for task in sweep.tasks.values() if task.node.stage.name == stage)
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / pipeline.ERROR).write_text(json.dumps({"error": error}))


def test_every_kind_is_told_apart(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path)
    made = {job.keys[0]: job.id for job in jobs.submit(sweep, ALONE, 1).jobs}
    job = {sweep.tasks[key].title: each for key, each in made.items()}
    finish(sweep, "data", "dpm")
    slurm.says(
        "squeue",
        f"{job['generate']}|RUNNING|None|n1",
        f"{job['label [side]']}|PENDING|Dependency|",
        f"{job['reference']}|PENDING|Priority|",
    )
    slurm.says("sacct", f"{job['extract [unconditional]']}|OUT_OF_MEMORY|0:125")
    assert kinds(sweep) == {
        "data": "done",
        "dpm": "done",
        "generate": "running",
        "label [side]": "queued",
        "classifier [side]": "blocked",
        "extract [unconditional]": "failed",
        "extract [side]": "blocked",
        "reference": "queued",
        "evaluate [unconditional]": "blocked",
        "evaluate [side]": "blocked",
        "report": "blocked",
    }
    (running,) = [seen for seen in look(sweep).values() if seen.kind == "running"]
    assert running.details.startswith(f"job {job['generate']} starts on n1; log: ")


def test_the_artifacts_of_one_job_are_told_apart(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=dpm", "dpm.num_train_images=32,64")
    (job,) = jobs.submit(sweep, Slurm(gres=None), 1).jobs
    _, first, last = job.keys
    slurm.says("squeue", f"{job.id}|RUNNING|None|n1")
    finish(sweep, "data")
    assert [seen.kind for seen in look(sweep).values()] == ["done", "queued", "queued"]
    slurm.says("squeue")
    slurm.says("sacct", f"{job.id}|OUT_OF_MEMORY|0:125")
    seen = look(sweep)
    assert (seen[first].kind, seen[last].kind) == ("failed", "missing")
    assert seen[last].details == f"job {job.id} ended before"


def test_a_controller_that_is_down_blocks_nothing(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=dpm")
    jobs.submit(sweep, ALONE, 1)
    (slurm.state / "down").touch()
    slurm.says("sacct", "100|RUNNING|0:0")
    assert {str(seen) for seen in look(sweep).values()} == {
        "queued: job 100: Slurm does not answer",
        "queued: job 101: Slurm does not answer",
    }


def test_a_running_artifact_tells_its_progress(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=data")
    (task,) = sweep.tasks.values()
    task.folder.mkdir(parents=True)
    content = {"step": 7, "total": 9, "unit": "image", "seconds_left": 61.0}
    files.write_json(task.folder / artifacts.PROGRESS, content)
    with locks.locked(task.folder):
        (seen,) = look(sweep).values()
    assert seen.kind == "running"
    assert seen.details.endswith("at image 7/9, 0:01:01 left")


def test_a_failed_artifact_tells_its_error_and_its_readers_wait(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path)
    finish(sweep, "data")
    fail(sweep, "dpm", "the loss is nan at step 7")
    told = table(sweep, look(sweep))
    (line,) = [line for line in told.splitlines() if "nan" in line]
    assert "the loss is nan at step 7; log: " in line
    dpm = next(key for key, task in sweep.tasks.items() if task.title == "dpm")
    assert f"blocked by dpm {dpm}" in told
    assert kinds(sweep)["report"] == "blocked"


def test_a_killed_job_is_a_failure_with_what_slurm_and_the_log_say(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "stage=data")
    jobs.submit(sweep, ALONE, 1)
    slurm.says("sacct", "100|OUT_OF_MEMORY|0:125")
    (job,) = records.jobs(sweep.folder.parent)
    job.log.write_text("0: reading\n0: slurmstepd: oom-kill\n1: Connection closed by peer\n\n")
    (seen,) = look(sweep).values()
    assert seen.kind == "failed"
    expected = "job 100 OUT_OF_MEMORY (0:125): 0: slurmstepd: oom-kill | 1: Connection closed"
    assert seen.details.startswith(expected)


def test_a_failure_that_was_mended_is_forgotten(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=data")
    fail(sweep, "data", "no such folder")
    jobs.submit(sweep, ALONE, 1)
    slurm.queue_all(sweep.folder)
    assert kinds(sweep) == {"data": "queued"}
    finish(sweep, "data")
    assert kinds(sweep) == {"data": "done"}


def test_a_damaged_artifact_is_named_and_stops_its_readers_alone(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "stage=dpm", "dpm.num_train_images=32,64")
    finish(sweep, "data", "dpm")
    assert set(kinds(sweep).values()) == {"done"}
    *_, dpm = sweep.tasks.values()
    (dpm.folder / artifacts.MANIFEST).write_text("{}")
    assert not dpm.is_done
    seen = look(sweep)
    assert [each.kind for each in seen.values()] == ["done", "done", "damaged"]
    assert f"{dpm.folder}/manifest.json is damaged" in table(sweep, seen)


def test_the_last_line_of_each_rank(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == []
    log.write_text("srun: error\n 0: a\n10: b\n 0: c: d\n10:\n")
    assert last_lines(log) == ["srun: error", "0: c: d", "10: b"]


def test_a_task_is_told_with_its_place_in_the_grid(tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=dpm", "dpm.num_train_images=32,64")
    *_, task = sweep.tasks.values()
    assert about(task, sweep) == f"dpm {task.node.key} (dpm.num_train_images=64)"


def test_canceled_artifacts_have_not_failed(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=dpm")
    jobs.submit(sweep, ALONE, 1)
    slurm.says("sacct", "100|CANCELLED by 0|0:0", "101|CANCELLED by 0|0:0")
    assert [str(seen) for seen in look(sweep).values()] == [
        "missing: job 100 was canceled",
        "missing: job 101 was canceled",
    ]
