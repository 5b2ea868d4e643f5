"""Models of classes with a null class: sampled by class, without one, and with guidance."""

import numpy as np
import pytest
import torch
from tests.composing import composed
from tests.models.tiny_pipelines import dit, of_images, unet
from tests.stages.dpm.conftest import data
from tests.stages.dpm.test_pretrained import pretrained
from tests.stages.extract.test_stage import clusters, run
from tests.tiny import DIGITS, RUNTIME, checked

from sidepipe.engine.plan import plan
from sidepipe.engine.shards import load_shards, write_shard
from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.stage import load_null_class, write_classes
from sidepipe.stages.generate.stage import load_denoiser

__all__ = ["data"]  # a fixture

NULL = 3  # of four rows
PLAIN = {"surrogate": "none", "num_images": 6, "num_inference_steps": 4, "shard_size": 6}


@pytest.fixture
def inputs(tmp_path):
    """The artifact of a model of three classes and a null class."""
    of_images(tmp_path / "dpm" / "model", num_class_embeds=4)
    write_classes(tmp_path / "dpm", NULL)
    return {"dpm": tmp_path / "dpm"}


def eps_of(inputs, y, **settings):
    denoiser = load_denoiser(inputs["dpm"], "32-true", **settings)
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return denoiser.eps_fn(torch.tensor(y))(x_t, 20), denoiser


def test_guidance_is_the_null_class_plus_s_times_the_difference(inputs):
    network = unet(num_class_embeds=4).eval()
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        of = [network(x_t, 20, class_labels=torch.full((2,), y)).sample for y in range(4)]
    for scale, evaluations in ((0.0, 1), (1.0, 1), (2.5, 2)):
        found, denoiser = eps_of(inputs, [1, 1], condition_guidance_scale=scale, by_class=True)
        torch.testing.assert_close(found, of[NULL] + scale * (of[1] - of[NULL]))
        assert denoiser.evaluations == evaluations
    assert (of[1] - of[NULL]).abs().max() > 1e-3
    without, denoiser = eps_of(inputs, [1, 2])
    torch.testing.assert_close(without, of[NULL])
    assert denoiser.classes == [0, 1, 2]


def test_images_get_the_classes_but_the_null_class_and_guidance_costs_two(tmp_path, inputs):
    summary = run(tmp_path / "a", inputs, **PLAIN, condition_guidance_scale=2.0)
    assert np.load(tmp_path / "a" / "classes.npy").tolist() == [0, 1, 2, 0, 1, 2]
    assert summary["unet_forwards"] == summary["network_evaluations"] == 6 * 4 * 2
    other = run(tmp_path / "b", inputs, **PLAIN, condition_guidance_scale=0.0)
    assert other["network_evaluations"] == 6 * 4
    assert not np.array_equal(load_shards(tmp_path / "a"), load_shards(tmp_path / "b"))


def test_a_surrogate_guides_a_model_of_the_null_class(tmp_path, inputs):

    for name in ("generate", "label"):
        (tmp_path / name).mkdir()
        inputs[name] = tmp_path / name
    rng = np.random.default_rng(0)
    write_shard(inputs["generate"], 0, rng.integers(0, 256, (12, 8, 8, 1)).astype(np.uint8))
    np.save(inputs["label"] / "labels.npy", np.arange(12) % 3)
    clusters(inputs["label"], [0.9, 0.8, 0.7])
    settings = {**PLAIN, "surrogate": "posterior"}
    run(tmp_path / "scale_0", inputs, **settings, guidance_scale=0.0)
    run(tmp_path / "null", inputs, **PLAIN, condition_guidance_scale=0.0)
    np.testing.assert_array_equal(*(load_shards(tmp_path / n) for n in ("scale_0", "null")))
    run(tmp_path / "guided", inputs, **settings)
    assert not np.array_equal(*(load_shards(tmp_path / n) for n in ("scale_0", "guided")))
    assert not (tmp_path / "guided" / "classes.npy").exists()


def test_the_null_class_of_a_checkpoint_is_kept_in_the_artifact(tmp_path, data):
    path = of_images(tmp_path / "own", num_class_embeds=4)
    stage = pretrained(path, null_class=NULL)
    checked(stage, {"data": DIGITS}, RUNTIME)
    assert stage.has_null_class()
    (tmp_path / "dpm").mkdir()
    stage.run(Job(tmp_path / "dpm", {"data": data}, RUNTIME))
    assert load_null_class(tmp_path / "dpm") == NULL
    assert pretrained(dit(tmp_path / "dit")).has_null_class()
    assert not pretrained(path).has_null_class()


@pytest.mark.parametrize(
    ("changes", "null_class", "message"),
    [
        ({"num_class_embeds": 4}, 4, r"dpm.null_class must be null or a class in \[0, 4\), got 4"),
        ({}, 0, r"dpm.null_class must be null, got 0; a DiT has its own null class"),
    ],
)
def test_a_null_class_that_is_no_class_is_refused(tmp_path, changes, null_class, message):
    stage = pretrained(of_images(tmp_path, **changes), null_class=null_class)
    with pytest.raises(ValueError, match=message):
        checked(stage, {"data": DIGITS}, RUNTIME)


ALONE = ["attacks=single", "dpm=pretrained", "dpm.num_train_images=9"]


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ({"num_class_embeds": 4}, [], r"1 for a model without a null class, got 2.0; set dpm.null"),
        ({}, [], r"condition_guidance_scale must be 1 for a model without prompts and classes"),
    ],
)
def test_guidance_without_a_null_class_is_refused(tmp_path, kind, overrides, message):
    path = of_images(tmp_path, **kind)
    scale = ["extract.surrogate=none", "extract.condition_guidance_scale=2.0"]
    nodes = plan(composed(*ALONE, f"dpm.path={path}", *scale)).nodes.values()
    [node] = [node for node in nodes if node.stage.name == "extract"]
    with pytest.raises(ValueError, match=message):
        node.stage.check_parts(node.stages_read(), RUNTIME)


def test_with_a_null_class_surrogates_and_the_audit_are_taken_but_lora(tmp_path):
    path = of_images(tmp_path, num_class_embeds=4)
    found = [*ALONE, f"dpm.path={path}", "dpm.null_class=3", "audit=returns"]
    nodes = plan(composed(*found)).nodes.values()
    [node] = [node for node in nodes if node.stage.name == "extract"]
    node.stage.check_parts(node.stages_read(), RUNTIME)
    nodes = plan(composed(*found, "extract.surrogate=lora")).nodes.values()
    [node] = [node for node in nodes if node.stage.name == "extract"]
    with pytest.raises(
        ValueError, match=r"surrogate must be none for a model of 4 classes, got 'l"
    ):
        node.stage.check_parts(node.stages_read(), RUNTIME)


@pytest.mark.parametrize(("classes", "fits"), [("[0,3]", True), ("[0,9]", False), ("[]", False)])
def test_classes_that_the_model_does_not_have_are_refused_with_the_plan(tmp_path, classes, fits):
    path = of_images(tmp_path, num_class_embeds=4)
    command = [*ALONE, f"dpm.path={path}", "extract.surrogate=none", f"extract.classes={classes}"]
    if fits:
        assert plan(composed(*command)).nodes
        return
    with pytest.raises(ValueError, match=r"extract.classes must be null or numbers in \[0, 4\)"):
        plan(composed(*command))
