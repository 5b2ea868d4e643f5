"""The table of requested and used resources, from the lines of Slurm's accounting."""

from pathlib import Path

from tests.cli.sweep.conftest import Cluster
from tests.cli.sweep.test_jobs import ALONE, finish, smoke

from sidepipe.cli.sweep import jobs
from sidepipe.cli.sweep.efficiency import efficiency


def test_jobs_are_summed_by_their_stages(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=dpm", "dpm.num_train_images=32,64")
    jobs.submit(sweep, ALONE, 1)
    finish(sweep, "data", "dpm")
    assert efficiency(sweep) == [], "nothing is accounted yet"
    slurm.says(
        "sacct",
        "100|2026-01-31T23:59:50|2026-02-01T00:00:10|40|40|00:10.000|1500M|",
        "100.batch|2026-02-01T00:00:10|2026-02-01T00:00:10|40|40|00:00.010||4466K",
        "100.0|2026-02-01T00:00:10|2026-02-01T00:00:10|40|40|00:09.990||524288K",
        "101|2026-02-01T00:01:00|2026-02-01T00:01:00|100|200|00:01:30|4G|",
        "101.0|2026-02-01T00:01:00|2026-02-01T00:01:00|100|200|00:01:30||1048576K",
        "102|2026-02-01T00:01:00|2026-02-01T00:01:10|86500|173000|1-00:00:00|8G|",
        "102.0|2026-02-01T00:01:10|2026-02-01T00:01:10|86500|173000|1-00:00:00||3145728K",
    )
    head, data, dpm = efficiency(sweep)
    assert head[:3] == ["jobs", "number", "waited"]
    assert data == ["data", 1, "20 s", "40 s", "1 s", "25 %", "1.5 GiB", "0.5 GiB"]
    assert dpm == ["dpm", 2, "5 s", "86600 s", "2 s", "50 %", "8.0 GiB", "3.0 GiB"]


def test_a_job_that_never_ran_is_left_out(slurm: Cluster, tmp_path: Path) -> None:
    sweep = smoke(tmp_path, "stage=data")
    jobs.submit(sweep, ALONE, 1)
    slurm.says("sacct", "100|Unknown|None|0|0|00:00:00|1500M|")
    assert efficiency(sweep) == []
