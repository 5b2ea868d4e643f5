"""Submitting: what is missing and nobody's yet, stage by stage, each behind what it reads."""

import json
from pathlib import Path

import pytest
from tests.cli.sweep.conftest import Cluster

from sidepipe.cli.sweep import cluster, jobs
from sidepipe.cli.sweep.grid import Sweep, sweep_of
from sidepipe.engine import artifacts

ASKED = cluster.Slurm()


def smoke(outputs: Path, *overrides: str) -> Sweep:
    given = ("experiment=smoke", "attacks=compare", "seed=0", f"runtime.outputs={outputs}")
    return sweep_of("attack_demo", [*given, *overrides])


def finish(sweep: Sweep, *stages: str) -> None:
    for task in sweep.tasks.values():
        if task.node.stage.name in stages:
            task.folder.mkdir(parents=True, exist_ok=True)
            content = {"key": task.node.key, "seconds": 1, "summary": {}, "settings": {}}
            artifacts.write_manifest(task.folder, {**content, "inputs": {}})


def test_each_stage_is_an_array_behind_the_stages_it_reads(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "dpm.num_train_images=32,64")
    submitted = list(jobs.submit(sweep, ASKED))
    assert submitted == [
        *(("data", "100", 1), ("dpm", "101", 2), ("generate", "102", 2), ("label", "103", 2)),
        *(("classifier", "104", 2), ("extract", "105", 4), ("reference", "106", 2)),
        *(("evaluate", "107", 4), ("report", "108", 2)),
    ]
    after = slurm.dependencies
    assert after["100"] == []
    assert after["101"] == ["100"]
    assert after["103"] == ["102"]
    assert {"101", "103", "104"} <= set(after["105"])
    assert after["106"] == ["100", "101"]
    assert after["108"] == ["107"]


def test_a_task_is_the_artifact_of_its_index(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "dpm.num_train_images=32,64")
    list(jobs.submit(sweep, ASKED))
    (path,) = sweep.folder.glob("jobs/*-dpm.json")
    keys = [k for k, task in sweep.tasks.items() if task.node.stage.name == "dpm"]
    assert [jobs.task_of(path, index)[0] for index in (0, 1)] == keys
    key, overrides = jobs.task_of(path, 1)
    assert overrides[-2:] == ["seed=0", "dpm.num_train_images=64"]
    assert str(path) in slurm.scripts["101"]
    assert [job.id for job in jobs.jobs(tmp_path / "sweeps") if job.key == key] == ["101_1"]


def test_what_is_finished_is_not_submitted(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path)
    finish(sweep, "data", "dpm", "generate")
    stages = [stage for stage, _, _ in jobs.submit(sweep, ASKED)]
    assert stages == ["label", "classifier", "extract", "reference", "evaluate", "report"]
    assert slurm.dependencies["100"] == []


def test_what_a_job_is_about_to_make_is_not_submitted_again(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=dpm")
    assert len(list(jobs.submit(sweep, ASKED))) == 2
    slurm.queue_all(sweep.folder)
    assert list(jobs.submit(sweep, ASKED)) == []
    slurm.says("squeue")  # both were killed
    assert [stage for stage, _, _ in jobs.submit(sweep, ASKED)] == ["data", "dpm"]


def test_another_sweep_waits_for_the_jobs_that_make_what_both_need(
    slurm: Cluster, tmp_path: Path
) -> None:
    first = smoke(tmp_path, "stage=dpm")
    list(jobs.submit(first, ASKED))
    slurm.queue_all(first.folder)
    second = sweep_of("attack_faces", [*first.overrides, "experiment=smoke", "dpm=tiny"])
    assert [stage for stage, _, _ in jobs.submit(second, ASKED)] == []
    further = smoke(tmp_path, "stage=generate", "dpm.num_train_images=64,32")
    assert list(jobs.submit(further, ASKED)) == [("dpm", "102", 1), ("generate", "103", 2)]
    assert slurm.dependencies["102"] == ["100"]
    assert slurm.dependencies["103"] == ["101", "102"]


def test_a_refused_job_leaves_no_record(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path)
    slurm.refuses()
    with pytest.raises(RuntimeError, match="sbatch refused"):
        list(jobs.submit(sweep, ASKED))
    assert list(sweep.folder.glob("jobs/*.json")) == []


def test_a_killed_submission_is_made_up_for(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=dpm")
    submitting = jobs.submit(sweep, ASKED)
    next(submitting)
    submitting.close()
    slurm.queue_all(sweep.folder)
    assert [stage for stage, _, _ in jobs.submit(sweep, ASKED)] == ["dpm"]
    assert slurm.dependencies["101"] == ["100"]


def test_an_array_is_no_longer_than_a_cluster_takes(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "MAX_ARRAY", 3)
    sweep = smoke(tmp_path, "stage=dpm", "dpm.num_train_images=range(32,40)")
    assert [n for stage, _, n in jobs.submit(sweep, ASKED) if stage == "dpm"] == [3, 3, 2]
    assert list(slurm.dependencies.values())[1:] == [["100"]] * 3


def test_records_hold_the_overrides_of_the_point_and_nothing_private(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "stage=data")
    list(jobs.submit(sweep, ASKED))
    (path,) = sweep.folder.glob("jobs/*.json")
    record = json.loads(path.read_text())
    assert set(record) == {"sweep", "name", "array", "tasks"}
    assert record["array"] == "100"
