"""Multiruns by hydra-submitit-launcher: what the launcher asks of Slurm for runtime.slurm."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sidepipe.cli.main import CONF

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")


def launcher(*overrides):
    chosen = ["hydra/launcher=slurm", "runtime=slurm", *overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", overrides=chosen, return_hydra_config=True)
    return OmegaConf.to_container(cfg.hydra.launcher, resolve=True)


def test_a_job_asks_for_what_the_runtime_says():
    said = launcher(
        "runtime.slurm.partition=gpu",
        "runtime.slurm.gres=gpu:4",
        "runtime.slurm.nodes=2",
        "runtime.slurm.tasks_per_node=4",
        "runtime.slurm.array_parallelism=3",
        "runtime.slurm.signal_seconds=300",
        "runtime.slurm.time='1-00:00:00'",
        "runtime.slurm.mem=64G",
        "runtime.slurm.setup=[module load cuda,ulimit -n 4096]",
    )
    expected = {"partition": "gpu", "gres": "gpu:4", "nodes": 2, "tasks_per_node": 4}
    expected |= {"array_parallelism": 3, "signal_delay_s": 300, "account": None}
    assert said.items() >= expected.items()
    assert said["additional_parameters"] == {"time": "1-00:00:00", "mem": "64G"}
    assert said["setup"][-1] == "module load cuda\nulimit -n 4096"


def test_what_is_not_said_is_left_to_the_cluster_but_for_the_time():
    said = launcher("runtime.slurm.gres=null")
    assert said["additional_parameters"] == {"time": 60}
    for name in ("partition", "account", "gres", "constraint", "cpus_per_task", "mem_gb"):
        assert said[name] is None
    assert said["setup"][-1] == ""
