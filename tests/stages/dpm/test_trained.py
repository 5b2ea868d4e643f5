import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import load_file
from tests.tiny import RUNTIME, checked

from sidepipe.base.settings import bind_nested
from sidepipe.engine.stage import Job, Runtime
from sidepipe.engine.training import weights
from sidepipe.stages.data.stage import Data
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.module import DenoisingModule
from sidepipe.stages.dpm.stage import load, load_subset

CONF = Path(__file__).parents[3] / "conf/dpm"
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


def final_metrics(folder):
    """metrics.csv as a reader takes it: of a row logged twice, the later."""
    rows = pd.read_csv(folder / "metrics.csv")
    return rows.drop_duplicates(["step", "metric"], keep="last").sort_values(["step", "metric"])


def assert_same_result(one, two):
    """Weights and previews to the bit, and every metric."""
    for name in [WEIGHTS, *(p.relative_to(one) for p in sorted(one.glob("previews/*")))]:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert len(list(one.glob("previews/*"))) == len(list(two.glob("previews/*")))
    first, second = final_metrics(one), final_metrics(two)
    np.testing.assert_array_equal(first.to_numpy(), second.to_numpy())


@pytest.fixture
def fails_at(monkeypatch):
    """A function after which training or validation ends at a step with an error, once.

    It returns the list of the steps that are trained from then on.
    """

    def fail_at(failing_step, where="training_step"):
        wrapped = {name: getattr(DenoisingModule, name) for name in ("training_step", where)}
        trained, left = [], [failing_step]

        def failing(name):
            def step(self, *args):
                if name == where and [self.global_step] == left:
                    left.clear()
                    trained.clear()
                    raise KeyError("the machine broke down")
                if name == "training_step":
                    trained.append(self.global_step)
                return wrapped[name](self, *args)

            return step

        for name in wrapped:
            monkeypatch.setattr(DenoisingModule, name, failing(name))
        return trained

    return fail_at


# what a run leaves


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_plain_diffusers_loads_the_model_and_samples(
    tmp_path, data, train_dpm, prediction_type, beta_schedule
):
    schedule = {"prediction_type": prediction_type, "beta_schedule": beta_schedule}
    train_dpm(max_steps=4, noise_schedule=schedule).run(Job(tmp_path, {"data": data}, RUNTIME))
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(2, generator, num_inference_steps=20, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    assert np.isfinite(images).all()
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    assert pipeline.scheduler.config["prediction_type"] == prediction_type
    expected = DDPMScheduler(20, beta_schedule=beta_schedule).alphas_cumprod
    assert pipeline.scheduler.alphas_cumprod.equal(expected)
    unet, scheduler = load(tmp_path).values()
    assert not unet.training
    assert scheduler.config["prediction_type"] == prediction_type
    for name, value in pipeline.unet.state_dict().items():
        assert value.equal(unet.state_dict()[name])


@pytest.mark.parametrize(
    ("prediction_type", "beta_schedule"),
    [("epsilon", "linear"), ("v_prediction", "squaredcos_cap_v2")],
)
def test_a_model_of_one_image_gives_it_away(
    tmp_path, data, train_dpm, prediction_type, beta_schedule
):
    """What is trained is what diffusers takes the network's output for."""
    schedule = {"prediction_type": prediction_type, "beta_schedule": beta_schedule, "beta_end": 0.2}
    stage = train_dpm(
        num_train_images=1, max_steps=120, noise_schedule={**schedule, "num_train_timesteps": 50},
        unet={"block_out_channels": [8, 8]}, random_flip=False, log_every_steps=120,
        checkpoint_every_steps=120, preview_every_steps=120,
    )  # fmt: skip
    stage.run(Job(tmp_path, {"data": data}, RUNTIME))
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    samples = pipeline(16, generator, num_inference_steps=50, output_type="np").images * 255.0
    image = load_images(data)[load_subset(tmp_path)[0]].astype(float)
    others = load_images(data)[load_subset(tmp_path)[1]].astype(float)
    to_image = np.abs(samples - image).mean((1, 2, 3))
    to_others = np.abs(samples[:, None] - others[None]).mean((2, 3, 4)).min(1)
    assert np.median(to_image) < 20, "of 256 gray levels"
    assert np.median(to_image) < np.median(to_others)


def test_a_run_writes_the_split_the_metrics_and_previews(tmp_path, data, train_dpm):
    summary = train_dpm().run(Job(tmp_path, {"data": data}, RUNTIME))
    train, heldout = load_subset(tmp_path)
    assert len(train) == summary["num_train_images"] == 20
    assert len(heldout) == summary["num_heldout_images"] == 1777
    assert sorted([*train, *heldout]) == list(range(1797))
    assert summary["num_parameters"] == sum(p.numel() for p in load(tmp_path)["unet"].parameters())
    assert summary["epochs"] == 20 * 8 / 20
    rows = pd.read_csv(tmp_path / "metrics.csv")
    steps = {metric: group["step"].tolist() for metric, group in rows.groupby("metric")}
    assert steps == {
        "loss": list(range(1, 21)),
        "val/loss_train": [10, 20],
        "val/loss_heldout": [10, 20],
    }
    assert rows["value"].between(0, 10).all()
    for metric, group in rows.groupby("metric"):
        assert summary[metric] == group["value"].iloc[-1]
    for step in (10, 20):
        with Image.open(tmp_path / f"previews/step_{step:07d}.png") as preview:
            assert preview.size == (8 * 66, 8 * 66)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(
            "duplicates.csv",
            "heldout.npy",
            "last.ckpt",
            "metrics.csv",
            "model",
            "previews",
            "subset.npy",
        ),
    ]


