import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LCMScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from safetensors.torch import save_file
from tests.composing import composed
from tests.tiny import RUNTIME, UNET, checked

from sidepipe.base.settings import build
from sidepipe.engine import pipeline
from sidepipe.engine.plan import plan
from sidepipe.engine.stage import Job
from sidepipe.stages.data.stage import Data
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.stage import DPM, load, load_subset
from sidepipe.stages.generate.stage import Generate, load_denoiser
from sidepipe.stages.generate.stage import load as load_images

STEPS, V = {"num_train_timesteps": 50}, {"prediction_type": "v_prediction"}


def network(**changes) -> UNet2DModel:
    torch.manual_seed(0)
    return build({**UNET, **changes})


def saved(folder, unet=None, scheduler=None, kind=DDPMPipeline, **options) -> Path:
    """A checkpoint as somebody else would have saved it."""
    pipeline = kind(unet or network(), scheduler or DDPMScheduler(**STEPS))
    pipeline.save_pretrained(folder, **options)
    return folder


def pretrained(path, **changes) -> PretrainedDPM:
    settings = {"path": str(path), "revision": None, "variant": None, "num_train_images": 30}
    settings |= {"train_partitions": None, "subset_seed": 0, **changes}
    return PretrainedDPM(**settings)


def checked_and_run(path, folder, data, digits, **changes) -> dict:
    stage = pretrained(path, **changes)
    checked(stage, {"data": digits}, RUNTIME)
    folder.mkdir()
    return stage.run(Job(folder, {"data": data}, RUNTIME))


def assert_same_weights(one, two):
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, value in one.state_dict().items():
        assert value.equal(two.state_dict()[name])


NOTHING = Data(
    source={"_target_": "sidepipe.stages.data.sources.Nothing"},
    size=8,
    channels=1,
    center_crop=None,
    on_bad_file="error",
)

# what is taken


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        (DDPMScheduler(**STEPS, beta_schedule="squaredcos_cap_v2", **V), DDPMPipeline),
        (DDIMScheduler(**STEPS, beta_start=0.001, **V), DDPMPipeline),
        (DDIMScheduler(**STEPS, rescale_betas_zero_snr=True, **V), DDIMPipeline),
        (DDIMScheduler(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3), DDIMPipeline),
        (PNDMScheduler(**STEPS), DDPMPipeline),
    ],
    ids=["DDPM", "DDIM", "DDIM of zero SNR", "trained betas", "PNDM"],
)
def test_a_checkpoint_keeps_its_weights_its_schedule_and_its_target(
    tmp_path, data, digits, scheduler, kind
):
    checkpoint = saved(tmp_path / "theirs", scheduler=scheduler, kind=kind)
    summary = checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    unet, schedule = load(tmp_path / "ours").values()
    assert_same_weights(unet, network())
    assert isinstance(schedule, DDPMScheduler)
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod)
    assert schedule.config["prediction_type"] == scheduler.config["prediction_type"]
    assert summary["num_parameters"] == sum(p.numel() for p in unet.parameters())
    train, heldout = load_subset(tmp_path / "ours")
    assert (len(train), len(heldout)) == (30, 1767)
    assert (summary["num_train_images"], summary["num_heldout_images"]) == (30, 1767)


def test_weights_in_pytorchs_own_format_are_taken(tmp_path, data, digits):
    checkpoint = saved(tmp_path / "theirs", safe_serialization=False)
    assert [p.name for p in checkpoint.glob("unet/*model*")] == ["diffusion_pytorch_model.bin"]
    checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    assert_same_weights(load(tmp_path / "ours")["unet"], network())
    assert list((tmp_path / "ours").rglob("*.safetensors"))


def test_a_checkpoint_with_its_files_at_the_root_is_taken(tmp_path, data, digits):
    """As google/ddpm-cifar10-32 and others of its time are."""
    checkpoint = saved(tmp_path / "theirs")
    for part in ("unet", "scheduler"):
        for path in (checkpoint / part).iterdir():
            path.rename(checkpoint / path.name)
        (checkpoint / part).rmdir()
    checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    assert_same_weights(load(tmp_path / "ours")["unet"], network())


