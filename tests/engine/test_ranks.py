import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from tests.engine.test_sampling import SAMPLING as PLAIN
from tests.stepping import step, step_variables
from tests.tiny import DIGITS, RUNTIME, SETTINGS

from sidepipe.engine import ranks
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.stages.generate.stage import Generate

SAMPLING = {**PLAIN, "num_inference_steps": 4, "eta": 1.0}


@pytest.fixture
def in_step(monkeypatch):
    """Sets the variables of a task in a step, as this process's own."""

    def enter(task=0, tasks=2, **changes):
        for name, value in {**step_variables(task, tasks, job=1), **changes}.items():
            monkeypatch.setenv(name, value)

    return enter


# Who there is


def test_without_srun_there_is_one_process_whatever_the_job_asked_for(monkeypatch):
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert not ranks.several()
    assert Runtime(devices=3).num_processes == 3
    with ranks.leading() as leads:
        assert leads
        assert ranks.together(int, "7") == 7


def test_a_step_of_one_task_is_one_process_that_may_spawn(in_step):
    in_step(tasks=1)
    assert not ranks.several()
    assert Runtime(devices=2).spawns


@pytest.mark.parametrize(
    ("tasks", "nodes", "said", "each"), [(2, 1, "2", 2), (4, 2, "2(x2)", 2), (3, 3, "1(x3)", 1)]
)
def test_a_steps_processes_are_those_that_train(in_step, tasks, nodes, said, each):
    in_step(tasks=tasks, SLURM_STEP_NUM_NODES=str(nodes), SLURM_STEP_TASKS_PER_NODE=said)
    assert (ranks.num_nodes(), ranks.tasks_per_node()) == (nodes, each)
    for devices in {1, each}:
        runtime = Runtime(devices=devices)
        assert runtime.num_processes == tasks
        assert not runtime.spawns


def test_other_devices_than_the_step_has_are_refused(in_step):
    in_step(tasks=2)
    rule = r"^runtime.devices must be 1 or the tasks that srun starts on each node, 2, got 3; leave"
    with pytest.raises(ValueError, match=rule):
        Runtime(devices=3)


def test_a_step_with_more_tasks_on_one_node_than_on_another_is_refused(in_step):
    in_step(tasks=3, SLURM_STEP_TASKS_PER_NODE="2,1")
    with pytest.raises(ValueError, match=r"^tasks per node must be the same on .* got '2,1'; srun"):
        Runtime()


def test_a_plan_reckons_with_the_processes_of_its_jobs():
    slurm = {"nodes": 2, "tasks_per_node": 3}
    assert Runtime(slurm=slurm).num_processes == 6
    train = TrainDPM(**{**SETTINGS, "batch_size": 8})
    with pytest.raises(ValueError, match="divisible by the number of devices, 6, got 8"):
        train.check({"data": DIGITS}, Runtime(slurm=slurm))


# What they do together


WORK = """
import os, sys, time

import numpy as np
import torch
import torch.distributed as dist

from sidepipe.engine import ranks

def rank():
    return int(os.environ["SLURM_PROCID"])

def gathered(*sent):
    # The arrays are bound to nothing but the message: a copy would not be writable.
    sums = torch.tensor([float(array.sum()) for array in sent] + [torch.get_num_threads()])
    everyone = [torch.zeros_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, sums)
    return [each.tolist() for each in everyone]

def fails(who):
    if rank() == who:
        raise KeyError("the machine broke down")
    dist.barrier()

mode = sys.argv[1]
with ranks.leading() as leads:
    if leads:
        frozen = np.arange(5.0)
        frozen.flags.writeable = False
        if mode == "gathers":
            torch.set_num_threads(3)
            for scale in (1, 2):
                arrays = (frozen * scale, np.zeros((0, 2)), np.ones((2, 3), np.uint8)[:, ::2])
                print(ranks.together(gathered, frozen, *arrays), dist.is_initialized(), flush=True)
        elif mode == "exits":
            sys.exit(7)
        elif mode == "sleeps":
            print(mode, flush=True)
            time.sleep(600)
        elif mode == "raises":
            raise ValueError("no plan")
        else:
            ranks.together(fails, int(mode))
print("ends", leads)
"""


