"""The command as a person types it: what it prints, what it makes, how it refuses."""

from pathlib import Path

import pytest
from tests.cli.sweep.conftest import Cluster

from sidepipe.base import files
from sidepipe.cli.sweep.command import main
from sidepipe.cli.sweep.grid import plans_of, sweep_of
from sidepipe.cli.sweep.results import reported_attack
from sidepipe.cli.sweep.states import Seen
from sidepipe.engine import artifacts
from sidepipe.stages.report.sweep.points import Missing

SMOKE = ("experiment=smoke", "attacks=compare", "seed=0")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0), capsys.readouterr().out


@pytest.mark.usefixtures("no_slurm")
def test_a_dry_run_says_what_would_run_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = f"runtime.outputs={tmp_path}/out"
    axis = "dpm.num_train_images=32,64"
    code, said = command(capsys, "run", "attack_demo", *SMOKE, "--dry", here, axis)
    assert code == 0
    assert "2 points, dpm.num_train_images=32,64" in said
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    assert lines["dpm"] == ["2", "2", "2"]
    assert lines["extract"] == ["4", "4", "4"]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_slurm")
def test_a_sweep_makes_all_it_can_and_names_what_failed_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    here = f"runtime.outputs={tmp_path}"
    common = (*SMOKE, here, "stage=generate")
    code, said = command(capsys, "run", "attack_demo", *common, "dpm.lr=1e30,0.001")
    assert code == 1
    assert "(dpm.lr=1e+30) failed: dpm: the loss is nan" in caplog.text
    assert "failed:" in said
    sweep = sweep_of("attack_demo", [*common, "dpm.lr=1e30,0.001"])
    done = [t for t in sweep.tasks.values() if artifacts.read_manifest(t.folder) is not None]
    assert [t.node.stage.name for t in done] == ["data", "dpm", "generate"]
    code, said = command(capsys, "status", "attack_demo", here)
    assert code == 0
    (failed,) = [line for line in said.splitlines() if "the loss is nan" in line]
    assert "log: " in failed
    assert sum("blocked by dpm" in line for line in said.splitlines()) == 1
    code, said = command(capsys, "run", "attack_demo", *common, "dpm.lr=0.001")
    assert code == 0, "what is finished is there, and nothing else is asked for now"


def test_a_sweep_on_a_cluster_is_submitted_once_and_can_be_cancelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slurm: Cluster
) -> None:
    here = f"runtime.outputs={tmp_path}"
    given = (*SMOKE, here, "stage=dpm", "runtime.slurm.partition=gpu")
    given = (*given, "runtime.slurm.group_minutes=0")
    code, said = command(capsys, "run", "attack_demo", *given)
    assert code == 0
    assert "submitted data: 1 job\nsubmitted dpm: 1 job\n2 submitted" in said
    assert "#SBATCH --partition=gpu" in slurm.scripts["101"]
    slurm.queue_all(tmp_path / "sweeps" / "attack_demo")
    assert "nothing to submit" in command(capsys, "run", "attack_demo", *given)[1]
    assert "queued" in command(capsys, "status", "attack_demo", here)[1]
    assert "canceled 2 jobs" in command(capsys, "cancel", "attack_demo", here)[1]
    assert slurm.cancelled == ["--quiet", "100", "101"]


def test_a_job_makes_the_artifacts_of_its_record_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slurm: Cluster
) -> None:
    here = (f"runtime.outputs={tmp_path}", "stage=dpm", "runtime.slurm.group_minutes=0")
    command(capsys, "run", "attack_demo", *SMOKE, *here)
    data, dpm = sorted((tmp_path / "sweeps" / "attack_demo" / "jobs").glob("*.json"))
    assert command(capsys, "job", str(dpm))[0] == 1  # its input is missing
    assert command(capsys, "job", str(data))[0] == 0
    assert len(list((tmp_path / "data").glob("*/manifest.json"))) == 1
    assert not (tmp_path / "dpm").exists()


