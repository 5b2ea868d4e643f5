"""Submitting: missing artifacts that no active job makes, each job after those that it reads."""

import json
import signal
from pathlib import Path

import pytest
from tests.cli.sweep.conftest import Cluster

from sidepipe.base import interruption
from sidepipe.cli.sweep import cluster, jobs, records
from sidepipe.cli.sweep.grid import Sweep, sweep_of
from sidepipe.cli.sweep.resources import Slurm
from sidepipe.engine import artifacts

ALONE = Slurm(group_minutes=0)  # a job per artifact


def smoke(outputs: Path, *overrides: str) -> Sweep:
    given = ("experiment=smoke", "attacks=compare", "seed=0", f"runtime.outputs={outputs}")
    return sweep_of("attack_demo", [*given, *overrides])


def finish(sweep: Sweep, *stages: str) -> None:
    for task in sweep.tasks.values():
        if task.node.stage.name in stages:
            task.folder.mkdir(parents=True, exist_ok=True)
            content = {"key": task.node.key, "seconds": 1, "summary": {}, "settings": {}}
            artifacts.write_manifest(task.folder, {**content, "inputs": {}})


def labels(sweep: Sweep, slurm: Slurm = ALONE, **options) -> list[str]:
    return [job.label for job in jobs.submit(sweep, slurm, 1, **options).jobs]


def test_a_job_waits_for_those_that_make_what_it_reads_and_for_no_other(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "dpm.num_train_images=32,64")
    made = {job.keys[0]: job for job in jobs.submit(sweep, ALONE, 1).jobs}
    assert made.keys() == sweep.tasks.keys()
    key_of = {job.id: key for key, job in made.items()}
    for key, job in made.items():
        waits = {key_of[each] for each in slurm.dependencies[job.id].split(",") if each}
        inputs = {read.key for read in sweep.tasks[key].node.inputs.values()}
        everything = set().union(*(sweep.tasks[each].node.upstream() for each in waits))
        assert waits <= inputs
        assert inputs <= everything, "it may wait for an input through another one"
    (small, large) = (key for key, t in sweep.tasks.items() if t.node.stage.name == "generate")
    assert slurm.dependencies[made[small].id] != slurm.dependencies[made[large].id]


def test_cheap_artifacts_are_one_job(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "dpm.num_train_images=32,64")
    (job,) = jobs.submit(sweep, Slurm(), 1).jobs
    assert set(job.keys) == sweep.tasks.keys()
    assert job.label == "data-report"
    planned = {tuple(task["overrides"]) for task in records.tasks_of(job.record)}
    assert len(planned) == 2, "the job plans each point once"
    assert str(job.record) in slurm.scripts[job.id]


def test_finished_artifacts_are_not_submitted(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path)
    finish(sweep, "data", "dpm", "generate")
    assert {"data", "dpm", "generate"} & set(labels(sweep)) == set()
    assert slurm.dependencies["100"] == ""


