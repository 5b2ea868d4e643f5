import csv
import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.tiny import RUNTIME, checked

from sidepipe.base.settings import bind
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.descriptor.module import DescriptorModule
from sidepipe.stages.descriptor.stage import Descriptor, last_share, load, load_rows
from sidepipe.stages.descriptor.task import EDITS, judge
from sidepipe.stages.dpm.stage import load_subset

CONF = Path(__file__).parents[3] / "conf/descriptor"
FILES = ("model.safetensors", "network.json", "quality.csv", "rows.npy")


def descriptor(**changes) -> Descriptor:
    settings = {
        "fraction": 0.5,
        "widths": [8, 16],
        "dimensions": 16,
        "temperature": 0.05,
        "entropy_weight": 0.5,
        "max_steps": 20,
        "batch_size": 32,
        "lr": 0.003,
        "weight_decay": 0.01,
        "lr_warmup_steps": 5,
        "gradient_clip_val": 1.0,
        "precision": "32-true",
        "log_every_steps": 10,
        "checkpoint_every_steps": 6,
        "validate_every_steps": 10,
        "sscd_path": None,
        "sscd_sha256": None,
        "seed": 0,
    }
    return Descriptor(**{**settings, **changes})


def run(folder, inputs, runtime=RUNTIME, **changes):
    folder.mkdir(exist_ok=True)
    return descriptor(**changes).run(Job(folder, inputs, runtime))


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """A descriptor that has learned something, and its summary."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"max_steps": 120, "batch_size": 64, "validate_every_steps": 120,
                "widths": [16, 32], "dimensions": 32}  # fmt: skip
    return folder, run(folder, inputs, checkpoint_every_steps=120, **settings)


def test_it_beats_pixels_on_planted_copies(trained):
    precision = trained[1]["average_precision"]
    assert set(precision) == {"copydet-v1-8px", "pixels-rms-v1", "pixels-centered-v1"}
    others = [v for name, v in precision.items() if not name.startswith("copydet")]
    assert precision["copydet-v1-8px"] > max(others) + 0.02


def test_it_takes_the_worst_held_out_images_and_none_of_the_training_subset(trained, inputs):
    rows = load_rows(trained[0])
    train, unseen = load_subset(inputs["dpm"])
    assert len(unseen) == 800
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, unseen[400:])
    assert not set(rows) & set(train)
    assert not set(rows) & set(unseen[:400])


def test_images_it_is_judged_by_are_never_trained_on(inputs, tmp_path, monkeypatch):
    seen, judged = set(), set()
    views = DescriptorModule.views

    def spy(self, images, generator, *share):
        (seen if self.training else judged).update(i.numpy().tobytes() for i in images)
        return views(self, images, generator, *share)

    monkeypatch.setattr(DescriptorModule, "views", spy)
    summary = run(tmp_path, inputs)
    assert summary["num_train_images"] == len(seen) == 320
    assert summary["num_task_images"] == len(judged) == 80
    images = load_images(inputs["data"])
    assert seen | judged == {images[row].tobytes() for row in load_rows(tmp_path)}
    assert not seen & judged


def test_quality_has_a_row_for_every_encoder_and_edit(trained):
    folder, summary = trained
    with (folder / "quality.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["copydet-v1-8px", "pixels-rms-v1", "pixels-centered-v1"]
    assert [(r["encoder"], r["edit"]) for r in rows] == [
        (name, edit) for name in names for edit in (*EDITS, "all")
    ]
    together = {r["encoder"]: float(r["average_precision"]) for r in rows if r["edit"] == "all"}
    assert together == pytest.approx(summary["average_precision"], abs=1e-6)


def test_load_gives_the_encoder_that_was_judged(trained, inputs):
    folder, summary = trained
    encoder = load(folder)
    encoder.check()
    order = np.random.default_rng(0).permutation(load_rows(folder))
    rows = list(judge({"mine": encoder}, load_images(inputs["data"])[order[:80]], 0))
    expected = summary["average_precision"]["copydet-v1-8px"]
    assert rows[-1]["average_precision"] == pytest.approx(expected, abs=1e-6)
    described = json.loads((folder / "network.json").read_text())
    assert described == {"size": 8, "widths": [16, 32], "dimensions": 32}


def test_official_sscd_is_judged_beside_it_where_its_file_is_set(inputs, tmp_path):
    path = tmp_path / "sscd.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        script = torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(80), torch.nn.Flatten()))
        torch.jit.save(script, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    settings = {"sscd_path": str(path), "sscd_sha256": sha256, "max_steps": 10}
    checked(descriptor(**settings), {}, RUNTIME)
    precision = run(tmp_path / "descriptor", inputs, **settings)["average_precision"]
    assert 0 < precision["sscd-320-v1"] < precision["pixels-rms-v1"]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "at_step"),
    [
        ("training_step", 3),  # before any checkpoint
        ("training_step", 14),  # between two
        ("validation_step", 20),  # the last validation never happened
    ],
)
def test_an_interrupted_run_goes_on_to_the_bytes_of_an_uninterrupted_one(
    inputs, tmp_path, monkeypatch, method, at_step
):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    expected = run(whole, inputs)
    original = getattr(DescriptorModule, method)

    def killed_there(self, batch, batch_idx):
        if self.global_step == at_step:
            raise Killed
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DescriptorModule, method, killed_there)
        with pytest.raises(Killed):
            run(resumed, inputs)
    assert not (resumed / "model.safetensors").exists()
    assert run(resumed, inputs) == expected
    for file in FILES:
        assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_run_killed_after_training_only_judges_again(inputs, tmp_path, monkeypatch):
    expected = run(tmp_path, inputs, max_steps=10)
    first = {file: (tmp_path / file).read_bytes() for file in FILES}
    for file in FILES:
        (tmp_path / file).unlink()
    monkeypatch.setattr(DescriptorModule, "training_step", lambda *args: pytest.fail("trained"))
    assert run(tmp_path, inputs, max_steps=10) == expected
    assert {file: (tmp_path / file).read_bytes() for file in FILES} == first


def test_the_seed_decides_the_weights(inputs, tmp_path):
    settings = {"max_steps": 3, "validate_every_steps": 3}
    for name, seed in (("a", 0), ("b", 1)):
        run(tmp_path / name, inputs, seed=seed, **settings)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert not a["project.weight"].equal(b["project.weight"])


@pytest.mark.slow
def test_two_processes_train_as_one_does(inputs, tmp_path):
    """To rounding: each view is compared with those of both, and gradients are averaged."""
    settings = {"max_steps": 6, "validate_every_steps": 6}
    run(tmp_path / "one", inputs, **settings)
    run(tmp_path / "two", inputs, Runtime(accelerator="cpu", devices=2, num_threads=1), **settings)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4)


def test_a_loss_that_is_no_number_stops_the_run_at_its_step(inputs, tmp_path, monkeypatch):
    losses = DescriptorModule._losses

    def breaking(self, z, ids):
        contrast, entropy = losses(self, z, ids)
        return contrast * (float("nan") if self.global_step == 4 else 1), entropy

    monkeypatch.setattr(DescriptorModule, "_losses", breaking)
    message = r"descriptor: the loss is nan at step 4; remedy: lower descriptor\.lr"
    with pytest.raises(RuntimeError, match=message):
        run(tmp_path, inputs)


@pytest.mark.parametrize(("count", "fraction"), [(127, 0.5), (0, 0.5), (640, 0.09)])
def test_too_few_images_are_refused_with_the_remedy(count, fraction):
    message = rf"descriptor.fraction must be enough for 64 of the {count} images.*got {fraction}; "
    with pytest.raises(ValueError, match=message + "raise it, lower dpm.num_train_images"):
        last_share(np.arange(count), fraction)


def test_the_last_share_of_the_images_is_taken():
    unseen = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(last_share(unseen, 0.25), unseen[750:])
    assert len(last_share(unseen[:128], 0.5)) == 64


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("max_steps", 0, ">= 1"),
        ("log_every_steps", 0, ">= 1"),
        ("checkpoint_every_steps", 0, ">= 1"),
        ("lr", 0.0, "> 0"),
        ("temperature", 0.0, "> 0"),
        ("entropy_weight", -1.0, ">= 0"),
        ("weight_decay", -0.1, ">= 0"),
        ("lr_warmup_steps", -1, ">= 0"),
        ("gradient_clip_val", -1.0, ">= 0"),
        ("fraction", 0.0, r"in \(0, 1\)"),
        ("fraction", 1.0, r"in \(0, 1\)"),
        ("validate_every_steps", 21, r"in \[1, max_steps\]"),
        ("seed", -1, r"in \[0, 2\*\*32\)"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_rule_and_value(name, value, rule):
    with pytest.raises(ValueError, match=f"descriptor.{name} must be {rule}, got {value}"):
        descriptor(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, r"descriptor.batch_size must be >= 4 and divisible by 4, .* got 6"),
        ({"batch_size": 2}, r"descriptor.batch_size must be >= 4 .* got 2"),
        ({"widths": [8, 9]}, r"widths must be multiples of 8, one per level, got \[8, 9\]"),
        ({"dimensions": 1}, "dimensions must be >= 2, got 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        checked(descriptor(**changes), {}, Runtime(accelerator="cpu", devices=2))
    checked(descriptor(), {}, Runtime(accelerator="cpu", devices=2))


def test_a_missing_file_of_sscd_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        checked(descriptor(sscd_path=str(tmp_path / "sscd.pt")), {}, RUNTIME)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_sets_all_settings(file):
    settings = yaml.safe_load(file.read_text())
    bind("descriptor", settings.pop("_target_"), settings)