def test_a_hub_id_is_fetched_when_the_stage_runs_and_checked_then(
    tmp_path, data, digits, monkeypatch
):
    fetched = []

    def download(path, revision):
        fetched.append((path, revision))
        return str(tmp_path / "cache")

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    saved(tmp_path / "cache")
    stage = pretrained("somebody/digits", revision="v1")
    checked(stage, {"data": digits}, RUNTIME)
    assert not fetched
    summary = stage.run(Job(tmp_path, {"data": data}, RUNTIME))
    assert fetched == [("somebody/digits", "v1")]
    assert_same_weights(load(tmp_path)["unet"], network())
    assert stage.source_changed(summary, RUNTIME) is None
    saved(tmp_path / "cache", network(sample_size=16))
    with pytest.raises(ValueError, match=r"sample_size of .* must be 8, as the data are, got 16"):
        stage.run(Job(tmp_path, {"data": data}, RUNTIME))


def test_a_checkpoint_that_was_replaced_is_noticed_and_an_absent_one_is_not_missed(
    tmp_path, data, digits
):
    checkpoint = saved(tmp_path / "theirs")
    summary = checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    stage = pretrained(checkpoint)
    (checkpoint / "README.md").write_text("not a part of the model")
    assert json.loads(json.dumps(summary)) == summary
    assert stage.source_changed(summary, RUNTIME) is None
    saved(checkpoint, network(norm_eps=1e-4))
    message = stage.source_changed(summary, RUNTIME)
    assert message is not None
    assert "theirs changed since this artifact was made" in message
    shutil.rmtree(checkpoint)
    assert stage.source_changed(summary, RUNTIME) is None


def test_a_model_of_classes_gives_each_image_the_next_class(tmp_path, data, digits):
    """For samples, with a class for each image in the artifact; not for a surrogate or an audit."""
    checkpoint = saved(tmp_path / "theirs", network(num_class_embeds=4))
    checked_and_run(checkpoint, tmp_path / "ours", data, digits)
    dpm, inputs = pretrained(checkpoint), {"dpm": tmp_path / "ours"}
    assert dpm.num_classes() == 4
    for name, classes, expected in (
        ("every", None, [0, 1, 2, 3, 0, 1, 2, 3]),
        ("two", [3, 1], [3, 1] * 4),
    ):
        stage = generate(classes=classes)
        stage.check_parts({"dpm": dpm}, RUNTIME)
        (tmp_path / name).mkdir()
        stage.run(Job(tmp_path / name, inputs, RUNTIME))
        assert np.load(tmp_path / name / "classes.npy").tolist() == expected
    every, two = load_images(tmp_path / "every"), load_images(tmp_path / "two")
    same = [np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(every, two, strict=True)]
    assert same == [False, True, False, False, False, True, False, False]
    with pytest.raises(ValueError, match=r"dpm must be a model without classes, .* '4 classes'"):
        load_denoiser(tmp_path / "ours", "32-true")


@pytest.mark.parametrize(
    ("num_classes", "classes", "message"),
    [
        (4, [4], r"^generate.classes must be null or numbers in \[0, 4\), got \[4\]"),
        (4, [], r"^generate.classes must be null or numbers in \[0, 4\), got \[\]"),
        (None, [0], r"^generate.classes must be null, as the model has no classes, got \[0\]"),
    ],
)
def test_classes_that_the_model_does_not_have_are_refused(tmp_path, num_classes, classes, message):
    dpm = pretrained(saved(tmp_path, network(num_class_embeds=num_classes)))
    with pytest.raises(ValueError, match=message):
        generate(classes=classes).check_parts({"dpm": dpm}, RUNTIME)


def generate(**changes) -> Generate:
    settings = {"num_images": 8, "sampler": "ddim", "num_inference_steps": 3, "eta": 0.0}
    settings |= {"timestep_spacing": None}
    settings |= {"prompts": None}
    settings |= {
        "condition_guidance_scale": 1.0,
        "precision": "32-true",
        "shard_size": 5,
        "seed": 0,
    }
    return Generate(**{**settings, **changes})