def test_without_held_out_images_there_is_one_validation_loss(tmp_path, data, train_dpm):
    summary = train_dpm(num_train_images=None).run(Job(tmp_path, {"data": data}, RUNTIME))
    assert summary["num_train_images"] == 1797
    assert "val/loss_train" in summary
    assert "val/loss_heldout" not in summary


def test_a_subset_the_data_have_not_is_refused(tmp_path, data, train_dpm):
    with pytest.raises(ValueError, match=r"dpm\.num_train_images must be in \[1, 1797\]"):
        train_dpm(num_train_images=1798).run(Job(tmp_path, {"data": data}, RUNTIME))


def test_the_model_and_its_previews_are_of_the_averaged_weights(
    tmp_path, data, train_dpm, monkeypatch
):
    """The average begins as the weights after step `ema_start_step` and follows at (1 - decay)."""
    history, previewed = [], []

    def flat(module):
        return torch.cat([p.detach().flatten().double() for p in module.unet.parameters()])

    def remember_weights(self, *args):
        history.append(flat(self))

    def remember_preview(self):
        previewed.append((self.global_step, flat(self), self.training))
        return np.zeros((64, 8, 8, 1), np.uint8)

    monkeypatch.setattr(DenoisingModule, "on_train_batch_end", remember_weights)
    monkeypatch.setattr(DenoisingModule, "preview", remember_preview)
    train_dpm(ema_start_step=3, ema_decay=0.9).run(Job(tmp_path, {"data": data}, RUNTIME))
    averages = [history[3]]
    for now in history[4:]:
        averages.append(0.9 * averages[-1] + 0.1 * now)
    saved = torch.cat([p.flatten().double() for p in load(tmp_path)["unet"].parameters()])
    torch.testing.assert_close(saved, averages[-1], rtol=0, atol=1e-6)
    assert (saved - history[-1]).abs().max() > 1e-3, "or the test could not tell them apart"
    assert [step for step, _, _ in previewed] == [10, 20]
    for step, shown, training in previewed:
        torch.testing.assert_close(shown, averages[step - 4], rtol=0, atol=1e-6)
        assert not training


def test_the_checkpoint_has_both_kinds_of_weights(tmp_path, data, train_dpm):
    train_dpm().run(Job(tmp_path, {"data": data}, RUNTIME))
    averaged = {k.removeprefix("unet."): v for k, v in weights(tmp_path).items()}
    for name, value in load_file(tmp_path / WEIGHTS).items():
        assert value.equal(averaged[name])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 20
    current = checkpoint["current_model_state"]["unet.conv_in.weight"]
    assert not current.equal(averaged["conv_in.weight"])


# going on


