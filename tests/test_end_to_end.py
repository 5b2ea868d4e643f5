"""The command line as a user meets it: the whole pipeline in small, helps, and wrong commands."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.e2e


def sidepipe(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `sidepipe` in an empty folder, with one thread and no network proxies to hide behind."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "sidepipe", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder in which the smoke experiment has run, what it printed, and its log."""
    folder = tmp_path_factory.mktemp("run")
    done = sidepipe("experiment=smoke", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


@pytest.fixture(scope="module")
def finished(ran: tuple[Path, str, str]) -> tuple[Path, str]:
    """A folder in which the smoke experiment has run, and what it printed."""
    return ran[:2]


def test_the_log_has_lines_of_ours_alone(ran: tuple[Path, str, str]) -> None:
    lines = ran[2].splitlines()
    assert len(lines) > 20
    assert [line for line in lines if not re.match(r"\d\d:\d\d:\d\d (INFO|WARNING) ", line)] == []
    theirs = ("Trainer.fit", "GPU available", "litlogger", "weights_only", "Mixed Precision")
    assert [line for line in lines if any(word in line for word in theirs)] == []


def test_the_whole_pipeline_prints_a_table_and_a_report_that_exists(
    finished: tuple[Path, str],
) -> None:
    _, printed = finished
    assert "unconditional" in printed
    assert "side" in printed
    page = re.search(r"report: (\S+)", printed)
    assert page is not None
    assert "<html" in Path(page[1]).read_text()


def test_make_docs_finds_the_numbers_of_a_report(finished: tuple[Path, str]) -> None:
    report = next(finished[0].glob("outputs/report/*/manifest.json")).parent
    read = json.loads((report / "manifest.json").read_text())["inputs"]
    inputs = {row: report.parents[1] / "evaluate" / key for row, key in read.items()}
    demo = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "demo.py"))
    found = demo["collected"](report, inputs)
    assert {row["row"] for row in found["rows"]} == set(read)
    assert found["seconds"] > 0
    assert all(f"| `{row}`: " in demo["table"](found) for row in read)


def test_a_second_run_makes_nothing_and_prints_the_same(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    done = sidepipe("experiment=smoke", cwd=folder)
    assert done.returncode == 0
    assert done.stdout == printed
    assert "nothing to do" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_a_deleted_report_is_made_again_and_nothing_else(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    (page,) = folder.glob("outputs/report/*/report.html")
    page.unlink()
    done = sidepipe("experiment=smoke", cwd=folder)
    assert done.returncode == 0
    assert done.stdout == printed
    assert re.findall(r"INFO (\w+)(?: \[\w+\])?: done", done.stderr) == ["report"]
    assert "<html" in page.read_text()


def test_a_new_guidance_scale_runs_extract_evaluate_and_report_alone(
    finished: tuple[Path, str],
) -> None:
    folder, _ = finished
    done = sidepipe("experiment=smoke", "extract.guidance.guidance_scale=3", cwd=folder)
    assert done.returncode == 0
    started = re.findall(r"INFO (\w+)(?: \[side\])?: done", done.stderr)
    assert started == ["extract", "evaluate", "report"]


def test_nothing_is_written_outside_outputs(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert [p.name for p in folder.iterdir()] == ["outputs"]
    assert all(p.is_dir() for p in (folder / "outputs").iterdir())
    assert not list(folder.rglob("*.tmp"))
    assert not list(folder.rglob("*.pkl"))


def test_status_lists_every_artifact(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    done = sidepipe("stage=status", "experiment=smoke", cwd=folder)
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    assert all("done" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "change", "command"),
    [
        ("generate/*/shards/000001.npy", np.zeros_like, ["stage=label", "label.seed=1"]),
        ("dpm/*/heldout.npy", np.flip, ["stage=generate", "generate.seed=1"]),
    ],
    ids=["a blackened shard", "an edited heldout.npy"],
)
def test_changed_content_is_refused_with_file_and_remedy(finished, name, change, command) -> None:
    folder, _ = finished
    (path,) = folder.glob(f"outputs/{name}")
    before = path.read_bytes()
    np.save(path, change(np.load(path)))
    assert len(before) == path.stat().st_size, "a size alone does not tell"
    try:
        done = sidepipe("experiment=smoke", *command, cwd=folder)
    finally:
        path.write_bytes(before)
    assert done.returncode == 1
    assert f"{path} is damaged: its content has changed since it was made (SHA-256)" in done.stderr
    assert "remedy: restore it, or delete" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_last_shard_is_made_again_to_the_same_bytes(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    (path,) = folder.glob("outputs/generate/*/shards/000002.npy")
    before = path.read_bytes()
    path.unlink()
    said = sidepipe("experiment=smoke", "stage=status", cwd=folder).stdout
    assert "damaged: shards/000002.npy missing; the same command makes it again" in said
    done = sidepipe("experiment=smoke", "stage=generate", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "has lost shards/000002.npy and is made again" in done.stderr
    assert "100 of 120 images exist" in done.stderr
    assert path.read_bytes() == before


def test_a_wrong_value_is_one_line_and_exit_code_one(tmp_path: Path) -> None:
    done = sidepipe("extract.guidance.t_min=5", "extract.guidance.t_max=1", cwd=tmp_path)
    assert done.returncode == 1
    assert "extract.guidance.t_max must be >= extract.guidance.t_min = 5, got 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists() or not any((tmp_path / "outputs").iterdir())


def test_an_unknown_key_is_refused_by_hydra(tmp_path: Path) -> None:
    done = sidepipe("extract.guidnce_scale=2", cwd=tmp_path)
    assert done.returncode != 0
    assert "guidnce_scale" in done.stderr


def test_a_missing_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    done = sidepipe("data=celeba", "data.size=8", "stage=data", cwd=tmp_path)
    assert done.returncode == 1
    assert "datasets/celeba" in done.stderr
    assert "runtime.data_root" in done.stderr


def test_help_and_cfg_are_hydras_own(tmp_path: Path) -> None:
    assert "experiment: " in sidepipe("--help", cwd=tmp_path).stdout
    shown = sidepipe("--cfg", "job", "--resolve", cwd=tmp_path)
    assert "guidance_scale: 1.0" in shown.stdout
    assert shown.returncode == 0
