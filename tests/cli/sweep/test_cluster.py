"""What jobs ask for and how the cluster is asked; its commands are stand-ins."""

import shlex
import sys
from pathlib import Path

import pytest
from tests.cli.sweep.conftest import Cluster

from sidepipe.cli.sweep import cluster, resources


def test_a_stage_asks_for_what_all_do_but_where_it_differs() -> None:
    settings = {"partition": "gpu", "gres": "gpu:2", "stages": {"data": {"gres": None}}}
    slurm = resources.slurm_of(settings)
    assert slurm.of("dpm").gres == "gpu:2"
    assert slurm.of("data").gres is None
    assert slurm.of("data").partition == "gpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, r"runtime\.slurm must be set, got None; choose runtime=slurm"),
        ({"partitoin": "gpu"}, r"partitoin is not a setting .* did you mean 'partition'"),
        ({"max_jobs": 2}, r"runtime\.slurm\.max_jobs must be >= 3, got 2"),
        ({"retries": -1}, r"runtime\.slurm\.retries must be >= 0, got -1"),
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
        resources.slurm_of(settings)


def test_a_script_requests_the_settings_and_nothing_else() -> None:
    settings = {"time": "1-00:00:00", "mem": 64000, "setup": ["module load x"]}
    slurm = resources.slurm_of({**settings, "sbatch": ["--qos=long"]})
    command = ["job", "/jobs/it's 1.json"]
    text = resources.script("a-name", slurm, command, Path("/a folder/100%A.log"))
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]
    assert {"--time=1-00:00:00", "--mem=64000", "--qos=long"} <= set(options)
    assert {"--open-mode=append", "--requeue", "--signal=USR2@120"} <= set(options)
    assert '--output="/a folder/100%%A.log"' in options
    assert not any(option.startswith(("--partition", "--gres", "--account")) for option in options)
    *_, setup, _, run = text.splitlines()
    assert setup == "module load x"
    assert shlex.split(run)[-5:] == [sys.executable, "-m", "sidepipe.cli.sweep", *command]


def test_a_job_with_an_accelerator_can_do_the_work_of_one_without() -> None:
    slurm = resources.slurm_of({"gres": "gpu:2", "tasks_per_node": 2, "mem": "8G"})
    assert slurm.of("dpm").covers(slurm.of("data"))
    assert not slurm.of("data").covers(slurm.of("dpm"))
    large = resources.slurm_of({"mem": "8G", "stages": {"evaluate": {"mem": "64G"}}})
    assert not large.of("dpm").covers(large.of("evaluate"))
    assert not large.of("evaluate").covers(large.of("dpm"))


@pytest.mark.parametrize(
    ("name", "value", "state", "then"),
    [
        ("mem", "64G", "OUT_OF_MEMORY", "128G"),
        ("mem", 1500, "OUT_OF_MEMORY", 3000),
        ("mem", None, "OUT_OF_MEMORY", None),
        ("time", "1-06:30:00", "TIMEOUT", "02-12:60:00"),
        ("time", "90", "TIMEOUT", "180"),
        ("time", 90, "NODE_FAIL", 90),
        ("time", 90, "CANCELLED", 90),
    ],
)
def test_a_job_is_submitted_again_with_twice_what_it_ran_out_of(
    name: str, value: object, state: str, then: object
) -> None:
    slurm = resources.slurm_of({name: value})
    assert getattr(slurm.again([state]), name) == then
    assert slurm.again([]) == slurm


def test_a_job_starts_when_its_inputs_are_made_and_others_have_ended(slurm: Cluster) -> None:
    assert cluster.submit("#!/bin/bash\n") == "100"
    assert cluster.submit("#!/bin/bash\n", ok=["100", "7"], ended=["9"]) == "101"
    assert cluster.submit("#!/bin/bash\n", ended=["7", "9"], any_of=True) == "102"
    assert list(slurm.dependencies.values()) == ["", "100,7,afterany:9", "afterany:7?afterany:9"]
    arguments = (slurm.state / "submitted" / "101.arguments").read_text()
    assert "--kill-on-invalid-dep=yes" in arguments


def test_a_limit_of_jobs_is_told_from_a_wrong_setting(slurm: Cluster) -> None:
    slurm.refuses(
        "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed"
    )
    with pytest.raises(cluster.Full, match="AssocMaxSubmitJobLimit"):
        cluster.submit("#!/bin/bash\n")
    cluster.test("#!/bin/bash\n")  # a matter of time
    slurm.refuses("sbatch: error: Invalid generic resource (gres) specification")
    with pytest.raises(RuntimeError, match="gres=null on a partition without GPUs"):
        cluster.test("#!/bin/bash\n")


def test_free_places_are_those_of_the_user_and_of_the_controller(slurm: Cluster) -> None:
    slurm.says("squeue", "12|RUNNING|None|n1", "13|PENDING|Dependency|")
    assert cluster.free_places(most=5) == 3
    assert cluster.free_places(most=20000) == 9998


def test_what_another_job_was_told_is_not_handed_on(
    slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = slurm.state.parent / "commands" / "sbatch"
    sbatch.write_text('#!/bin/bash\nenv > "$STATE/env"; echo 1\n')
    for name in ("SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "1")
    cluster.submit("#!/bin/bash\n")
    told = (slurm.state / "env").read_text()
    assert "SBATCH_PARTITION" in told
    assert "SLURM_MEM_PER_CPU" not in told
    assert "SRUN_CPUS_PER_TASK" not in told


def test_a_refused_job_says_why_and_what_to_change(slurm: Cluster) -> None:
    slurm.refuses()
    with pytest.raises(
        RuntimeError, match=r"Invalid partition name.*remedy: change runtime\.slurm"
    ):
        cluster.submit("#!/bin/bash\n")


def test_jobs_in_the_queue_and_how_others_ended(slurm: Cluster) -> None:
    slurm.says("squeue", "12|RUNNING|None|n1", "13|PENDING|Dependency|")
    assert cluster.queue()["13"] == cluster.Queued("PENDING", "Dependency", "")
    slurm.says("sacct", "14|OUT_OF_MEMORY|0:125", "14.0|FAILED|0:9", "15|CANCELLED by 0|0:9")
    assert cluster.ended(["14", "15", "16"]) == {
        "14": "OUT_OF_MEMORY (0:125)",
        "15": "CANCELLED by 0 (0:9)",
    }


def test_there_is_a_cluster_where_its_commands_answer(slurm: Cluster) -> None:
    assert cluster.is_there()
    (slurm.state.parent / "commands" / "sinfo").write_text("#!/bin/bash\nexit 1\n")
    assert not cluster.is_there()


@pytest.mark.usefixtures("no_slurm")
def test_there_is_none_without_its_commands() -> None:
    assert not cluster.is_there()
    assert cluster.ended(["1"]) == {}
