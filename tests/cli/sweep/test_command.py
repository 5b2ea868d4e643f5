"""The command as a person types it: what it prints, what it makes, how it refuses."""

from pathlib import Path

import pytest
from tests.cli.sweep.conftest import Cluster

from sidepipe.base import files
from sidepipe.cli.sweep.command import main, reported_attack
from sidepipe.cli.sweep.grid import point_of, sweep_of
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
    assert sum("reads dpm" in line for line in said.splitlines()) == 1
    code, said = command(capsys, "run", "attack_demo", *common, "dpm.lr=0.001")
    assert code == 0, "what is finished is there, and nothing else is asked for now"


def test_a_sweep_on_a_cluster_is_submitted_once_and_can_be_cancelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slurm: Cluster
) -> None:
    here = f"runtime.outputs={tmp_path}"
    given = (*SMOKE, here, "stage=dpm", "runtime.slurm.partition=gpu")
    code, said = command(capsys, "run", "attack_demo", *given)
    assert code == 0
    assert "submitted dpm: job 101, 1 task" in said
    assert "#SBATCH --partition=gpu" in slurm.scripts["101"]
    slurm.queue_all(tmp_path / "sweeps" / "attack_demo")
    assert "nothing to submit" in command(capsys, "run", "attack_demo", *given)[1]
    assert "queued" in command(capsys, "status", "attack_demo", here)[1]
    assert "canceled 2 jobs" in command(capsys, "cancel", "attack_demo", here)[1]
    assert slurm.cancelled == ["--quiet", "100_0", "101_0"]


def test_a_job_makes_the_artifact_of_its_index_and_no_other(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slurm: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command(capsys, "run", "attack_demo", *SMOKE, f"runtime.outputs={tmp_path}", "stage=dpm")
    data, dpm = sorted((tmp_path / "sweeps" / "attack_demo" / "jobs").glob("*.json"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert command(capsys, "task", str(dpm))[0] == 1  # what it reads is not there
    assert command(capsys, "task", str(data))[0] == 0
    assert len(list((tmp_path / "data").glob("*/manifest.json"))) == 1
    assert not (tmp_path / "dpm").exists()


def test_a_job_whose_config_changed_meanwhile_says_so(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    overrides = ["sweep=attack_demo", *SMOKE, f"runtime.outputs={tmp_path}"]
    key = "0" * 12
    assert key not in point_of(overrides).nodes
    path = tmp_path / "job.json"
    files.write_json(path, {"tasks": [{"key": key, "overrides": overrides}]})
    assert command(capsys, "task", str(path), "0")[0] == 1
    assert f"{key} is no artifact of this config any more" in caplog.text


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