def test_an_adapter_is_fused_and_noticed_when_it_changes(tmp_path, data, digits):
    checkpoint = saved(tmp_path / "theirs")
    path = checkpoint / "pytorch_lora_weights.safetensors"
    up, down = torch.randn(4, 2), torch.randn(2, 9)
    save_file({"unet.conv_in.lora_B.weight": up, "unet.conv_in.lora_A.weight": down}, path)
    refused(checkpoint, digits, match=r"dpm.adapter must be set where .*; dpm.adapter=.*none")
    folder = tmp_path / "ours"
    folder.mkdir()
    stage = pretrained(checkpoint, adapter=str(path))
    checked(stage, {"data": digits}, RUNTIME)
    summary = stage.run(Job(folder, {"data": data}, RUNTIME))
    added = load(folder)["unet"].conv_in.weight - network().conv_in.weight
    torch.testing.assert_close(added, (up @ down).reshape(4, 1, 3, 3))
    assert stage.source_changed(summary, RUNTIME) is None
    save_file({"unet.conv_in.lora_B.weight": up, "unet.conv_in.lora_A.weight": 2 * down}, path)
    assert "changed since" in stage.source_changed(summary, RUNTIME)
    checked_and_run(checkpoint, tmp_path / "base", data, digits, adapter="none")
    assert_same_weights(load(tmp_path / "base")["unet"], network())


# what is refused, before anything runs


def refused(path, digits, error=ValueError, match=""):
    with pytest.raises(error, match=match):
        checked(pretrained(path), {"data": digits}, RUNTIME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"in_channels": 3},
            "in_channels of .*/config.json must be 1, .*3; set data.channels=3",
        ),
        ({"out_channels": 3}, "out_channels of .* must be 1, as the data are, or 2 with a predic"),
        (
            {"sample_size": 16},
            "sample_size of .*/config.json must be 8, .*16; set data.size=16",
        ),
        ({"class_embed_type": "timestep"}, "class_embed_type of .*/config.json must be null"),
    ],
)
def test_a_network_of_other_images_or_of_classes_is_refused(tmp_path, digits, changes, message):
    refused(saved(tmp_path / "theirs", network(**changes)), digits, match=f"^{message}")


def test_channels_and_size_are_compared_with_the_data(tmp_path, digits):
    checkpoint = saved(tmp_path, network(sample_size=16, in_channels=3, out_channels=3))
    data = Data(**{**vars(digits), "size": 16, "channels": 3})
    checked(pretrained(checkpoint), {"data": data}, RUNTIME)


@pytest.mark.parametrize(
    "scheduler",
    [
        CMStochasticIterativeScheduler(),
        LCMScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_model_without_discrete_betas_is_refused(tmp_path, digits, scheduler):
    checkpoint = saved(tmp_path, scheduler=scheduler)
    name = type(scheduler).__name__
    refused(checkpoint, digits, match=rf"^the scheduler of .* must be one with betas .* '{name}'")


def test_a_conditional_network_is_refused(tmp_path, digits):
    checkpoint = saved(tmp_path)
    path = checkpoint / "unet/config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "_class_name": "UNet2DConditionModel"})
    )
    refused(checkpoint, digits, match="must be an unconditional UNet2DModel, got 'UNet2DCondition")


@pytest.mark.parametrize("path", ["./theirs", "/nowhere/theirs", "~/theirs", "a/b/theirs"])
def test_a_missing_folder_is_refused(digits, path):
    message = f"^dpm.path names {path}, which is not a folder; remedy: name a folder that save_pre"
    refused(path, digits, FileNotFoundError, message)


@pytest.mark.parametrize(
    "missing", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
)
def test_a_folder_that_is_no_checkpoint_is_refused_with_what_it_lacks(tmp_path, digits, missing):
    checkpoint = saved(tmp_path)
    (checkpoint / missing).unlink()
    message = f"save_pretrained of a diffusers pipeline, but there is no .*{missing}$"
    refused(checkpoint, digits, FileNotFoundError, message)


def test_a_subset_out_of_range_is_refused_by_name():
    with pytest.raises(ValueError, match=r"dpm\.num_train_images must be >= 1 or null, got 0"):
        pretrained("theirs", num_train_images=0)


def test_a_checkpoint_is_taken_without_any_images(tmp_path):
    stage = pretrained(saved(tmp_path / "theirs"), num_train_images=None)
    checked(stage, {"data": NOTHING}, RUNTIME)
    for name in ("data", "ours"):
        (tmp_path / name).mkdir()
    NOTHING.run(Job(tmp_path / "data", {}, RUNTIME))
    summary = stage.run(Job(tmp_path / "ours", {"data": tmp_path / "data"}, RUNTIME))
    assert (summary["num_train_images"], summary["num_heldout_images"]) == (0, 0)
    assert [len(rows) for rows in load_subset(tmp_path / "ours")] == [0, 0]
    assert_same_weights(network(), load(tmp_path / "ours")["unet"])


def test_without_images_there_is_no_subset_to_choose_and_nothing_to_train_on(tmp_path, train_dpm):
    with pytest.raises(ValueError, match=r"dpm.num_train_images must be null, got 30; there"):
        checked(pretrained(saved(tmp_path / "theirs")), {"data": NOTHING}, RUNTIME)
    with pytest.raises(ValueError, match=r"data must be images to train on, .* dpm=pretrained"):
        checked(train_dpm(), {"data": NOTHING}, RUNTIME)


@pytest.fixture
def partitioned(tmp_path):
    """Data of 100 training images, 100 of validation and 60 to test with."""
    folder = tmp_path / "partitioned"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (260, 8, 8, 1))
    np.save(folder / "images.npy", images.astype(np.uint8))
    rows = [f"{i},{i},{name}," for i, name in enumerate(["train"] * 100 + ["val"] * 100)]
    rows += [f"{i},{i},test," for i in range(200, 260)]
    (folder / "ids.csv").write_text("\n".join(["index,id,partition,identity", *rows, ""]))
    return folder


