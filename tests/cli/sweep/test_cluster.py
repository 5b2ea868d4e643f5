"""What jobs ask for and how the cluster is asked; its commands are stand-ins."""

import shlex
import sys
from pathlib import Path

import pytest
from tests.cli.sweep.conftest import Cluster

from sidepipe.cli.sweep import cluster


def test_a_stage_asks_for_what_all_do_but_where_it_differs() -> None:
    settings = {"partition": "gpu", "gres": "gpu:2", "stages": {"data": {"gres": None}}}
    slurm = cluster.slurm_of(settings)
    assert slurm.of("dpm").gres == "gpu:2"
    assert slurm.of("data").gres is None
    assert slurm.of("data").partition == "gpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, r"runtime\.slurm must be set, got None; choose runtime=slurm"),
        ({"partitoin": "gpu"}, r"partitoin is not a setting .* did you mean 'partition'"),
        ({"nodes": 0}, r"runtime\.slurm\.nodes must be >= 1, got 0"),
        ({"array_parallelism": 0}, r"array_parallelism must be >= 1 or null"),
        ({"setup": "module load cuda"}, r"runtime\.slurm\.setup must be a list, as"),
        ({"stages": {"dmp": {}}}, r"stages does not accept 'dmp'; did you mean 'dpm'"),
        (
            {"stages": {"dpm": {"tme": 1}}},
            r"stages\.dpm does not accept 'tme'; did you mean 'time'",
        ),
    ],
)
def test_wrong_settings_are_refused(settings: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster.slurm_of(settings)


def test_a_script_asks_for_what_is_set_and_nothing_else() -> None:
    settings = {
        "time": "1-00:00:00",
        "mem": 64000,
        "array_parallelism": 4,
        "setup": ["module load x"],
    }
    slurm = cluster.slurm_of({**settings, "sbatch": ["--qos=long"]})
    text = cluster.script("a-name", slurm, Path("/jobs/it's 1.json"), 12, Path("/logs"))
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]
    assert {"--array=0-11%4", "--time=1-00:00:00", "--mem=64000", "--qos=long"} <= set(options)
    assert {"--open-mode=append", "--requeue", "--signal=USR2@120"} <= set(options)
    assert not any(option.startswith(("--partition", "--gres", "--account")) for option in options)
    *_, setup, _, run = text.splitlines()
    assert setup == "module load x"
    task = [sys.executable, "-m", "sidepipe.cli.sweep", "task", "/jobs/it's 1.json"]
    assert shlex.split(run)[-5:] == task


def test_a_job_starts_when_those_before_it_have_ended_however(slurm: Cluster) -> None:
    assert cluster.submit("#!/bin/bash\n", []) == "100"
    assert cluster.submit("#!/bin/bash\n", ["100", "7"]) == "101"
    assert slurm.dependencies == {"100": [], "101": ["100", "7"]}
    arguments = (slurm.state / "submitted" / "101.arguments").read_text()
    assert "--dependency=afterany:100:7" in arguments


def test_what_another_job_was_told_is_not_handed_on(
    slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = slurm.state.parent / "commands" / "sbatch"
    sbatch.write_text('#!/bin/bash\nenv > "$STATE/env"; echo 1\n')
    for name in ("SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "1")
    cluster.submit("#!/bin/bash\n", [])
    told = (slurm.state / "env").read_text()
    assert "SBATCH_PARTITION" in told
    assert "SLURM_MEM_PER_CPU" not in told
    assert "SRUN_CPUS_PER_TASK" not in told


def test_a_refused_job_says_why_and_what_to_change(slurm: Cluster) -> None:
    slurm.refuses()
    with pytest.raises(
        RuntimeError, match=r"Invalid partition name.*remedy: change runtime\.slurm"
    ):
        cluster.submit("#!/bin/bash\n", [])


def test_jobs_in_the_queue_and_how_others_ended(slurm: Cluster) -> None:
    slurm.says("squeue", "12_0|RUNNING|None|n1", "12_1|PENDING|Dependency|")
    assert cluster.queue()["12_1"] == cluster.Queued("PENDING", "Dependency", "")
    slurm.says("sacct", "12_2|OUT_OF_MEMORY|0:125", "12_3|CANCELLED by 0|0:9", "99|FAILED|1:0")
    assert cluster.ended(["12_2", "12_3", "12_4"]) == {
        "12_2": "OUT_OF_MEMORY (0:125)",
        "12_3": "CANCELLED by 0 (0:9)",
    }


def test_there_is_a_cluster_where_its_commands_answer(slurm: Cluster) -> None:
    assert cluster.is_there()
    (slurm.state.parent / "commands" / "sinfo").write_text("#!/bin/bash\nexit 1\n")
    assert not cluster.is_there()


@pytest.mark.usefixtures("no_slurm")
def test_there_is_none_without_its_commands() -> None:
    assert not cluster.is_there()
    assert cluster.ended(["1_0"]) == {}
