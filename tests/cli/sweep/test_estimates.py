"""Hours foretold: in proportion to the work, from the artifacts that are most alike."""

from pathlib import Path

import pytest

from sidepipe.cli.sweep.estimates import estimates
from sidepipe.cli.sweep.grid import Sweep, Task, sweep_of
from sidepipe.engine import artifacts


def smoke(outputs: Path, *overrides: str) -> Sweep:
    given = ("experiment=smoke", "attacks=compare", f"runtime.outputs={outputs}", "stage=dpm")
    return sweep_of("attack_demo", [*given, "seed=0", *overrides])


def finish(
    task: Task, seconds: float, device: str = "1 x cpu, 2 threads", empty: bool = False
) -> None:
    node = task.node
    content = {"stage": node.stage.name, "settings": node.settings, "device": device}
    inputs = {name: read.key for name, read in node.inputs.items()}
    task.folder.mkdir(parents=True, exist_ok=True)
    summary = {"empty": "nothing repeats"} if empty else {}
    manifest = {**content, "inputs": inputs, "seconds": seconds, "summary": summary}
    artifacts.write_manifest(task.folder, manifest)


def dpm_of(sweep: Sweep) -> Task:
    return list(sweep.tasks.values())[-1]


def foretold(sweep: Sweep) -> float | None:
    found = list(estimates(sweep.tasks.values()).values())[-1]
    return None if found is None else found.seconds


def test_nothing_is_foretold_without_earlier_artifacts(tmp_path: Path) -> None:
    assert set(estimates(smoke(tmp_path).tasks.values()).values()) == {None}


def test_seconds_grow_with_steps_and_images(tmp_path: Path) -> None:
    earlier = smoke(tmp_path)
    for task in earlier.tasks.values():
        finish(task, seconds=10.0)
    assert foretold(smoke(tmp_path, "dpm.max_steps=180")) == 30.0
    assert foretold(smoke(tmp_path, "dpm.max_steps=120", "dpm.batch_size=64")) == 40.0
    assert foretold(smoke(tmp_path, "dpm.lr=0.5")) == 10.0


def test_the_most_alike_count_by_their_median(tmp_path: Path) -> None:
    for rate, seconds in ((0.1, 7.0), (0.2, 50.0), (0.3, 60.0), (0.4, 1000.0)):
        other = smoke(tmp_path, f"dpm.lr={rate}", "dpm.ema_decay=0.5")
        for task in other.tasks.values():
            finish(task, seconds)
    assert foretold(smoke(tmp_path, "dpm.ema_decay=0.5", "dpm.lr=0.9")) == pytest.approx(55.0)
    shorter = smoke(tmp_path, "dpm.ema_decay=0.5", "dpm.lr=0.1", "dpm.max_steps=30")
    assert foretold(shorter) == pytest.approx(3.5)


def test_what_it_was_made_from_tells_likeness_too(tmp_path: Path) -> None:
    for size, seconds in ((8, 10.0), (4, 1.0)):
        for task in smoke(tmp_path, f"data.size={size}").tasks.values():
            finish(task, seconds)
    assert foretold(smoke(tmp_path, "data.size=4", "dpm.lr=0.7")) == 1.0


def test_artifacts_whose_inputs_were_deleted_are_passed_over(tmp_path: Path) -> None:
    sweep = smoke(tmp_path)
    finish(dpm_of(sweep), 10.0)
    assert foretold(smoke(tmp_path, "dpm.lr=0.5")) is None


def test_an_empty_artifact_predicts_nothing(tmp_path: Path) -> None:
    """It took no time: forecasts of the work itself fell with it."""
    for rate in (0.1, 0.2, 0.3):
        for task in smoke(tmp_path, f"dpm.lr={rate}").tasks.values():
            finish(task, 0.1, empty=True)
    assert foretold(smoke(tmp_path, "dpm.lr=0.5")) is None
    for task in smoke(tmp_path, "dpm.lr=0.4").tasks.values():
        finish(task, 10.0)
    assert foretold(smoke(tmp_path, "dpm.lr=0.5")) == 10.0


def test_device_seconds_are_told_with_the_device(tmp_path: Path) -> None:
    sweep = smoke(tmp_path)
    for task in sweep.tasks.values():
        finish(task, 1.0, "4 x A100, 8 threads")
    found = list(estimates(smoke(tmp_path, "dpm.lr=0.5").tasks.values()).values())[-1]
    assert found is not None
    assert found.device == "4 x A100, 8 threads"
    assert found.seconds == 4.0, "of all devices together"


def test_a_tuning_takes_as_long_as_its_trials_together(tmp_path: Path) -> None:
    tuned = ("attacks=single", "extract=tuned", "stage=tune")
    for task in smoke(tmp_path, *tuned).tasks.values():
        finish(task, seconds=10.0)
    assert foretold(smoke(tmp_path, *tuned, "tune.grid.t_min=[0,250,500]")) == 30.0
    assert foretold(smoke(tmp_path, *tuned, "tune.num_images=60")) == 30.0
    assert foretold(smoke(tmp_path, *tuned, "extract.num_inference_steps=8")) == 20.0
    assert foretold(smoke(tmp_path, *tuned, "extract.num_images=500")) == 10.0
