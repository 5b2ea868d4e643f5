import json
import logging
import os
import signal
import subprocess
import sys
import time
from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, SIGUSR2
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from tests.engine.test_ranks import SAMPLING, STAGES, ended
from tests.stepping import step
from tests.tiny import DIGITS, RUNTIME, SETTINGS

from sidepipe.base.interruption import Preempted, deferred, handled, requested
from sidepipe.cli import main as __main__
from sidepipe.cli.sweep import local
from sidepipe.engine import locks
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.logs import stage_log
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.dpm.module import DenoisingModule
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.stages.generate.stage import Generate

WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def earlier():
    """A handler of SIGUSR2 that was there before, as submitit's, and what it was called with."""
    seen = []
    before = signal.signal(SIGUSR2, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(SIGUSR2, before)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Stands in for Slurm's; the file that gets its arguments."""
    said, program = tmp_path / "said.txt", tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return said


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


# Signals


@pytest.mark.parametrize(
    ("number", "code"), [(SIGTERM, 143), (SIGUSR2, 143), (SIGHUP, 143), (SIGINT, 130)]
)
def test_a_signal_ends_the_block_and_a_second_one_does_no_more(number, code):
    steps = []

    def work():
        try:
            send(number)
        except Exception:
            pytest.fail("taken for an error of the work")
        finally:
            send(SIGTERM, SIGUSR2)
            steps.append("saved")
        steps.append("went on")

    with pytest.raises(Preempted) as raised, handled():
        work()
    assert steps == ["saved"]
    assert raised.value.code == code


def test_afterwards_handlers_are_those_of_before(caplog):
    numbers = (SIGTERM, SIGUSR2, SIGINT, SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with handled():
        assert signal.getsignal(SIGTERM) not in before
    assert [signal.getsignal(number) for number in numbers] == before
    assert stopped_by(SIGINT, caplog) == [STOPPED]
    assert [signal.getsignal(number) for number in numbers] == before
    assert not requested()


def test_ctrl_c_stays_ignored_where_a_shell_started_a_background_job_so():
    before = signal.signal(SIGINT, SIG_IGN)
    try:
        with handled():
            send(SIGINT)
            assert not requested()
    finally:
        signal.signal(SIGINT, before)


# A loop that never looks at the flag: nothing but a second Ctrl-C ends it.
DEAF = """
import signal, time
from sidepipe.base.interruption import deferred, handled

signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell's foreground
with handled(), deferred():
    print("at work", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_a_second_ctrl_c_stops_at_once_and_the_first_says_so():
    command = [sys.executable, "-c", DEAF]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(SIGINT)
        assert process.stderr.readline() == "\n"
        assert (
            process.stderr.readline() == "saving after this batch; Ctrl-C again stops immediately\n"
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -SIGINT  # a shell shows it as 130
    assert errors == ""


def test_in_common_work_a_signal_is_a_flag_until_its_end():
    flags = []

    def work():
        flags.append(requested())
        send(SIGTERM)
        flags.append(requested())

    with pytest.raises(Preempted), handled(), deferred():
        work()
    assert flags == [False, True]


def test_ctrl_c_ends_the_wait_for_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "try_lock", lambda folder: locks.Owner("other", 1, 0))
    with (
        pytest.raises(Preempted) as raised,
        handled(),
        locks.locked(tmp_path / "dpm", on_wait=lambda owner: send(SIGINT)),
    ):
        pytest.fail("took a lock that another process holds")
    assert raised.value.code == 130


def test_ctrl_c_ends_a_sweep_and_not_one_of_its_artifacts(monkeypatch):
    made = []

    def make(node, plan):
        made.append(node)
        send(SIGINT)

    monkeypatch.setattr(local.pipeline, "make", make)
    monkeypatch.setattr(local, "about", lambda task, sweep: "")
    task = Mock(is_done=False)
    task.node.inputs = task.node.settings = {}
    with pytest.raises(Preempted), handled():
        local.run(Mock(tasks={"a": task, "b": task}))
    assert len(made) == 1


def test_ctrl_c_before_anything_has_begun_prints_no_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sidepipe"])
    monkeypatch.setattr(__main__, "_hydra_main", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as raised:
        __main__.main()
    assert raised.value.code == 130


def test_an_error_of_common_work_is_not_hidden_by_a_signal():
    def work():
        send(SIGTERM)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), handled(), deferred():
        work()


def test_a_stage_that_a_signal_stops_leaves_no_traceback_in_its_log(tmp_path):
    with pytest.raises(Preempted), stage_log(tmp_path / "log.txt"), handled():
        send(SIGTERM)
    assert (tmp_path / "log.txt").read_text().endswith("INFO stopped by a signal\n")


# What follows


STOPPED = "stopped: finished work is saved; to resume, run the same command again"


def stopped_by(number, caplog):
    """What is logged."""
    caplog.clear()
    with caplog.at_level(logging.INFO), pytest.raises(Preempted), handled():
        send(number)
    return [record.message for record in caplog.records]


@pytest.mark.parametrize("number", [SIGTERM, SIGUSR2, SIGINT, SIGHUP])
def test_outside_slurm_a_person_is_told_how_to_resume(number, caplog, scontrol, earlier):
    assert stopped_by(number, caplog) == [STOPPED]
    assert not scontrol.exists()
    assert earlier == []


@pytest.mark.parametrize(
    ("array", "job"), [({}, "45"), ({"ARRAY_JOB": 40, "ARRAY_TASK": 5}, "40_5")]
)
def test_near_the_time_limit_the_job_is_queued_again_by_the_name_scontrol_knows(
    array, job, caplog, scontrol, monkeypatch
):
    for name, value in {"JOB": 45, **array}.items():
        monkeypatch.setenv(f"SLURM_{name}_ID", str(value))
    [said] = stopped_by(SIGUSR2, caplog)
    assert said == f"the time limit is near: finished work is saved, and job {job} is requeued"
    assert scontrol.read_text() == f"requeue {job}\n"


def test_a_preempted_or_cancelled_job_is_not_queued_again_by_us(caplog, scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "45")
    assert stopped_by(SIGTERM, caplog) == [STOPPED]
    assert stopped_by(SIGINT, caplog) == [STOPPED]
    assert not scontrol.exists()


def test_where_queueing_again_fails_that_is_said(tmp_path, caplog, scontrol, monkeypatch):
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho disabled >&2; exit 1\n")
    monkeypatch.setenv("SLURM_JOB_ID", "45")
    [said] = stopped_by(SIGUSR2, caplog)
    assert said.startswith("scontrol requeue 45 failed: disabled; finished work is saved")


def test_who_handled_the_signal_before_queues_again_alone(caplog, scontrol, earlier, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "45")
    assert stopped_by(SIGUSR2, caplog) == []
    assert earlier == [SIGUSR2]
    stopped_by(SIGTERM, caplog)
    assert earlier == [SIGUSR2]
    assert not scontrol.exists()


# Training goes on at the same step, sampling at the same shard


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    DIGITS.run(Job(folder, {}, RUNTIME))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """An uninterrupted training, and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, TrainDPM(**SETTINGS).run(Job(folder, {"data": data}, RUNTIME))


def train(folder, data, number, at, monkeypatch):
    """A training that gets the signal in step `at`."""
    training_step = DenoisingModule.training_step

    def signaled(self, batch, batch_idx):
        if self.global_step == at:
            send(number, SIGTERM)
        return training_step(self, batch, batch_idx)

    folder.mkdir()
    monkeypatch.setattr(DenoisingModule, "training_step", signaled)
    with pytest.raises(Preempted), handled():
        TrainDPM(**SETTINGS).run(Job(folder, {"data": data}, RUNTIME))
    monkeypatch.undo()


# Of 20 steps; the checkpoint is due after 6, 12, 18 and the validation after 10 and 20.
@pytest.mark.parametrize(
    ("number", "at"),
    [(SIGTERM, 0), (SIGUSR2, 7), (SIGTERM, 9), (SIGUSR2, 19), (SIGINT, 8), (SIGHUP, 8)],
)
def test_training_saves_the_step_at_work_and_goes_on_as_if_nothing_had_been(
    tmp_path, data, whole, number, at, monkeypatch
):
    train(tmp_path / "broken", data, number, at, monkeypatch)
    saved = torch.load(tmp_path / "broken/last.ckpt", weights_only=True)
    assert saved["global_step"] == at + 1
    summary = TrainDPM(**SETTINGS).run(Job(tmp_path / "broken", {"data": data}, RUNTIME))
    folder, expected = whole
    assert summary == expected
    logged = [(f / "metrics.csv").read_text() for f in (tmp_path / "broken", folder)]
    assert logged[0] == logged[1]
    values = load_file(tmp_path / "broken" / WEIGHTS)
    for name, value in load_file(folder / WEIGHTS).items():
        torch.testing.assert_close(values[name], value, rtol=0, atol=0)


LONG = {**SETTINGS, "max_steps": 120, "preview_every_steps": 120, "checkpoint_every_steps": 120}


@pytest.fixture(scope="module")
def long_whole(tmp_path_factory, data):
    """An uninterrupted training that takes long enough to be interrupted from outside."""
    folder = tmp_path_factory.mktemp("whole")
    TrainDPM(**LONG).run(Job(folder, {"data": data}, RUNTIME))
    return folder


def interrupted(processes, folder, numbers, send=subprocess.Popen.send_signal):
    """Signals each process as said once its training has begun; exit codes, outputs, errors."""
    metrics, until = folder / "dpm/metrics.csv", time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert time.monotonic() < until
        assert processes[0].poll() is None
        time.sleep(0.01)
    for process, number in zip(processes, numbers, strict=True):
        send(process, number)
    return ended(processes)


def assert_one_process_goes_on_to(folder, expected, data):
    """To rounding: it ends where one that was not interrupted ends."""
    saved = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert 4 <= saved < 120
    TrainDPM(**LONG).run(Job(folder, {"data": data}, RUNTIME))
    values = load_file(folder / WEIGHTS)
    for name, value in load_file(expected / WEIGHTS).items():
        torch.testing.assert_close(values[name], value, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_processes_of_a_step_stop_at_one_step_and_the_first_asks_for_the_job(
    tmp_path, data, long_whole, scontrol
):
    (tmp_path / "data").symlink_to(data)
    arguments = map(json.dumps, (LONG, SAMPLING, {"accelerator": "cpu"}))
    with step("-c", STAGES, str(tmp_path), *arguments) as processes:
        codes, outputs, errors = interrupted(processes, tmp_path, [SIGUSR2, SIGUSR2])
    assert codes == [143, 143], errors
    assert scontrol.read_text() == f"requeue {os.getpid()}\n"
    assert list(outputs) == ["", ""]
    assert "is requeued" in errors[0]
    assert errors[1] == ""
    assert_one_process_goes_on_to(tmp_path / "dpm", long_whole, data)


@pytest.mark.slow
def test_processes_that_were_spawned_stop_with_the_one_that_a_person_stops(
    tmp_path, data, long_whole
):
    (tmp_path / "data").symlink_to(data)
    script = tmp_path / "script.py"
    script.write_text(STAGES)
    runtime = {"accelerator": "cpu", "devices": 2, "num_threads": 1}
    arguments = map(json.dumps, (LONG, SAMPLING, runtime))
    with step(str(script), str(tmp_path), *arguments, tasks=1) as processes:
        codes, outputs, errors = interrupted(processes, tmp_path, [SIGTERM])
    assert codes == [143], errors
    assert list(outputs) == [""]
    assert "Traceback" not in errors[0]
    assert STOPPED in errors[0]
    assert_one_process_goes_on_to(tmp_path / "dpm", long_whole, data)


def to_group(process, number):
    os.killpg(process.pid, number)


@pytest.mark.slow
def test_ctrl_c_reaches_the_whole_process_group_as_a_terminal_sends_it(tmp_path, data, long_whole):
    """The spawned processes get it too: they save, and die without a traceback."""
    (tmp_path / "data").symlink_to(data)
    script = tmp_path / "script.py"
    script.write_text("import signal\nsignal.signal(2, signal.default_int_handler)\n" + STAGES)
    runtime = {"accelerator": "cpu", "devices": 2, "num_threads": 1}
    arguments = map(json.dumps, (LONG, SAMPLING, runtime))
    command = (str(script), str(tmp_path), *arguments)
    with step(*command, tasks=1, start_new_session=True) as processes:
        codes, outputs, errors = interrupted(processes, tmp_path, [SIGINT], to_group)
    assert codes == [130], errors
    assert list(outputs) == [""]
    assert "Traceback" not in errors[0]
    assert "Ctrl-C again stops immediately" in errors[0]
    assert STOPPED in errors[0]
    assert_one_process_goes_on_to(tmp_path / "dpm", long_whole, data)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_sampling_writes_whole_shards_and_resumes_with_the_rest(
    tmp_path, whole, monkeypatch, number
):
    runtime = Runtime(accelerator="cpu", sampling_batch_size=8)
    reads = {"dpm": whole[0]}
    predict_step, seen = ImageSampler.predict_step, []

    def signaled(self, batch):
        seen.append(batch["shard"])
        if len(seen) == 5:  # the first batch of the third shard of four
            send(number)
        return predict_step(self, batch)

    monkeypatch.setattr(ImageSampler, "predict_step", signaled)
    (tmp_path / "broken").mkdir()
    with pytest.raises(Preempted), handled():
        Generate(**SAMPLING).run(Job(tmp_path / "broken", reads, runtime))
    shards = tmp_path / "broken/shards"
    assert sorted(path.name for path in shards.iterdir()) == ["000000.npy", "000001.npy"]
    Generate(**SAMPLING).run(Job(tmp_path / "broken", reads, runtime))
    assert seen == [0, 0, 1, 1, 2, 2, 2, 3]
    (tmp_path / "whole").mkdir()
    Generate(**SAMPLING).run(Job(tmp_path / "whole", reads, runtime))
    for path in shards.iterdir():
        assert path.read_bytes() == (tmp_path / "whole/shards" / path.name).read_bytes()