@pytest.mark.parametrize(
    ("broken_step", "where", "checkpoint_every_steps", "goes_on_from"),
    [
        (2, "training_step", 6, 0),
        (7, "training_step", 6, 6),
        (19, "training_step", 6, 18),
        (11, "training_step", 10, 10),
        (10, "validation_step", 10, 0),
        (20, "validation_step", 5, 15),
    ],
    ids=[
        "before any checkpoint",
        "after one",
        "at the last step",
        "after a validated one",
        "in its validation",
        "in the last validation",
    ],
)
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    tmp_path, data, train_dpm, fails_at, broken_step, where, checkpoint_every_steps, goes_on_from
):
    """Also with dropout, whose noise comes from torch's own generator."""
    stage = train_dpm(checkpoint_every_steps=checkpoint_every_steps, unet={"dropout": 0.3})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = stage.run(Job(whole, {"data": data}, RUNTIME))
    trained_again = fails_at(broken_step, where)
    with pytest.raises(KeyError, match="the machine broke down"):
        stage.run(Job(broken, {"data": data}, RUNTIME))
    assert not (broken / "model").exists()
    assert stage.run(Job(broken, {"data": data}, RUNTIME)) == expected
    assert trained_again == list(range(goes_on_from, 20))
    assert_same_result(whole, broken)


