import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from sidepipe.engine import logs, progress
from sidepipe.engine.artifacts import read_progress
from sidepipe.engine.logs import quiet_libraries, stage_log
from sidepipe.engine.progress import (
    LineProgress,
    SpawnedProcess,
    progress_callbacks,
    progress_settings,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time as progress.py sees it, in `clock.now`."""
    fake = SimpleNamespace(now=1000.0, strftime=time.strftime)
    fake.monotonic = lambda: fake.now
    monkeypatch.setattr(progress, "time", fake)
    return fake


@pytest.fixture(autouse=True)
def say_info(caplog):
    caplog.set_level(logging.INFO, "sidepipe")


def trainer(step=0, metrics=None, rank=0, world=1):
    tensors = {name: torch.tensor(value) for name, value in (metrics or {}).items()}
    return SimpleNamespace(
        global_step=step, callback_metrics=tensors, is_global_zero=rank == 0, world_size=world
    )


def train(callback, clock, steps, seconds_per_step=1.0, **options):
    """Runs the callback over training steps `steps`, each of which takes so long."""
    callback.on_train_start(trainer(steps.start - 1), None)
    for step in steps:
        clock.now += seconds_per_step
        callback.on_train_batch_end(trainer(step, **options), None, None, None, 0)


# lines and progress.json


def test_a_line_is_said_once_in_so_many_seconds(tmp_path, clock, caplog):
    train(LineProgress(tmp_path, 100, seconds=30), clock, range(1, 101))
    said = [record.message.split(",")[0] for record in caplog.records]
    assert said == ["step 30/100 (30 %)", "step 60/100 (60 %)", "step 90/100 (90 %)"]


def test_a_line_has_rate_time_left_and_metrics(tmp_path, clock, caplog):
    callback = LineProgress(tmp_path, 40_000, seconds=2000)
    train(callback, clock, range(1, 4001), 0.5, metrics={"loss": 0.123456789, "val/loss": 2.0})
    [record] = caplog.records
    expected = "step 4000/40000 (10 %), 2.0/s, 5:00:00 left loss 0.12346 val/loss 2"
    assert record.message == expected


def test_status_reads_the_same_numbers(tmp_path, clock):
    assert read_progress(tmp_path) is None
    train(LineProgress(tmp_path, 100, seconds=30), clock, range(1, 61), metrics={"loss": 0.5})
    assert read_progress(tmp_path) == {
        "step": 60,
        "total": 100,
        "unit": "step",
        "per_second": 1.0,
        "seconds_left": 40.0,
        "metrics": {"loss": 0.5},
    }


def test_a_resumed_training_reckons_with_its_own_steps(tmp_path, clock, caplog):
    """Not with those of the run before, which took no time of this one."""
    callback = LineProgress(tmp_path, 2000, seconds=100)
    clock.now += 500  # building and loading are no steps either
    train(callback, clock, range(1001, 1101))
    [record] = caplog.records
    assert record.message.startswith("step 1100/2000 (55 %), 1.0/s, 0:15:00 left")


def test_images_are_counted_over_all_devices_and_from_what_is_there(tmp_path, clock, caplog):
    callback = LineProgress(tmp_path, 500, seconds=10, unit="image", first=100)
    clock.now += 500
    callback.on_predict_start(trainer(), None)
    for _ in range(4):
        clock.now += 10
        callback.on_predict_batch_end(trainer(world=2), None, torch.zeros(60, 1), None, 0)
    said = [record.message for record in caplog.records]
    assert said == [
        "image 220/500 (44 %), 12.0/s, 0:00:23 left",
        "image 340/500 (68 %), 12.0/s, 0:00:13 left",
        "image 460/500 (92 %), 12.0/s, 0:00:03 left",
        "image 500/500 (100 %), 10.0/s, 0:00:00 left",
    ]


def test_only_the_first_process_speaks(tmp_path, clock, caplog):
    train(LineProgress(tmp_path, 100, seconds=1), clock, range(1, 101), rank=1)
    assert not caplog.records
    assert read_progress(tmp_path) is None


def test_a_terminal_gets_a_bar_and_a_log_gets_lines(tmp_path, clock, caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    line, bar = progress_callbacks(tmp_path, 100, seconds=30)
    assert isinstance(bar, TQDMProgressBar)
    assert progress_settings()["enable_progress_bar"]
    train(line, clock, range(1, 101))
    assert not caplog.records
    assert read_progress(tmp_path)["step"] == 90
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    [line] = progress_callbacks(tmp_path, 100, seconds=30)
    assert not progress_settings()["enable_progress_bar"]
    train(line, clock, range(1, 31))
    assert len(caplog.records) == 1


# a stage's log


def test_the_packages_lines_are_appended_to_the_log_and_no_others(tmp_path):
    path = tmp_path / "log.txt"
    for line in ("first", "second"):
        with stage_log(path):
            logging.getLogger("sidepipe.stages.dpm.stage").info(line)
            logging.getLogger("lightning").warning("not ours")
    logging.getLogger("sidepipe.stages.dpm.stage").info("after the stage")
    lines = path.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO first", "INFO second"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_the_log_keeps_the_traceback_and_the_error_says_where(tmp_path, kind):
    path = tmp_path / "log.txt"
    before = list(logging.getLogger("sidepipe").handlers)

    def breaks():
        raise kind("of the stage")

    with pytest.raises(kind, match="of the stage") as raised, stage_log(path):
        breaks()
    text = path.read_text()
    assert "failed\nTraceback (most recent call last):" in text
    assert "in breaks\n" in text
    assert text.endswith(f"{kind.__name__}: of the stage\n")
    assert raised.value.__notes__ == [f"the traceback is in {path}"]
    assert logging.getLogger("sidepipe").handlers == before


# libraries and processes


def test_the_warnings_that_nobody_can_use_are_silenced_and_no_others():
    quiet_libraries()
    warnings.warn("The 'train_dataloader' does not have many workers which may be", stacklevel=1)
    warnings.warn("Found 3 module(s) in eval mode at the start of training.", stacklevel=1)
    with pytest.raises(UserWarning, match="loss of precision"):
        warnings.warn("loss of precision", stacklevel=1)


def test_in_the_first_process_nothing_is_set_up_anew(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    SpawnedProcess(tmp_path).setup(trainer(), None, "fit")
    assert signal.getsignal(signal.SIGINT) == before
    assert not list(tmp_path.iterdir())


ENDLESS = """
import json, signal, sys
from pathlib import Path

from diffusers import DDPMPipeline

from sidepipe.stages.generate.stage import Generate
from sidepipe.base.settings import build
from sidepipe.engine.stage import Job, Runtime

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `sidepipe &`
    unet, schedule, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    DDPMPipeline(build(unet), build(schedule)).save_pretrained(folder / "model")
    generate = Generate(num_images=10**6, num_inference_steps=5, eta=0.0, shard_size=16, seed=0,
                        timestep_spacing="leading", sampler="ddim", precision="32-true",
                        prompts=None, condition_guidance_scale=1.0)
    generate.run(Job(folder, {"dpm": folder}, Runtime(accelerator="cpu", devices=2, num_threads=1)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="tells processes by /proc")
def test_spawned_processes_die_with_the_first(tmp_path):
    """Else they would write on while the same command, given again, goes on from their files."""
    from tests.tiny import SCHEDULE, UNET

    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    arguments = [json.dumps(UNET), json.dumps(SCHEDULE), str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("shards/*.npy"))) < 4 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.wait()
    time.sleep(2)
    left = [pid for pid in children if b"spawn_main" in command_line(pid)]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_a_count_has_the_rate_of_this_run_and_the_time_left(clock, caplog, monkeypatch):
    monkeypatch.setattr(logs, "time", clock)
    report = logs.counting(10_000, "images", seconds=30)
    for done in (5000, 5100, 5200, 5300, 5400):  # an earlier run has done the first 4,900
        clock.now += 10
        report(done)
    [record] = caplog.records
    assert record.message == "5,200 of 10,000 images, 10.0 per second, 0:08:00 left"