@pytest.mark.parametrize("num_train_images", [None, 50])
def test_partitions_that_a_checkpoint_was_trained_on_are_never_guessed(
    tmp_path, partitioned, num_train_images
):
    path, out = saved(tmp_path / "checkpoint"), tmp_path / "out"
    out.mkdir()
    stage = pretrained(path, num_train_images=num_train_images)
    message = (
        r"dpm.train_partitions must name .* of train \(100\), val \(100\), test \(60\), got null"
    )
    with pytest.raises(ValueError, match=message):
        stage.check_data(partitioned, {}, RUNTIME)
    stage = pretrained(path, num_train_images=None, train_partitions=["train"])
    stage.run(Job(out, {"data": partitioned}, RUNTIME))
    train, unseen = load_subset(out)
    assert sorted(train) == list(range(100))
    assert sorted(unseen) == list(range(100, 260))


def test_a_pool_of_several_partitions_is_said_where_a_model_is_trained(partitioned, caplog):
    every = DPM(num_train_images=50, train_partitions=None, subset_seed=0)
    every.check_data(partitioned, {}, RUNTIME)
    assert (
        "drawn from every partition, train (100), val (100), test (60): 'dpm.train_" in caplog.text
    )
    caplog.clear()
    one = DPM(num_train_images=50, train_partitions=["val"], subset_seed=0)
    one.check_data(partitioned, {}, RUNTIME)
    assert not caplog.text


# in a plan


def test_a_checkpoint_alone_needs_no_held_out_images_and_evaluate_does(tmp_path, caplog):
    path, lack = saved(tmp_path / "theirs"), "evaluate needs held-out images"
    command = ["dpm=pretrained", f"dpm.path={path}", f"runtime.outputs={tmp_path / 'outputs'}"]
    with pytest.raises(ValueError, match=lack):
        plan(composed(*command))
    assert not caplog.text
    the_plan = plan(composed(*command, "stage=dpm"))
    assert lack in caplog.text
    caplog.clear()
    (node,) = pipeline.run(the_plan, "dpm")
    assert lack in caplog.text
    assert_same_weights(load(node.folder(the_plan.runtime))["unet"], network())


@pytest.mark.parametrize("option", ["pretrained", "stable_diffusion"])
def test_a_model_that_is_not_supported_is_refused_with_the_plan_and_first(tmp_path, option):
    index = {"_class_name": "KandinskyPipeline", "unet": ["diffusers", "UNet"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for stage in ("status", "all", "dpm"):
        with pytest.raises(ValueError, match="got 'KandinskyPipeline"):
            plan(composed(f"dpm={option}", f"dpm.path={tmp_path}", f"stage={stage}"))


def test_an_adapter_in_the_folder_is_refused_with_the_plan(tmp_path):
    path = saved(tmp_path / "theirs")
    (path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"dpm\.adapter must be set where"):
        plan(composed("dpm=pretrained", f"dpm.path={path}", "stage=status"))