def test_artifacts_of_active_jobs_are_not_submitted_again(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=dpm")
    assert labels(sweep) == ["data", "dpm"]
    slurm.queue_all(sweep.folder)
    assert labels(sweep) == []
    slurm.says("squeue")  # both were killed
    assert labels(sweep) == ["data", "dpm"]


def test_another_sweep_waits_for_the_jobs_that_make_what_both_need(
    slurm: Cluster, tmp_path: Path
) -> None:
    first = smoke(tmp_path, "stage=dpm")
    labels(first)
    slurm.queue_all(first.folder)
    second = sweep_of("attack_faces", [*first.overrides, "experiment=smoke", "dpm=tiny"])
    assert labels(second) == []
    further = smoke(tmp_path, "stage=generate", "dpm.num_train_images=64,32")
    assert sorted(labels(further)) == ["dpm", "generate", "generate"]
    assert sorted(slurm.dependencies.values()) == ["", "100", "100", "101", "102"]


def test_a_refused_job_leaves_no_record(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path)
    slurm.refuses()
    with pytest.raises(RuntimeError, match="sbatch refused"):
        jobs.submit(sweep, ALONE, 1)
    assert list(sweep.folder.glob("jobs/*.json")) == []


def test_ctrl_c_during_submission_leaves_no_job_without_a_record(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, submit = smoke(tmp_path), cluster.submit

    def interrupted(*arguments, **options) -> str:
        job = submit(*arguments, **options)
        if job == "102":
            signal.raise_signal(signal.SIGINT)
        return job

    monkeypatch.setattr(cluster, "submit", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(interruption.Preempted), interruption.handled():
            jobs.submit(sweep, ALONE, 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(slurm.scripts) == ["100", "101", "102"]
    assert [job.id for job in records.jobs(tmp_path / "sweeps")] == ["100", "101", "102"]
    slurm.queue_all(sweep.folder)
    monkeypatch.setattr(cluster, "submit", submit)
    assert not {"data", "dpm"} & set(labels(sweep)), "the same command submits the rest"


@pytest.mark.parametrize("known", [True, False])
def test_a_full_cluster_gets_what_fits_and_a_job_that_submits_the_rest(
    known: bool, slurm: Cluster, tmp_path: Path
) -> None:
    """The limit is known as max_jobs, or only by the refusal of sbatch."""
    sweep = smoke(tmp_path, "stage=dpm", "dpm.num_train_images=range(32,40)")
    if not known:
        slurm.allows(5)
    own = Slurm(group_minutes=0, max_jobs=5) if known else ALONE
    submitted = jobs.submit(sweep, own, 7)
    assert [job.label for job in submitted.jobs] == ["data", *["dpm"] * 3]
    assert submitted.left == 5
    assert (slurm.cancelled == []) == known
    *_, refill = slurm.scripts
    assert submitted.refill is not None
    assert submitted.refill.id == refill
    ids = [job.id for job in submitted.jobs]
    assert slurm.dependencies[refill] == "?".join(f"afterany:{each}" for each in ids)
    assert "run attack_demo --launcher slurm --refill 7" in slurm.scripts[refill]
    assert "--gres" not in slurm.scripts[refill]
    assert [job.id for job in records.jobs(tmp_path / "sweeps")] == [*ids, refill]


def test_a_cluster_that_accepts_nothing_is_named(slurm: Cluster, tmp_path: Path) -> None:
    slurm.says("squeue", *(f"{job}|RUNNING|None|n1" for job in range(7)))
    with pytest.raises(cluster.Full, match="7 jobs of yours are in the queue"):
        jobs.submit(smoke(tmp_path), Slurm(max_jobs=5), 1)
    slurm.says("squeue")
    slurm.allows(0)
    with pytest.raises(cluster.Full, match="QOSMaxSubmitJobPerUserLimit"):
        jobs.submit(smoke(tmp_path), ALONE, 1)


def test_jobs_that_may_not_run_together_wait_for_earlier_ones(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "stage=dpm", "dpm.num_train_images=range(32,36)")
    jobs.submit(sweep, Slurm(group_minutes=0, array_parallelism=2), 1)
    assert list(slurm.dependencies.values()) == [
        *("", "100", "100", "100,afterany:101", "100,afterany:102"),
    ]


def history_of(sweep: Sweep, slurm: Cluster, own: Slurm, *ends: str) -> jobs.History:
    """The history after the jobs of a first submission, of which all but `ends` are active."""
    submitted = jobs.submit(sweep, own, 1).jobs
    over = {each.split("|")[0] for each in ends}
    slurm.says("squeue", *(f"{j.id}|PENDING|None|" for j in submitted if j.id not in over))
    slurm.says("sacct", *ends)
    return jobs.history(sweep, own, 1)


def test_a_refill_leaves_out_what_failed_and_all_that_reads_it(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "stage=generate", "dpm.num_train_images=32,64")
    finish(sweep, "data")
    # Slurm has canceled the reader of the failed one.
    past = history_of(sweep, slurm, ALONE, "100|FAILED|1:0", "102|CANCELLED by 0|0:0")
    _, bad, _, reader, _ = sweep.tasks
    assert past.given_up == {bad, reader}
    assert labels(sweep, before=past) == []


def test_a_job_that_a_person_canceled_is_not_submitted_again(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "stage=dpm")
    finish(sweep, "data")
    own = Slurm(group_minutes=0, retries=5)
    past = history_of(sweep, slurm, own, "100|CANCELLED by 1000|0:0")
    assert len(past.given_up) == 1


def test_a_job_without_enough_memory_is_submitted_again_with_twice_as_much(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "stage=dpm")
    finish(sweep, "data")
    own = Slurm(group_minutes=0, retries=1, mem="4G")
    past = history_of(sweep, slurm, own, "100|OUT_OF_MEMORY|0:125")
    assert past.given_up == frozenset()
    (again,) = jobs.submit(sweep, own, 1, past).jobs
    assert "#SBATCH --mem=8G" in slurm.scripts[again.id]
    slurm.says("squeue")
    slurm.says("sacct", "100|OUT_OF_MEMORY|0:125", f"{again.id}|OUT_OF_MEMORY|0:125")
    assert len(jobs.history(sweep, own, 1).given_up) == 1, "one retry, and no more"
    assert len(jobs.history(sweep, own, 2).given_up) == 0, "the next make sweep begins again"


def test_records_hold_the_overrides_of_the_point_and_nothing_private(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep = smoke(tmp_path, "stage=data")
    jobs.submit(sweep, ALONE, 3)
    (path,) = sweep.folder.glob("jobs/*.json")
    record = json.loads(path.read_text())
    assert set(record) == {"sweep", "run", "job", "tasks"}
    assert (record["job"], record["run"]) == ("100", 3)
    assert set(record["tasks"][0]) == {"key", "overrides", "read"}