@pytest.mark.parametrize(("read", "code"), [(("data",), 0), (("data", "dpm"), 1), ((), 1)])
def test_a_job_fails_where_another_job_misses_its_artifact_or_no_other_reads_it(
    read: tuple[str, ...],
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slurm: Cluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = (f"runtime.outputs={tmp_path}", "stage=generate", "dpm.lr=1e30")
    command(capsys, "run", "attack_demo", *SMOKE, *here, "runtime.slurm.gres=null")
    (path,) = (tmp_path / "sweeps" / "attack_demo" / "jobs").glob("*.json")
    record = files.read_json(path)
    for task, stage in zip(record["tasks"], ("data", "dpm", "generate"), strict=True):
        task["read"] = stage in read
    files.write_json(path, record)
    assert command(capsys, "job", str(path))[0] == code
    assert "the loss is nan" in caplog.text
    dpm = record["tasks"][1]["key"]
    assert f"generate {record['tasks'][2]['key']}: blocked by dpm {dpm}" in caplog.text


def test_a_job_that_was_restarted_too_often_stops(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slurm: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = (f"runtime.outputs={tmp_path}", "stage=data", "runtime.slurm.max_requeues=3")
    command(capsys, "run", "attack_demo", *SMOKE, *here)
    (path,) = (tmp_path / "sweeps" / "attack_demo" / "jobs").glob("*.json")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    assert command(capsys, "job", str(path))[0] == 1
    assert "restarted 4 times, and runtime.slurm.max_requeues is 3" in caplog.text
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert command(capsys, "job", str(path))[0] == 0


def test_a_job_whose_config_changed_since_submission_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    overrides = ["sweep=attack_demo", "runtime=slurm", *SMOKE, f"runtime.outputs={tmp_path}"]
    key = "0" * 12
    assert key not in plans_of([overrides])[0].nodes
    path = tmp_path / "job.json"
    files.write_json(path, {"tasks": [{"key": key, "overrides": overrides, "read": False}]})
    assert command(capsys, "job", str(path))[0] == 1
    assert f"{key} is no artifact of this config any more" in caplog.text


def test_a_refill_of_an_earlier_make_sweep_submits_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slurm: Cluster
) -> None:
    given = ("run", "attack_demo", *SMOKE, f"runtime.outputs={tmp_path}", "stage=dpm")
    command(capsys, *given)
    command(capsys, *given)
    before = len(slurm.scripts)
    code, said = command(capsys, *given, "--launcher", "slurm", "--refill", "1")
    assert (code, len(slurm.scripts)) == (0, before)
    assert "make sweep 2 submits" in said
    command(capsys, *given, "--launcher", "slurm", "--refill", "2")
    assert files.read_json(tmp_path / "sweeps/attack_demo/sweep.json")["run"] == 2


def test_a_refill_on_a_full_cluster_queues_itself_again(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slurm: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ("run", "attack_demo", *SMOKE, f"runtime.outputs={tmp_path}", "stage=dpm")
    slurm.allows(0)
    code, _ = command(capsys, *given)
    assert code == 1
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert command(capsys, *given, "--launcher", "slurm", "--refill", "1")[0] == 1
    assert "requeue 77" in (slurm.state / "scontrol").read_text()


NOTHING_RUNS = "no Slurm cluster answers, but"


def test_a_login_node_computes_nothing_while_slurm_does_not_answer(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slurm: Cluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = ("run", "attack_demo", *SMOKE, f"runtime.outputs={tmp_path}/out", "stage=data")
    (slurm.state / "down").touch()
    assert command(capsys, *given)[0] == 1
    assert f"{NOTHING_RUNS} Slurm's commands are on this machine" in caplog.text
    assert "LAUNCHER=local to compute on this machine" in caplog.text
    assert not (tmp_path / "out").exists()
    # Whoever chooses this machine may leave the settings of jobs on the command line.
    local = (*given, "--launcher", "local", "runtime.slurm.gres=null")
    assert command(capsys, *local)[0] == 0
    assert len(list((tmp_path / "out/data").glob("*/manifest.json"))) == 1


@pytest.mark.parametrize(
    ("before", "settings", "why"),
    [
        (True, (), "this sweep was submitted to Slurm"),
        (False, ("runtime.slurm.gres=null",), "runtime.slurm is set"),
    ],
)
@pytest.mark.usefixtures("no_slurm")
def test_a_sweep_for_slurm_does_not_run_where_slurm_is_absent(
    before: bool,
    settings: tuple[str, ...],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if before:
        files_of_jobs = tmp_path / "sweeps/attack_demo/jobs"
        files_of_jobs.mkdir(parents=True)
        files.write_json(files_of_jobs / "0000-data.json", {"job": "7", "tasks": []})
    given = (*SMOKE, f"runtime.outputs={tmp_path}", "stage=data", *settings)
    assert command(capsys, "run", "attack_demo", *given)[0] == 1
    assert f"{NOTHING_RUNS} {why}" in caplog.text
    assert not (tmp_path / "data").exists()


def test_resources_that_the_cluster_can_never_give_are_refused_before_anything_is_submitted(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slurm: Cluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slurm.refuses("sbatch: error: Invalid generic resource (gres) specification")
    given = ("run", "attack_demo", *SMOKE, f"runtime.outputs={tmp_path}", "stage=dpm")
    for dry in ((), ("--dry",)):
        caplog.clear()
        assert command(capsys, *given, *dry)[0] == 1
        assert "jobs of the stage data: sbatch refused a job: sbatch: error: Inv" in caplog.text
        assert "gres=null on a partition without GPUs" in caplog.text
    assert slurm.scripts == {}
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "attack_dmo"], "SWEEP does not accept 'attack_dmo'; did you mean 'attack_demo'"),
        (["run", "attack_demo", "dpm.lr=-1"], "dpm.lr must be > 0, got -1"),
        (["run", "subset_size", "runtime.data_root=/nowhere"], "/nowhere/celeba is not a folder"),
        (["run", "attack_demo", "--launcher", "slurm"], "no Slurm cluster answers"),
        (["cancel", "attack_demo"], "no Slurm cluster answers"),
        (["run", "attack_demo", "dpm.lrr=1"], "dpm.lrr is not a setting; did you mean 'lr'?"),
        (["run", "attack_demo", "dpm.lrr=1,2"], "Key 'lrr' is not in struct"),
    ],
)
@pytest.mark.usefixtures("no_slurm")
def test_what_cannot_run_is_refused_in_one_message(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    code, _ = command(capsys, *arguments)
    assert code == 1
    assert message in caplog.text


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "run", "attack_demo", "--dyr")[0] == 2


def test_a_row_without_material_is_reported_as_empty_and_why(tmp_path: Path) -> None:
    sweep = sweep_of("attack_demo", [*SMOKE, f"runtime.outputs={tmp_path}"])
    runtime = sweep.points[0].plan.runtime
    node = next(t.node for t in sweep.tasks.values() if t.node.stage.name == "evaluate")
    waits = reported_attack(node, Seen("failed", "no disk"), runtime)
    assert waits == Missing(node.key, "failed: no disk")
    folder = node.folder(runtime)
    folder.mkdir(parents=True)
    artifacts.write_manifest(folder, {"summary": {"hits": 3}})
    assert reported_attack(node, Seen("done", ""), runtime) == folder
    artifacts.write_manifest(folder, {"summary": {"empty": "nothing repeats"}})
    empty = reported_attack(node, Seen("done", ""), runtime)
    assert empty == Missing(node.key, "empty: nothing repeats")


@pytest.mark.parametrize("name", ["sweep.json", "jobs/0000-data.json"])
@pytest.mark.usefixtures("no_slurm")
def test_a_broken_record_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    record = tmp_path / "sweeps/attack_demo" / name
    record.parent.mkdir(parents=True)
    record.write_text('{"overrides": ["a')
    code, _ = command(capsys, "status", "attack_demo", *SMOKE, f"runtime.outputs={tmp_path}")
    assert code == 1
    assert f"{record} is damaged: Unterminated string" in caplog.text
    assert "; remedy: " in caplog.text