def ended(processes, timeout=60):
    """Exit codes, outputs and errors."""
    said = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], *zip(*said, strict=True)


def test_all_run_the_function_with_the_firsts_arguments_and_threads_and_go_on_apart():
    with step("-c", WORK, "gathers") as processes:
        codes, outputs, errors = ended(processes)
    assert codes == [0, 0], errors
    first, second = ([10.0, 10.0 * scale, 0.0, 4.0, 3.0] for scale in (1, 2))
    assert outputs[0].splitlines() == [
        f"{[first] * 2} False",
        f"{[second] * 2} False",
        "ends True",
    ]
    assert outputs[1].splitlines() == ["ends False"]
    assert list(errors) == ["", ""]


@pytest.mark.parametrize(("mode", "code"), [("exits", 7), ("raises", 1)])
def test_the_others_end_as_the_first_does(mode, code):
    with step("-c", WORK, mode, tasks=3) as processes:
        codes, outputs, errors = ended(processes)
    assert codes == [code] * 3
    assert list(outputs) == [""] * 3
    assert list(errors[1:]) == [""] * 2


@pytest.mark.parametrize("who", [0, 1])
def test_where_one_fails_in_common_work_all_fail_and_the_cause_is_named(who):
    with step("-c", WORK, str(who)) as processes:
        codes, _, errors = ended(processes)
    assert codes == [1, 1]
    assert "KeyError: 'the machine broke down'" in errors[who]
    if who == 1:
        why = "RuntimeError: process 1 of the step: KeyError: 'the machine broke down'\n"
        assert errors[0].endswith(why)


def test_where_the_first_is_killed_the_others_end_too():
    with step("-c", WORK, "sleeps") as processes:
        assert processes[0].stdout.readline() == "sleeps\n"
        processes[0].send_signal(signal.SIGKILL)
        assert processes[1].wait(timeout=60) == 1


# Stages


STAGES = """
import json, sys
from pathlib import Path

from sidepipe.engine import ranks

if __name__ == "__main__":
    with ranks.leading() as leads:
        if leads:
            from sidepipe.stages.dpm.trained import TrainDPM
            from sidepipe.stages.generate.stage import Generate
            from sidepipe.engine.logs import quiet_libraries
            from sidepipe.engine.stage import Job, Runtime

            quiet_libraries()
            folder, settings, sampling, runtime = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
            runtime = Runtime(**runtime)
            for stage, reads in ((TrainDPM(**settings), "data"), (Generate(**sampling), "dpm")):
                made = folder / stage.name
                made.mkdir(exist_ok=True)
                job = Job(made, {reads: folder / reads}, runtime)
                print(json.dumps(stage.run(job)), flush=True)
"""


@pytest.mark.slow
def test_two_tasks_of_a_step_make_what_one_process_makes(tmp_path):
    """Losses to rounding; images of one and the same model exactly."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        for name in ("data", "dpm", "generate"):
            (folder / name).mkdir(parents=True)
        DIGITS.run(Job(folder / "data", {}, RUNTIME))
    expected = TrainDPM(**SETTINGS).run(Job(one / "dpm", {"data": one / "data"}, RUNTIME))
    runtime = {"accelerator": "cpu", "sampling_batch_size": 16, "devices": 2}
    arguments = map(json.dumps, (SETTINGS, SAMPLING, runtime))
    with step("-c", STAGES, str(two), *arguments) as processes:
        codes, outputs, errors = ended(processes, timeout=200)
    assert codes == [0, 0], errors
    assert errors == ("", "")
    summary, spent = map(json.loads, outputs[0].splitlines())
    del expected["loss"], summary["loss"]  # each process logs that of its own images
    assert summary.pop("duplicates") == expected.pop("duplicates")
    assert summary == pytest.approx(expected, abs=1e-3)
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    for name, value in load_file(one / "dpm" / weights).items():
        torch.testing.assert_close(load_file(two / "dpm" / weights)[name], value, rtol=0, atol=1e-4)
    alone = Runtime(accelerator="cpu", sampling_batch_size=16)
    assert Generate(**SAMPLING).run(Job(one / "generate", {"dpm": two / "dpm"}, alone)) == spent
    for shard in sorted((one / "generate/shards").iterdir()):
        assert (two / "generate/shards" / shard.name).read_bytes() == shard.read_bytes()