def test_a_run_killed_between_its_last_step_and_the_model_is_completed(
    tmp_path, data, train_dpm, monkeypatch
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = train_dpm().run(Job(whole, {"data": data}, RUNTIME))

    def fail(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(DDPMPipeline, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        train_dpm().run(Job(broken, {"data": data}, RUNTIME))
    monkeypatch.undo()
    checkpoint = (broken / "last.ckpt").read_bytes()
    assert train_dpm().run(Job(broken, {"data": data}, RUNTIME)) == expected
    assert (broken / "last.ckpt").read_bytes() == checkpoint, "nothing was trained again"
    assert_same_result(whole, broken)


def test_a_checkpoint_whose_writing_breaks_off_leaves_the_earlier_one(
    tmp_path, data, train_dpm, monkeypatch
):
    """And no file elsewhere: a temporary folder can be another disk, from where a file is copied,
    not renamed."""
    save = torch.save

    def breaking(content, file):
        save(content, file)
        if content["global_step"] == 12:
            file.truncate(1000)
            raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", breaking)
    monkeypatch.setattr("tempfile.mkstemp", lambda *args, **options: pytest.fail("used /tmp"))
    with pytest.raises(OSError, match="no space"):
        train_dpm().run(Job(tmp_path, {"data": data}, RUNTIME))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    monkeypatch.undo()
    train_dpm().run(Job(tmp_path, {"data": data}, RUNTIME))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 20


KILLED = """
import json, sys, time
from pathlib import Path

from sidepipe.stages.dpm.module import DenoisingModule
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.engine.stage import Job, Runtime

training_step = DenoisingModule.training_step

def slow(self, batch, batch_idx):
    time.sleep(0.2)
    return training_step(self, batch, batch_idx)

DenoisingModule.training_step = slow
settings, folder, data = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
TrainDPM(**settings).run(Job(folder, {"data": data}, Runtime(accelerator="cpu")))
"""


@pytest.mark.slow
def test_a_run_killed_by_sigkill_ends_where_an_uninterrupted_one_does(tmp_path, data, train_dpm):
    stage = train_dpm(max_steps=40, checkpoint_every_steps=4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    arguments = [json.dumps(vars(stage)), str(broken), str(data)]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not (broken / "last.ckpt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert torch.load(broken / "last.ckpt", weights_only=True)["global_step"] < 40
    expected = stage.run(Job(whole, {"data": data}, RUNTIME))
    assert stage.run(Job(broken, {"data": data}, RUNTIME)) == expected
    assert_same_result(whole, broken)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, data, train_dpm, capfd):
    """To rounding: each has half of the batch and of its noise, and gradients are averaged."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    expected = train_dpm().run(Job(one, {"data": data}, RUNTIME))
    runtime = Runtime(accelerator="cpu", devices=2, num_threads=1, progress_seconds=0)
    summary = train_dpm().run(Job(two, {"data": data}, runtime))
    assert summary.keys() == expected.keys()
    for name, value in load_file(one / WEIGHTS).items():
        torch.testing.assert_close(load_file(two / WEIGHTS)[name], value, rtol=0, atol=1e-4)
    both = final_metrics(one).merge(final_metrics(two), on=["step", "metric"])
    assert len(both) == len(final_metrics(one)) == len(final_metrics(two))
    # A rank logs the loss of its own images; validation is of all of them.
    both = both[both["metric"] != "loss"]
    np.testing.assert_allclose(both["value_x"], both["value_y"], atol=1e-3)
    assert "step 20/20 (100 %)" in (two / "log.txt").read_text()
    assert capfd.readouterr().err.count("step 20/20 (100 %)") == 1


# refusals


def test_a_loss_that_is_no_number_stops_the_run_at_its_step(tmp_path, data, train_dpm, monkeypatch):
    loss = DenoisingModule.loss

    def breaking(self, *args, **options):
        return loss(self, *args, **options) * (float("nan") if self.global_step == 4 else 1)

    monkeypatch.setattr(DenoisingModule, "loss", breaking)
    with pytest.raises(
        RuntimeError, match=r"dpm: the loss is nan at step 4; remedy: lower dpm\.lr"
    ):
        train_dpm(checkpoint_every_steps=1).run(Job(tmp_path, {"data": data}, RUNTIME))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_steps", 0, ">= 1, got 0"),
        ("batch_size", 0, ">= 1, got 0"),
        ("log_every_steps", 0, ">= 1, got 0"),
        ("checkpoint_every_steps", 0, ">= 1, got 0"),
        ("preview_every_steps", 0, ">= 1, got 0"),
        ("lr", 0.0, "> 0, got 0.0"),
        ("lr_warmup_steps", -1, ">= 0, got -1"),
        ("weight_decay", -0.1, ">= 0, got -0.1"),
        ("gradient_clip_val", -1.0, ">= 0, got -1.0"),
        ("ema_decay", 1.0, r"in \[0, 1\), got 1.0"),
        ("ema_decay", -0.1, r"in \[0, 1\), got -0.1"),
        ("ema_start_step", -1, ">= 0, got -1"),
        ("ema_start_step", 20, r"< dpm\.max_steps = 20, .* got 20"),
        ("seed", -1, r"in \[0, 2\*\*32\), got -1"),
        ("seed", 2**32, r"in \[0, 2\*\*32\), got 4294967296"),
        ("num_train_images", 0, ">= 1 or null, got 0"),
        ("subset_seed", -1, ">= 0, got -1"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(train_dpm, name, value, message):
    with pytest.raises(ValueError, match=rf"^dpm\.{name} must be {message}"):
        train_dpm(**{name: value})


def test_settings_that_fit_the_data_pass(train_dpm, digits):
    checked(train_dpm(), {"data": digits}, RUNTIME)
    checked(train_dpm(batch_size=6), {"data": digits}, Runtime(devices=3))


THREE_LEVELS = {
    "block_out_channels": [4, 4, 4],
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": {"in_channels": 3}}, "in_channels of dpm.unet must be 1, .* set data.channels=3"),
        (
            {"unet": {"out_channels": 2}},
            "out_channels of dpm.unet must be 1, got 2; training does not learn a variance",
        ),
        ({"unet": {"sample_size": 16}}, "sample_size of dpm.unet must be 8, .* set data.size=16"),
        ({"unet": {"num_class_embeds": 10}}, "the classes of dpm.unet must be none"),
        ({"unet": {"norm_num_groups": 3}}, "dpm.unet cannot be built: num_channels .4. must be"),
        ({"unet": {"up_block_types": ["UpBlock2D"]}}, "dpm.unet cannot be built: Must provide the"),
        ({"noise_schedule": {"beta_schedule": "linea"}}, "diffusion cannot be built: linea is not"),
        (
            {"noise_schedule": {"prediction_type": "v"}},
            "prediction_type of diffusion does not accept 'v'; .*epsilon, sample, v_prediction",
        ),
        ({"batch_size": 9}, r"dpm.batch_size must be divisible by the number of devices, 2, got 9"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_runs(
    train_dpm, digits, changes, message
):
    with pytest.raises(ValueError, match=f"^{message}"):
        checked(train_dpm(**changes), {"data": digits}, Runtime(devices=2))


@pytest.mark.parametrize(("size", "fits"), [(8, True), (12, True), (10, False), (9, False)])
def test_the_size_must_be_divisible_by_what_the_network_downsamples(train_dpm, digits, size, fits):
    stage = train_dpm(unet={**THREE_LEVELS, "sample_size": size})
    data = Data(**{**vars(digits), "size": size})
    if fits:
        checked(stage, {"data": data}, RUNTIME)
    else:
        rule = f"data.size must be divisible by 4, as 3 levels of the UNet downsample, got {size}"
        with pytest.raises(ValueError, match=rule):
            checked(stage, {"data": data}, RUNTIME)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_network_config_names_arguments_that_exist(file):
    bind_nested("dpm", yaml.safe_load(file.read_text()).get("unet", {}))
