"""The adapted model as a surrogate: exact, so that what its samples must be is known."""

import json

import numpy as np
import pytest
import torch
from tests.models.text.tiny import tiny_stable_diffusion
from tests.stages.extract.test_stage import (
    ALPHAS_CUMPROD,
    IMAGES,
    LABELS,
    RUNTIME,
    clusters,
    extract,
    inputs,
    key_settings,
    log_joint,
    nearest,
    run,
    unet,
)
from tests.stages.lora.test_stage import lora

from sidepipe.base.images import to_model
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.schedule import for_each
from sidepipe.engine.shards import write_shard
from sidepipe.engine.stage import Job
from sidepipe.stages.extract.stage import load, load_targets

__all__ = ["inputs", "unet"]  # fixtures


class ExactLabeled(Denoiser):
    """eps when the data are the images of a label alone; counts the images it sees."""

    def __init__(self):
        super().__init__(torch.nn.Identity(), ALPHAS_CUMPROD, "epsilon", (1, 4, 4))
        self.images_seen = 0

    def eps_fn(self, y):
        others = torch.from_numpy(LABELS)[None] != y[:, None]

        def eps_fn(x_t, t):
            self.images_seen += len(x_t)
            t = for_each(t, x_t)
            alpha_bar = ALPHAS_CUMPROD.double()[t][:, None]
            weights = log_joint(x_t, t).masked_fill(others, -torch.inf).softmax(1)
            mean = weights @ to_model(IMAGES).double().flatten(1)
            eps = (x_t.double().flatten(1) - alpha_bar.sqrt() * mean) / (1 - alpha_bar).sqrt()
            return eps.reshape(x_t.shape).float()

        return eps_fn


@pytest.fixture
def adapted(inputs, monkeypatch):
    """The lora stage's artifact: exact; it has cost 4,200 evaluations."""
    denoiser, folder = ExactLabeled(), inputs["dpm"].parent / "lora"
    folder.mkdir()
    (folder / "adapter.json").write_text(json.dumps({"training_evaluations": 4200}))
    inputs["lora"] = folder
    monkeypatch.setattr("sidepipe.stages.attack.strategies.load_lora", lambda *_: denoiser)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 1.25)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    return denoiser


def test_by_the_label_alone_every_image_is_of_its_label(tmp_path, inputs, unet, adapted):
    run(tmp_path / "lora", inputs, surrogate="lora")
    targets = load_targets(tmp_path / "lora")
    index, difference = nearest(load(tmp_path / "lora"))
    assert difference.max() <= 1
    np.testing.assert_array_equal(LABELS[index], targets)
    assert set(index) == {0, 1, 2, 3, 4, 5}


def test_at_scale_1_it_is_the_posterior_s_guidance_at_scale_1(tmp_path, inputs, unet, adapted):
    # eps of a label is eps - sqrt(1 - ab_t) grad log p(label | x_t), where both are exact.
    inputs["generate"].joinpath("shards", "000000.npy").unlink()
    write_shard(inputs["generate"], 0, IMAGES)
    np.save(inputs["label"] / "labels.npy", LABELS)
    for surrogate in ("lora", "posterior"):
        settings = {"surrogate": surrogate, "guidance_scale": 0.6, "t_min": 300}
        run(tmp_path / surrogate, inputs, **settings)
    one, two = (load(tmp_path / name).astype(int) for name in ("lora", "posterior"))
    assert np.abs(one - two).max() <= 1


def test_scale_0_is_plain_sampling(tmp_path, inputs, unet, adapted):
    summary = run(tmp_path / "lora", inputs, surrogate="lora", guidance_scale=0.0)
    run(tmp_path / "none", inputs, surrogate="none")
    np.testing.assert_array_equal(load(tmp_path / "lora"), load(tmp_path / "none"))
    assert adapted.images_seen == 0
    assert summary["network_evaluations"] == 48 * 20


@pytest.mark.parametrize(
    ("changes", "base", "labeled"),
    [
        ({}, 0, 20),
        ({"guidance_scale": 2.0}, 20, 20),
        ({"t_min": 500}, 10, 10),
        ({"t_min": 500, "guidance_scale": 0.5}, 20, 10),
    ],
)
def test_the_cost_is_what_was_evaluated_and_what_training_took(
    tmp_path, inputs, unet, adapted, changes, base, labeled
):
    summary = run(tmp_path / "lora", inputs, surrogate="lora", num_images=23, **changes)
    assert summary["unet_forwards"] == unet.images_seen == 23 * base
    assert summary["surrogate_gradients"] == adapted.images_seen == 23 * labeled
    assert summary["network_evaluations"] == round(23 * (base + 1.25 * labeled))
    assert summary["training_evaluations"] == 4200


def test_it_reads_what_it_was_made_from():
    assert extract(surrogate="lora").inputs() == ("dpm", "generate", "label", "lora")
    assert key_settings(surrogate="lora")["surrogate"] == {"name": "lora"}
    assert key_settings(surrogate="lora", t_min=3) != key_settings(surrogate="lora")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_schedule": "classifier_quality"}, r"guidance_schedule must be 'constant' wh"),
        ({"max_guidance_norm": 0.5}, r"max_guidance_norm must be None where .* got 0.5; there is"),
        ({"rounds": 2}, r"extract.rounds must be 1 for a trained lora, got 2"),
        ({"prompts": "train"}, r"extract.prompts must be null, got 'train'; a surrogate repl"),
    ],
)
def test_what_an_adapted_model_cannot_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        extract(surrogate="lora", **changes)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_stable_diffusion_is_adapted_and_sampled_by_label(tmp_path, stable, precision, scale):
    settings = {"surrogate": "lora", "num_images": 12, "num_inference_steps": 4, "shard_size": 5}
    settings |= {"precision": precision, "guidance_scale": scale}
    summary = run(tmp_path / "lora", stable, **settings)
    assert load(tmp_path / "lora").shape == (12, 8, 8, 3)
    assert summary["unet_forwards"] == (0 if scale == 1 else 12 * 4)
    assert summary["surrogate_gradients"] == 12 * 4
    assert summary["training_evaluations"] == 3 * 4 * 8
    run(tmp_path / "none", stable, **{**settings, "surrogate": "none"})
    assert not np.array_equal(load(tmp_path / "lora"), load(tmp_path / "none"))


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    """A tiny Stable Diffusion and what was learned of labeled images of it."""
    folder = tmp_path_factory.mktemp("stable")
    tiny_stable_diffusion(folder / "dpm" / "model")
    rng = np.random.default_rng(0)
    write_shard(folder / "generate", 0, rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8))
    for name in ("label", "lora"):
        (folder / name).mkdir()
    np.save(folder / "label" / "labels.npy", np.arange(40) % 3)
    clusters(folder / "label", [0.9, 0.8, 0.7])
    found = {name: folder / name for name in ("dpm", "generate", "label", "lora")}
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    settings = {"max_steps": 4, "batch_size": 8, "validate_every_steps": 4}
    lora(target_modules=attention, **settings).run(Job(folder / "lora", found, RUNTIME))
    return found


def test_latents_of_labeled_images_make_a_posterior_too(tmp_path, stable):
    settings = {"num_images": 6, "num_inference_steps": 4, "shard_size": 5, "guidance_scale": 2.0}
    summary = run(tmp_path / "posterior", stable, **settings)
    assert load(tmp_path / "posterior").shape == (6, 8, 8, 3)
    assert summary["surrogate_gradients"] == 6 * 4
    run(tmp_path / "none", stable, **{**settings, "surrogate": "none"})
    assert not np.array_equal(load(tmp_path / "posterior"), load(tmp_path / "none"))
