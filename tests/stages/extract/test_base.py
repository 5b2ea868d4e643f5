"""The base of a fine-tuned model as a surrogate, in closed form."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from tests.composing import composed
from tests.models.text.tiny import tiny_stable_diffusion
from tests.models.tiny_pipelines import of_images
from tests.models.tiny_pipelines import unet as tiny_unet
from tests.stages.extract.test_stage import ALPHAS_CUMPROD, run
from torch import nn

from sidepipe.diffusion.noise import image_noise
from sidepipe.engine.plan import plan
from sidepipe.stages.extract.stage import load, load_targets
from sidepipe.stages.generate.refine import FixedPoint

WIDTH = 0.05  # standard deviation of the data
MEAN, BASE_MEAN = 0.1, -0.1
BASE = {"surrogate": "base"}


class Gaussian(nn.Module):
    """The exact eps where every pixel of the data is normal; counts the images it sees."""

    config = {"sample_size": 4, "in_channels": 1}  # noqa: RUF012

    def __init__(self, mean):
        super().__init__()
        self.mean, self.images_seen = mean, 0

    def forward(self, x_t, t):
        self.images_seen += len(x_t)
        ab = ALPHAS_CUMPROD.double()[t].reshape(-1, 1, 1, 1)
        gap = x_t.double() - ab.sqrt() * self.mean
        return SimpleNamespace(sample=((1 - ab).sqrt() * gap / (ab * WIDTH**2 + 1 - ab)).float())


@pytest.fixture
def networks(monkeypatch):
    """The fine-tuned model and its base, by their folders in the artifact of dpm."""
    found = {"model": Gaussian(MEAN), "base": Gaussian(BASE_MEAN)}
    monkeypatch.setattr(
        "sidepipe.stages.generate.stage.load_dpm",
        lambda _, part: {"unet": found[part], "scheduler": DDPMScheduler()},
    )
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 1.0)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    return found


@pytest.fixture
def inputs(tmp_path):
    return {"dpm": tmp_path / "dpm"}


def mean_of(folder):
    return float(load(folder).mean()) / 127.5 - 1


@pytest.mark.parametrize("w", [1.0, 2.0])
def test_samples_are_those_of_the_ratio_of_both_densities(tmp_path, inputs, networks, w):
    # p^(1 + w) / p_base^w of two normal densities of one width is normal around
    # mean + w (mean - mean_base), and so it is at each noise level.
    run(tmp_path / "a", inputs, **BASE, guidance_scale=w)
    assert mean_of(tmp_path / "a") == pytest.approx(MEAN + w * (MEAN - BASE_MEAN), abs=0.01)
    assert load_targets(tmp_path / "a").tolist() == [-1] * 48


def test_scale_0_is_plain_sampling_and_evaluates_no_base(tmp_path, inputs, networks):
    summary = run(tmp_path / "a", inputs, **BASE, guidance_scale=0.0)
    run(tmp_path / "none", inputs, surrogate="none")
    np.testing.assert_array_equal(load(tmp_path / "a"), load(tmp_path / "none"))
    assert networks["base"].images_seen == 0
    assert summary["network_evaluations"] == 48 * 20


@pytest.mark.parametrize(
    ("changes", "own", "of_base"),
    [
        ({}, 20, 20),
        ({"guidance_scale": 3.0, "t_min": 500}, 20, 10),
        ({"refine": FixedPoint(t=60, steps=5)}, 25, 20),
    ],
)
def test_each_guided_step_costs_two_evaluations(tmp_path, inputs, networks, changes, own, of_base):
    summary = run(tmp_path / "a", inputs, **BASE, num_images=23, **changes)
    assert summary["unet_forwards"] == networks["model"].images_seen == 23 * own
    assert summary["surrogate_gradients"] == networks["base"].images_seen == 23 * of_base
    assert summary["network_evaluations"] == 23 * (own + of_base)


def test_finished_images_are_refined_by_the_fine_tuned_model(tmp_path, inputs, networks):
    run(tmp_path / "a", inputs, **BASE, guidance_scale=2.0)
    refined = {"refine": FixedPoint(t=300, steps=40)}
    run(tmp_path / "refined", inputs, **BASE, guidance_scale=2.0, **refined)
    assert mean_of(tmp_path / "a") > MEAN + 0.3
    assert mean_of(tmp_path / "refined") == pytest.approx(MEAN, abs=0.01)


def test_samples_equal_a_loop_over_diffusers_scheduler(tmp_path):
    schedule = DDIMScheduler(num_train_timesteps=50, clip_sample=False)
    own, base = tiny_unet(), tiny_unet()
    with torch.no_grad():
        for p in base.parameters():
            p.mul_(0.9)
    for unet, name in ((own, "model"), (base, "base")):
        DDPMPipeline(unet, schedule).save_pretrained(tmp_path / "dpm" / name)
    settings = {"num_inference_steps": 10, "num_images": 5, "shard_size": 5, "guidance_scale": 1.5}
    summary = run(tmp_path / "a", {"dpm": tmp_path / "dpm"}, **BASE, **settings)
    assert summary["gradient_cost"] == 1.0  # by operations of both networks
    x = image_noise(0, "extract", range(5), (1, 8, 8), torch.device("cpu"))()
    schedule.set_timesteps(10)
    with torch.no_grad():
        for t in schedule.timesteps:
            eps, eps_base = own(x, t).sample, base(x, t).sample
            x = schedule.step(eps + 1.5 * (eps - eps_base), t, x).prev_sample
    expected = ((x.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(load(tmp_path / "a") - expected).max() <= 1
    plain = {**settings, "guidance_scale": 0.0}
    run(tmp_path / "plain", {"dpm": tmp_path / "dpm"}, **BASE, **plain)
    assert np.abs(load(tmp_path / "plain") - expected).max() > 20


def test_the_base_of_stable_diffusion_has_the_empty_prompt(tmp_path):
    for part in ("model", "base"):
        tiny_stable_diffusion(tmp_path / "dpm" / part)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    inputs = {"dpm": tmp_path / "dpm"}
    settings = {"num_images": 4, "num_inference_steps": 4, "shard_size": 4}
    run(tmp_path / "a", inputs, **BASE, **settings)
    run(tmp_path / "none", inputs, surrogate="none", **settings)
    # The same model without a prompt is no contrast, and with a prompt it is: as guidance 1 + w.
    np.testing.assert_array_equal(load(tmp_path / "a"), load(tmp_path / "none"))
    prompted = {**settings, "prompts": str(tmp_path / "prompts.txt")}
    summary = run(tmp_path / "prompted", inputs, **BASE, **prompted, guidance_scale=2.0)
    run(tmp_path / "cfg", inputs, surrogate="none", **prompted, condition_guidance_scale=3.0)
    one, two = (load(tmp_path / name).astype(int) for name in ("prompted", "cfg"))
    assert np.abs(one - two).max() <= 1
    assert summary["network_evaluations"] == 2 * 4 * 4


def test_it_is_refused_where_no_base_is_known():
    row = ("attacks=single", "extract.surrogate=base")
    with pytest.raises(ValueError, match=r"must be another one for a model whose base is not kn"):
        plan(composed("experiment=smoke", *row))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_schedule": [[0, 1]]}, r"guidance_schedule must be 'constant' where"),
        ({"max_guidance_norm": 0.5}, r"max_guidance_norm must be None where .* is 'base'"),
        ({"targets": "weighted"}, r"targets must be 'uniform' where .* there are no labels to aim"),
        ({"rounds": 2}, r"extract.rounds must be 1 for a trained base"),
    ],
)
def test_settings_of_labels_and_gradients_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a", {}, **BASE, **changes)


def test_a_class_conditional_model_is_compared_with_its_base_for_each_class(tmp_path):
    for part in ("model", "base"):
        of_images(tmp_path / "dpm" / part, num_class_embeds=3)
    settings = {"num_images": 6, "num_inference_steps": 4, "shard_size": 6}
    run(tmp_path / "a", {"dpm": tmp_path / "dpm"}, **BASE, **settings)
    run(tmp_path / "none", {"dpm": tmp_path / "dpm"}, surrogate="none", **settings)
    # A model that is its own base is no contrast.
    np.testing.assert_array_equal(load(tmp_path / "a"), load(tmp_path / "none"))
    assert np.load(tmp_path / "a" / "classes.npy").tolist() == [0, 1, 2, 0, 1, 2]
