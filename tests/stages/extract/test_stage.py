import csv
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file
from tests.tiny import checked
from torch import nn

from sidepipe.base.files import write_json
from sidepipe.base.images import to_model, to_uint8
from sidepipe.base.settings import check_field_types
from sidepipe.diffusion.guidance import Posterior
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import clip_x_0, for_each
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.shards import load_shards, write_shard
from sidepipe.engine.stage import Job, NoMaterial, Runtime
from sidepipe.stages.attack.attack import GUIDANCE, load_gradient_seconds
from sidepipe.stages.classifier.resnet import TimeResNet
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.stages.extract.stage import Extract, load, load_cohesion, load_targets
from sidepipe.stages.label.stage import Label, load_stage
from sidepipe.stages.label.stage import load as load_labels
from sidepipe.stages.label.stage import load_cohesion as load_label_cohesion

RUNTIME = Runtime(accelerator="cpu", sampling_batch_size=7)
ALPHAS_CUMPROD = DDPMScheduler().alphas_cumprod
TIMESTEPS = list(range(950, -1, -50))
# Six images far apart, of three labels: all that the model has learned, and all that it generates.
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
LABELS = np.array([0, 0, 0, 1, 1, 2])


THROUGH = {"name": "classifier", "guide_through": "pred_x_0"}
CUT = {"name": "posterior", "neighbors": 5}


def near_duplicates(threshold):
    features = {"_target_": "sidepipe.features.encoders.PixelsL2"}
    return {"features": features, "threshold": threshold}


def extract(**changes) -> Extract:
    """The stage as a config builds it; settings of guidance may stand among the others."""
    settings = {
        "surrogate": "posterior",
        "guidance": {},
        "tuned": False,
        "rounds": 1,
        "stop_rounds": True,
        "near_duplicates": near_duplicates(0.05),
        "num_images": 48,
        "num_inference_steps": len(TIMESTEPS),
        "eta": 0.0,
        "sampler": "ddim",
        "timestep_spacing": "leading",
        "precision": "32-true",
        "prompts": None,
        "condition_guidance_scale": 1.0,
        "shard_size": 20,
        "seed": 0,
    }
    own = {name: value for name, value in changes.items() if name not in GUIDANCE}
    settings |= {"guidance": {n: v for n, v in changes.items() if n in GUIDANCE}, **own}
    return Extract(**check_field_types("extract", Extract, settings))


def log_joint(x_t, t):
    """log p(x_t, s_i) up to a constant, (n, 6), when the data are `IMAGES`, equally likely."""
    s = to_model(IMAGES).double().flatten(1)
    alpha_bar = ALPHAS_CUMPROD.double()[t][:, None]
    offsets = x_t.double().flatten(1)[:, None] - alpha_bar[:, None].sqrt() * s
    return -offsets.square().sum(2) / (2 * (1 - alpha_bar))


class ExactUNet(nn.Module):
    """The exact eps of those data, as a UNet2DModel would say it; counts the images it sees."""

    config = {"sample_size": 4, "in_channels": 1}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.images_seen = 0

    def forward(self, x_t, t):
        self.images_seen += len(x_t)
        alpha_bar = ALPHAS_CUMPROD.double()[t][:, None]
        mean = log_joint(x_t, t).softmax(1) @ to_model(IMAGES).double().flatten(1)
        eps = (x_t.double().flatten(1) - alpha_bar.sqrt() * mean) / (1 - alpha_bar).sqrt()
        return SimpleNamespace(sample=eps.reshape(x_t.shape).float())


class ExactClassifier(nn.Module):
    """The exact p(label | x_t, t) of those data, as logits."""

    def forward(self, x_t, t):
        joint = log_joint(x_t, t)
        return torch.stack([joint[:, np.equal(LABELS, y)].logsumexp(1) for y in range(3)], 1)


@pytest.fixture
def unet(monkeypatch):
    """The model that the stage attacks: exact, so that what guidance must give is known."""
    network = ExactUNet()
    parts = {"unet": network, "scheduler": DDPMScheduler()}
    monkeypatch.setattr("sidepipe.stages.generate.stage.load_dpm", lambda *_: parts)
    return network


@pytest.fixture
def inputs(tmp_path):
    """What the attacker has: every image that the model makes, labeled, two of no label."""
    for name in ("generate", "label", "classifier"):
        (tmp_path / name).mkdir()
    strays = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 1)).astype(np.uint8)
    write_shard(tmp_path / "generate", 0, np.concatenate([IMAGES, strays]))
    np.save(tmp_path / "label" / "labels.npy", np.append(LABELS, [-1, -1]))
    clusters(tmp_path / "label", [0.9, 0.8, 0.7])
    return {name: tmp_path / name for name in ("dpm", "generate", "label", "classifier")}


def clusters(folder, cohesions, kept=None):
    """clusters.csv of clusters with these cohesions; their labels count the kept ones.

    Cluster k has 9 + k members.
    """
    with (folder / "clusters.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cluster", "size", "cohesion", "kept", "label", "labeled"])
        label = 0
        for k, cohesion in enumerate(cohesions):
            keep = kept is None or kept[k]
            writer.writerow([k, 9 + k, f"{cohesion:.6f}", int(keep), label if keep else -1, 9])
            label += keep


def run(folder, inputs, runtime=RUNTIME, **changes):
    folder.mkdir(exist_ok=True)
    return extract(**changes).run(Job(folder, inputs, runtime))


def nearest(images):
    """Index of the closest of `IMAGES`, and the largest difference from it in gray levels."""
    difference = np.abs(images[:, None].astype(int) - IMAGES).max((2, 3, 4))
    return difference.argmin(1), difference.min(1)


def test_the_exact_posterior_at_scale_1_gives_each_image_its_label(tmp_path, inputs, unet):
    # The posterior counts strays that the model cannot make; they are far from what it does make.
    run(tmp_path / "guided", inputs)
    targets = load_targets(tmp_path / "guided")
    index, difference = nearest(load(tmp_path / "guided"))
    assert difference.max() <= 1
    np.testing.assert_array_equal(LABELS[index], targets)
    assert set(targets) == {0, 1, 2}
    assert set(index) == {0, 1, 2, 3, 4, 5}  # of its label, any image


def test_plain_samples_are_of_all_labels_whatever_the_targets(tmp_path, inputs, unet):
    run(tmp_path / "plain", {"dpm": inputs["dpm"]}, surrogate="none", num_images=120)
    index, difference = nearest(load(tmp_path / "plain"))
    assert difference.max() <= 1
    counts = np.bincount(index, minlength=6)
    assert counts.min() >= 8  # 20 each are expected
    assert load_targets(tmp_path / "plain").tolist() == [-1] * 120


def test_the_model_left_alone_at_low_noise_keeps_most_labels_it_was_guided_to(
    tmp_path, inputs, unet
):
    right = {}
    for name, changes in {"plain": {"guidance_scale": 0.0}, "early": {"t_min": 250}}.items():
        run(tmp_path / name, inputs, num_images=90, **changes)
        index, difference = nearest(load(tmp_path / name))
        assert difference.max() <= 1
        right[name] = (LABELS[index] == load_targets(tmp_path / name)).mean()
    assert right["plain"] == pytest.approx(1 / 3, abs=0.15)
    assert 0.75 < right["early"] < 1


def test_the_exact_classifier_gives_the_images_of_the_exact_posterior(
    tmp_path, inputs, unet, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        "sidepipe.stages.attack.strategies.load_classifier",
        lambda f: asked.append(f) or ExactClassifier(),
    )
    inputs["generate"].joinpath("shards", "000000.npy").unlink()
    write_shard(inputs["generate"], 0, IMAGES)
    np.save(inputs["label"] / "labels.npy", LABELS)
    settings = {"guidance_scale": 0.4, "t_min": 300, "t_max": 900}
    for surrogate in ("posterior", "classifier"):
        run(tmp_path / surrogate, inputs, surrogate=surrogate, **settings)
    assert asked == [inputs["classifier"]]
    posterior, by_autograd = (load(tmp_path / name) for name in ("posterior", "classifier"))
    assert np.abs(posterior.astype(int) - by_autograd).max() <= 1
    run(tmp_path / "none", inputs, surrogate="none")
    assert np.abs(posterior.astype(int) - load(tmp_path / "none")).max() > 100


def test_the_trained_classifier_is_read_from_its_folder_and_guides(tmp_path, inputs, unet):
    network = {
        "_target_": "sidepipe.stages.classifier.resnet.TimeResNet",
        "_partial_": True,
        "blocks": [1],
        "widths": [8],
    }
    arguments = {"in_channels": 1, "num_classes": 3}
    described = {"network": network, "arguments": arguments, "noised": True}
    write_json(inputs["classifier"] / "network.json", described)
    weights = TimeResNet(1, 3, [1], [8]).state_dict()
    save_file(weights, inputs["classifier"] / "model.safetensors")
    settings = {"surrogate": "classifier", "num_images": 8, "precision": "bf16-mixed"}
    run(tmp_path / "scale_0", inputs, guidance_scale=0.0, **settings)
    run(tmp_path / "scale_50", inputs, guidance_scale=50.0, **settings)
    assert not np.array_equal(load(tmp_path / "scale_0"), load(tmp_path / "scale_50"))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_scale_0_and_no_surrogate_are_plain_sampling_bit_for_bit(tmp_path, inputs, unet, eta):
    runtime = Runtime(accelerator="cpu", sampling_batch_size=48)
    settings = {"runtime": runtime, "eta": eta, "shard_size": 48}
    run(tmp_path / "scale_0", inputs, guidance_scale=0.0, **settings)
    run(tmp_path / "none", inputs, surrogate="none", **settings)
    for name in ("scale_0", "none"):
        assert sorted(p.name for p in (tmp_path / name / "shards").iterdir()) == ["000000.npy"]
    shards = [tmp_path / name / "shards" / "000000.npy" for name in ("scale_0", "none")]
    assert shards[0].read_bytes() == shards[1].read_bytes()
    # Written out: DDIM from the attack's own noise, with nothing of the stage.
    noise_fn = image_noise(0, "extract", range(48), (1, 4, 4))
    eps_fn = clip_x_0(lambda x_t, t: unet(x_t, for_each(t, x_t)).sample, ALPHAS_CUMPROD)
    x_0 = ddim(eps_fn, noise_fn(), TIMESTEPS, ALPHAS_CUMPROD, eta, noise_fn)
    np.testing.assert_array_equal(load(tmp_path / "none"), to_uint8(x_0))


@pytest.mark.parametrize(
    ("surrogate", "changes", "guided_steps"),
    [
        ("none", {}, 0),
        ("posterior", {}, 20),
        ("posterior", {"guidance_scale": 0.0}, 0),
        ("posterior", {"t_min": 500}, 10),
        ("posterior", {"t_min": 501}, 9),
        ("posterior", {"t_max": 100}, 3),
        ("posterior", {"t_min": 200, "t_max": 640}, 9),
        ("posterior", {"timestep_spacing": "trailing", "t_min": 899}, 3),
    ],
)
def test_the_cost_is_what_was_evaluated(
    tmp_path, inputs, unet, monkeypatch, surrogate, changes, guided_steps
):
    gradients, original = [], Posterior.grad_log_prob

    def counted(self, x_t, t, y):
        gradients.append(len(x_t))
        return original(self, x_t, t, y)

    monkeypatch.setattr(Posterior, "grad_log_prob", counted)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 0.3)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    summary = run(tmp_path / "extract", inputs, surrogate=surrogate, num_images=23, **changes)
    assert summary["num_images"] == 23
    assert summary["unet_forwards"] == unet.images_seen == 23 * 20
    assert summary["surrogate_gradients"] == sum(gradients) == 23 * guided_steps
    assert summary["gradient_cost"] == (0.3 if guided_steps else 0)
    assert summary["network_evaluations"] == round(23 * (20 + 0.3 * guided_steps))


def test_the_cost_changes_no_image(tmp_path, inputs, unet, monkeypatch):
    measured = run(tmp_path / "measured", inputs)
    assert 0 < measured["gradient_cost"] < math.inf
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 99.0)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    run(tmp_path / "planted", inputs)
    np.testing.assert_array_equal(load(tmp_path / "measured"), load(tmp_path / "planted"))


def test_the_clock_and_the_batch_size_change_no_cost(tmp_path, inputs, unet, monkeypatch):
    seconds = iter([0.28, 0.62])
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: next(seconds))
    quick = run(tmp_path / "quick", inputs)
    busy = run(tmp_path / "busy", inputs, runtime=Runtime(accelerator="cpu", sampling_batch_size=3))
    assert quick == busy
    assert 0 < quick["gradient_cost"] < math.inf
    assert [load_gradient_seconds(tmp_path / name) for name in ("quick", "busy")] == [0.28, 0.62]


def test_images_depend_on_batch_size_by_rounding_only_and_on_the_seed(tmp_path, inputs, unet):
    run(tmp_path / "7", inputs)
    run(tmp_path / "48", inputs, runtime=Runtime(accelerator="cpu", sampling_batch_size=48))
    run(tmp_path / "other", inputs, seed=1)
    np.testing.assert_array_equal(load_targets(tmp_path / "7"), load_targets(tmp_path / "48"))
    assert np.abs(load(tmp_path / "7").astype(int) - load(tmp_path / "48")).max() <= 1
    assert not np.array_equal(load_targets(tmp_path / "7"), load_targets(tmp_path / "other"))
    assert not np.array_equal(load(tmp_path / "7"), load(tmp_path / "other"))


# Shaping


@pytest.fixture
def exact_classifier(inputs, monkeypatch):
    """The classifier stage's artifact: exact, and of the quality that `quality` writes."""
    monkeypatch.setattr(
        "sidepipe.stages.attack.strategies.load_classifier", lambda _: ExactClassifier()
    )
    return inputs["classifier"]


def quality(folder, cross_entropies):
    """quality.csv of equal bins with these cross-entropies, where the labels' entropy is 2."""
    with (folder / "quality.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t_from", "t_to", "cross_entropy", "accuracy", "label_entropy"])
        width = 1000 // len(cross_entropies)
        for i, value in enumerate(cross_entropies):
            writer.writerow([i * width, (i + 1) * width, f"{value:.6f}", 0.5, 2.0])


def test_a_classifier_that_knows_half_guides_by_half(tmp_path, inputs, unet, exact_classifier):
    quality(exact_classifier, [1.0])
    run(tmp_path / "half", inputs, surrogate="classifier", guidance_scale=0.4)
    settings = {"surrogate": "classifier", "guidance_schedule": "classifier_quality"}
    run(tmp_path / "scheduled", inputs, guidance_scale=0.8, **settings)
    difference = load(tmp_path / "half").astype(int) - load(tmp_path / "scheduled")
    assert np.abs(difference).max() <= 1


def test_where_the_classifier_knows_nothing_it_is_not_asked_and_costs_nothing(
    tmp_path, inputs, unet, exact_classifier
):
    quality(exact_classifier, [0.0, 0.0, 2.0, 2.5])
    early = run(tmp_path / "early", inputs, surrogate="classifier", t_max=499)
    settings = {"surrogate": "classifier", "guidance_schedule": "classifier_quality"}
    scheduled = run(tmp_path / "scheduled", inputs, **settings)
    np.testing.assert_array_equal(load(tmp_path / "early"), load(tmp_path / "scheduled"))
    assert scheduled["surrogate_gradients"] == early["surrogate_gradients"] == 48 * 10


def test_a_schedule_that_guides_nowhere_is_plain_sampling_with_a_warning(
    tmp_path, inputs, unet, exact_classifier, caplog
):
    quality(exact_classifier, [2.0])
    settings = {"surrogate": "classifier", "guidance_schedule": "classifier_quality"}
    summary = run(tmp_path / "scheduled", inputs, **settings)
    run(tmp_path / "none", inputs, surrogate="none")
    np.testing.assert_array_equal(load(tmp_path / "scheduled"), load(tmp_path / "none"))
    assert summary["network_evaluations"] == summary["unet_forwards"]
    assert "nothing is guided" in caplog.text


def test_points_of_lambda_s_factor_guide_at_every_step_by_lambda_times_the_factor(
    tmp_path, inputs, unet
):
    # Constant in two halves, which two constant scales guide: first at high noise, then at low.
    schedule = [[499, 0.5], [500, 0.25]]
    run(tmp_path / "points", inputs, guidance_scale=2.0, guidance_schedule=schedule)
    y = torch.from_numpy(load_targets(tmp_path / "points"))
    labeled = (
        to_model(load_shards(inputs["generate"])),
        torch.from_numpy(load_labels(inputs["label"])),
    )
    gradient = Posterior(*labeled, ALPHAS_CUMPROD).grad_log_prob

    def eps_fn(x_t, t):
        eps, sigma = unet(x_t, for_each(t, x_t)).sample, (1 - ALPHAS_CUMPROD[t]).sqrt()
        return eps - (0.5 if t >= 500 else 1.0) * sigma * gradient(x_t, for_each(t, x_t), y)

    noise_fn = image_noise(0, "extract", range(48), (1, 4, 4))
    x_0 = ddim(clip_x_0(eps_fn, ALPHAS_CUMPROD), noise_fn(), TIMESTEPS, ALPHAS_CUMPROD)
    difference = load(tmp_path / "points").astype(int) - to_uint8(x_0).numpy()
    assert np.abs(difference).max() <= 1


def test_where_the_factor_of_points_is_0_no_gradient_is_taken_and_none_is_paid(
    tmp_path, inputs, unet, monkeypatch
):
    asked, original = [], Posterior.grad_log_prob

    def counted(self, x_t, t, y):
        asked.extend(t.tolist())
        return original(self, x_t, t, y)

    monkeypatch.setattr(Posterior, "grad_log_prob", counted)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 0.25)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    schedule = [[200, 0], [201, 1], [699, 1], [700, 0]]
    points = run(tmp_path / "points", inputs, guidance_schedule=schedule)
    assert (min(asked), max(asked), len(asked)) == (250, 650, 48 * 9)
    assert points["surrogate_gradients"] == 48 * 9
    within = run(tmp_path / "interval", inputs, t_min=201, t_max=699)
    assert points == within
    np.testing.assert_array_equal(load(tmp_path / "points"), load(tmp_path / "interval"))


def test_a_constant_schedule_is_the_point_of_factor_1(tmp_path, inputs, unet):
    run(tmp_path / "constant", inputs, num_images=20)
    run(tmp_path / "point", inputs, num_images=20, guidance_schedule=[[300, 1]])
    np.testing.assert_array_equal(load(tmp_path / "constant"), load(tmp_path / "point"))


def test_a_limit_of_guidance_leads_from_plain_samples_to_unlimited_ones(tmp_path, inputs, unet):
    images = {}
    for limit in (1e-9, 0.2, 1e9, None):
        run(tmp_path / str(limit), inputs, max_guidance_norm=limit)
        images[limit] = load(tmp_path / str(limit)).astype(int)
    run(tmp_path / "none", inputs, surrogate="none")
    assert np.abs(images[1e-9] - load(tmp_path / "none")).max() <= 1
    assert np.abs(images[1e9] - images[None]).max() <= 1
    for limit in (1e-9, 1e9):
        assert np.abs(images[0.2] - images[limit]).max() > 50


def test_guidance_through_pred_x_0_is_that_of_log_p_of_the_image_it_predicts(
    tmp_path, inputs, unet, exact_classifier
):
    settings = {"surrogate": THROUGH}
    run(tmp_path / "through", inputs, guidance_scale=0.01, t_min=300, **settings)
    y = torch.from_numpy(load_targets(tmp_path / "through"))

    def eps_fn(x_t, t):
        eps, alpha_bar = unet(x_t, for_each(t, x_t)).sample, ALPHAS_CUMPROD[t]
        if t < 300:
            return eps
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_(True)
            pred_x_0 = (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
            logits = ExactClassifier()(pred_x_0, for_each(0, x_t))
            total = logits.log_softmax(1).gather(1, y[:, None]).sum()
            gradient = torch.autograd.grad(total, x_t)[0]
        return eps - 0.01 * (1 - alpha_bar).sqrt() * gradient

    noise_fn = image_noise(0, "extract", range(48), (1, 4, 4))
    x_0 = ddim(clip_x_0(eps_fn, ALPHAS_CUMPROD), noise_fn(), TIMESTEPS, ALPHAS_CUMPROD)
    difference = load(tmp_path / "through").astype(int) - to_uint8(x_0).numpy()
    # The classifier at t = 0 is steep: a rounding may decide what an image becomes.
    assert (np.abs(difference).max((1, 2, 3)) <= 1).mean() > 0.9
    run(tmp_path / "none", inputs, surrogate="none")
    changed = np.abs(load(tmp_path / "through").astype(int) - load(tmp_path / "none"))
    assert (changed.max((1, 2, 3)) > 50).mean() > 0.2


# The posterior cut to the nearest images


def test_a_cut_that_cuts_nothing_changes_nothing_and_says_so(tmp_path, inputs, unet, caplog):
    run(tmp_path / "full", inputs)
    with caplog.at_level("INFO", "sidepipe"):
        summary = run(tmp_path / "cut", inputs, surrogate={"name": "posterior", "neighbors": 8})
    assert np.abs(load(tmp_path / "cut").astype(int) - load(tmp_path / "full")).max() <= 1
    assert max(row["relative_error"] for row in summary["cut_error"]) < 1e-4
    assert all(record.levelname != "WARNING" for record in caplog.records)
    assert "cut_error" not in run(tmp_path / "again", inputs)


def test_a_cut_that_changes_the_gradient_is_warned_of_with_timesteps_and_numbers(
    tmp_path, inputs, unet, caplog
):
    with caplog.at_level("INFO", "sidepipe"):
        summary = run(tmp_path / "cut", inputs, surrogate={"name": "posterior", "neighbors": 1})
    rows = summary["cut_error"]
    assert [row["t"] for row in rows] == sorted({row["t"] for row in rows}, reverse=True)
    assert (len(rows), rows[0]["t"], rows[-1]["t"]) == (10, 950, 0)
    assert rows[0]["relative_error"] > 0.5 > 0.02 > rows[-1]["relative_error"]
    wrong = [row["t"] for row in rows if row["relative_error"] > 0.1]
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert f"at t in {wrong}; remedy:" in warning
    assert f"extract.guidance.t_max below {min(wrong)}" in warning
    assert f"t = 950: {rows[0]['relative_error']:.3f}" in caplog.text


# Targets


@pytest.mark.parametrize(
    ("num_labels", "fraction", "count"),
    [(25, 0.1, 3), (100, 0.07, 7), (70, 0.1, 7), (30, 1.0, 30), (30, 1e-6, 1), (10, 0.01, 1)],
)
def test_top_cohesion_aims_at_exactly_the_most_cohesive_labels(
    tmp_path, inputs, unet, num_labels, fraction, count
):
    rng = np.random.default_rng(num_labels)
    cohesions = rng.permutation(2 * num_labels) / (2 * num_labels + 1)
    kept = np.zeros(2 * num_labels, bool)  # dropped clusters have no label, however cohesive
    kept[rng.permutation(2 * num_labels)[:num_labels]] = True
    clusters(inputs["label"], cohesions, kept)
    np.save(inputs["label"] / "labels.npy", np.arange(8) % num_labels)
    summary = run(
        tmp_path / "extract",
        inputs,
        targets="top_cohesion",
        target_fraction=fraction,
        guidance_scale=0.0,
        num_images=400,
        num_inference_steps=1,
        runtime=Runtime(accelerator="cpu", sampling_batch_size=400),
    )
    of_label = cohesions[kept]
    best = sorted(range(num_labels), key=lambda y: -of_label[y])[:count]
    assert set(load_targets(tmp_path / "extract")) == set(best)
    assert summary["num_targets"] == count


def test_weighted_targets_are_drawn_by_cohesion_rank_and_size(tmp_path, inputs, unet):
    clusters(inputs["label"], [0.2, 0.9, 0.5, 0.7], [True, True, False, True])
    settings = {"num_images": 2000, "num_inference_steps": 1, "guidance_scale": 0.0}
    runtime = Runtime(accelerator="cpu", sampling_batch_size=2000)
    summary = run(tmp_path / "a", inputs, runtime, targets="weighted", shard_size=2000, **settings)
    counts = np.bincount(load_targets(tmp_path / "a"), minlength=3)
    weights = np.array([1 / 3 * 9, 3 / 3 * 10, 2 / 3 * 12])
    expected = 2000 * weights / weights.sum()
    assert np.abs(counts - expected).max() < 4 * math.sqrt(500)
    assert summary["num_targets"] == 3


def test_uniform_targets_reach_every_label(tmp_path, inputs, unet):
    assert run(tmp_path / "extract", inputs, target_fraction=0.1)["num_targets"] == 3
    assert set(load_targets(tmp_path / "extract")) == {0, 1, 2}


# Settings


def test_every_surrogate_reads_only_what_it_needs():
    assert extract(surrogate="none").inputs() == ("dpm",)
    assert extract(surrogate="posterior").inputs() == ("dpm", "generate", "label")
    assert extract().inputs() == ("dpm", "generate", "label")
    assert extract(surrogate="classifier").inputs() == ("dpm", "generate", "label", "classifier")


def key_settings(**changes):
    stage = extract(**changes)
    return stage.key_settings(asdict(stage))


def test_settings_of_guidance_are_no_part_of_the_key_of_plain_samples_only():
    assert key_settings(surrogate="none") == key_settings(
        surrogate="none",
        guidance_scale=3.0,
        t_min=100,
        t_max=200,
        targets="top_cohesion",
        target_fraction=0.5,
        guidance_schedule="classifier_quality",
        max_guidance_norm=0.5,
    )
    for changes in (
        {"guidance_scale": 3.0},
        {"t_min": 1},
        {"t_max": 9},
        {"targets": "top_cohesion"},
        {"targets": "weighted"},
        {"max_guidance_norm": 0.5},
    ):
        for surrogate in ("posterior", "classifier"):
            assert key_settings(surrogate=surrogate, **changes) != key_settings(surrogate=surrogate)
    for changes in ({"num_images": 9}, {"eta": 1.0}, {"seed": 1}, {"num_inference_steps": 3}):
        assert key_settings(surrogate="none", **changes) != key_settings(surrogate="none")


def test_settings_of_one_surrogate_are_part_of_its_key_alone():
    plain = key_settings(surrogate="classifier")
    assert key_settings(surrogate=THROUGH) != plain
    assert key_settings(surrogate="classifier", guidance_schedule="classifier_quality") != plain
    assert key_settings(surrogate=CUT) != key_settings()
    assert key_settings(surrogate={"name": "posterior"}) == key_settings(surrogate="posterior")


def test_the_target_fraction_is_part_of_the_key_where_it_is_used():
    assert key_settings(target_fraction=0.5) == key_settings()
    weighted = {"targets": "weighted"}
    assert key_settings(target_fraction=0.5, **weighted) == key_settings(**weighted)
    top = {"targets": "top_cohesion"}
    assert key_settings(target_fraction=0.5, **top) != key_settings(**top)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": -1.0}, r"extract.guidance.guidance_scale must be >= 0, got -1.0"),
        ({"t_min": -1}, r"extract.guidance.t_min must be >= 0, got -1"),
        (
            {"t_min": 5, "t_max": 4},
            r"t_max must be >= extract.guidance.t_min = 5, got 4; swap",
        ),
        (
            {"target_fraction": 0.0},
            r"guidance.target_fraction must be in \(0, 1\], got 0.0",
        ),
        (
            {"target_fraction": 1.1},
            r"guidance.target_fraction must be in \(0, 1\], got 1.1",
        ),
        (
            {"max_guidance_norm": 0.0},
            r"guidance.max_guidance_norm must be > 0 or null, got 0.0",
        ),
        (
            {"surrogate": {"name": "posterior", "neighbors": 0}},
            r"extract.surrogate.neighbors must be >= 1 or null, got 0",
        ),
        (
            {"surrogate": {"name": "classifier", "neighbors": 5}},
            r"extract.surrogate.neighbors is not a setting of extract.surrogate=classifier, which "
            r"has extract.surrogate.guide_through; extract.surrogate=posterior has it",
        ),
        ({"surrogate": "clasifier"}, r"extract.surrogate does not accept .*mean 'classifier'"),
        (
            {"surrogate": {"neighbors": 5}},
            r"must be a name or {name: ...}, got .*; known: no",
        ),
        ({"surrogate": {"name": "lora", "rank": 5}}, r"extract.surrogate.rank is not a setting"),
        (
            {"guidance_schedule": "classifier_quality"},
            r"guidance_schedule must be 'constant' or points where .* is 'posterior'",
        ),
        (
            {"surrogate": {"name": "posterior", "guide_through": "pred_x_0"}},
            r"extract.surrogate.guide_through is not a setting of extract.surrogate=posterior, "
            r"which has extract.surrogate.neighbors; extract.surrogate=classifier has it",
        ),
        ({"num_images": 0}, r"extract.num_images must be >= 1, got 0"),
        ({"eta": -0.1}, r"extract.eta must be in \[0, 1\], got -0.1"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        extract(**changes)


def test_one_timestep_and_scale_0_are_settings_like_others():
    assert extract(t_min=5, t_max=5).guidance.t_max == 5
    assert extract(t_min=0, t_max=0).guidance.t_max == 0
    assert extract(guidance_scale=0.0).guidance.guidance_scale == 0


DPM = TrainDPM(
    num_train_images=8,
    train_partitions=None,
    subset_seed=0,
    unet={},
    noise_schedule={"_target_": "diffusers.DDPMScheduler", "num_train_timesteps": 1000},
    max_steps=2,
    batch_size=1,
    lr=1.0,
    weight_decay=0.0,
    lr_warmup_steps=0,
    ema_decay=0.0,
    ema_start_step=0,
    gradient_clip_val=1.0,
    random_flip=False,
    precision="32-true",
    log_every_steps=1,
    checkpoint_every_steps=1,
    preview_every_steps=1,
    seed=0,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_min": 1000}, r"extract.guidance.t_min must be < diffusion.num_train_timesteps = 1000"),
        ({"t_min": 951}, r"one of the 20 timesteps from 0 to 950 .* got \[951, None\]"),
        ({"t_min": 1, "t_max": 49}, r"t_min, extract.guidance.t_max\] must .* got \[1, 49\]"),
        ({"num_inference_steps": 1001}, r"extract.num_inference_steps must be <= .* got 1001"),
        (
            {"t_min": 500, "guidance_schedule": [[0, 1], [500, 0]]},
            r"guidance_schedule must be above 0 at one of the guided timesteps, 500 to 950, got",
        ),
    ],
)
def test_an_attack_that_guides_nowhere_is_refused_at_the_start(changes, message):
    with pytest.raises(ValueError, match=message):
        checked(extract(**changes), {"dpm": DPM}, RUNTIME)


def test_the_interval_is_compared_with_the_timesteps_that_the_offset_gives():
    noise_schedule = {**DPM.noise_schedule, "steps_offset": 1}
    upstream = {"dpm": replace(DPM, noise_schedule=noise_schedule)}
    checked(extract(t_min=951), upstream, RUNTIME)
    with pytest.raises(ValueError, match=r"timesteps from 1 to 951 .* got \[0, 0\]"):
        checked(extract(t_min=0, t_max=0), upstream, RUNTIME)


@pytest.mark.parametrize(
    "changes",
    [
        {"t_min": 950},
        {"t_min": 951, "timestep_spacing": "trailing"},
        {"t_min": 50, "t_max": 50},
        {"t_max": 499, "guidance_schedule": [[0, 1], [500, 0]]},
        {"t_min": 1000, "surrogate": "none"},
        {"t_min": 1000, "guidance_scale": 0.0},
    ],
)
def test_an_attack_that_guides_somewhere_or_means_not_to_is_accepted(changes):
    checked(extract(**changes), {"dpm": DPM}, RUNTIME)


# Settings chosen by trials

SPENT = {"unet_forwards": 960, "surrogate_gradients": 480, "network_evaluations": 1200}


@pytest.fixture
def chosen(inputs):
    """The tune stage's artifact: what it chose, at 1,200 evaluations."""
    inputs["tune"] = inputs["dpm"].parent / "tune"
    inputs["tune"].mkdir()
    chosen = {"guidance_scale": 0.5, "t_min": 300, "t_max": None, "targets": "top_cohesion"}
    write_json(inputs["tune"] / "choice.json", {"chosen": chosen, "score": 0.5, **SPENT})
    return chosen


def test_a_tuned_attack_is_the_attack_with_what_was_chosen_and_its_cost_that_of_trials_too(
    tmp_path, inputs, unet, chosen, monkeypatch
):
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: 0.25)
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    settings = {"guidance_scale": 3.0, "t_max": 400, "target_fraction": 0.3}
    tuned = run(tmp_path / "tuned", inputs, tuned=True, **settings)
    alone = run(tmp_path / "alone", inputs, **{**settings, **chosen})
    np.testing.assert_array_equal(load(tmp_path / "tuned"), load(tmp_path / "alone"))
    assert tuned == {**alone, **{k: alone[k] + SPENT[k] for k in SPENT}, "tuned": chosen}


def test_a_tuned_attack_reads_tune_and_plain_sampling_is_not_tuned():
    assert extract(tuned=True).inputs() == ("dpm", "generate", "label", "tune")
    lora = extract(tuned=True, surrogate="lora")
    assert lora.inputs() == ("dpm", "generate", "label", "lora", "tune")
    assert extract(tuned=True, surrogate="none").inputs() == ("dpm",)


def test_that_it_is_tuned_is_known_by_the_key_of_tune_alone():
    for surrogate in ("none", "classifier", "posterior"):
        assert key_settings(surrogate=surrogate, tuned=True) == key_settings(surrogate=surrogate)


def test_settings_that_trials_replace_need_not_guide_anywhere():
    checked(extract(tuned=True, t_min=951), {"dpm": DPM}, RUNTIME)


# Rounds

OF = np.repeat(np.arange(6), [9, 8, 7, 3, 2, 1])  # which of IMAGES each synthetic one is of
LABEL = {
    "_target_": "sidepipe.stages.label.stage.Label",
    "features": {"_target_": "sidepipe.features.encoders.Pixels"},
    "num_clusters": 6,
    "num_iterations": 20,
    "min_cohesion": 0.5,
    "min_cluster_size": 1,
    "assign": "all",
    "near_duplicates": near_duplicates(0.05),
    "seed": 3,
}
ROUNDS = {"rounds": 3, "targets": "top_cohesion", "target_fraction": 0.1, "num_images": 30}
ROUNDS |= {"stop_rounds": False, "near_duplicates": near_duplicates(0.1)}


@pytest.fixture
def sampled(tmp_path, unet):
    """What the attacker has: plain samples of the six images, some made often, and their labels."""
    noise = np.random.default_rng(2).integers(-3, 4, (len(OF), 4, 4, 1))
    synthetic = (IMAGES[OF] + noise).clip(0, 255).astype(np.uint8)
    folder = tmp_path / "label"
    for name in ("generate", "label"):
        (tmp_path / name).mkdir()
    write_shard(tmp_path / "generate", 0, synthetic)
    write_json(folder / "settings.json", {"settings": LABEL})
    load_stage(folder).label(synthetic, folder, RUNTIME)
    assert len(np.unique(load_labels(folder))) == 6
    return {name: tmp_path / name for name in ("dpm", "generate", "label")}


def rounds_csv(folder):
    with (folder / "rounds.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_round_aims_at_a_cluster_that_none_has_reached(tmp_path, sampled):
    summary = run(tmp_path / "rounds", sampled, **ROUNDS)
    index, _ = nearest(load(tmp_path / "rounds"))
    of_round = [set(index[start : start + 10].tolist()) for start in (0, 10, 20)]
    assert [len(images) for images in of_round] == [1, 1, 1]
    assert len(set.union(*of_round)) == 3
    assert [row["guided"] for row in summary["rounds"]] == [True] * 3
    # Labels are numbered on from round to round, beside their cohesion.
    targets = load_targets(tmp_path / "rounds")
    assert [len(set(targets[start : start + 10])) for start in (0, 10, 20)] == [1, 1, 1]
    cohesion = load_cohesion(tmp_path / "rounds", sampled["label"])
    assert len(cohesion) == 18
    assert [int(targets[start]) // 6 for start in (0, 10, 20)] == [0, 1, 2]
    np.testing.assert_allclose(cohesion[:6], load_label_cohesion(sampled["label"]))


def test_the_first_round_is_the_attack_without_rounds(tmp_path, sampled):
    run(tmp_path / "rounds", sampled, **ROUNDS)
    run(tmp_path / "once", sampled, **{**ROUNDS, "rounds": 1})
    first = load(tmp_path / "rounds")[:10].astype(int)
    assert np.abs(first - load(tmp_path / "once")[:10]).max() <= 1
    assert load_cohesion(tmp_path / "once", sampled["label"]).shape == (6,)
    assert not (tmp_path / "once" / "rounds.csv").exists()


def test_once_a_round_finds_less_than_plain_sampling_the_rest_is_plain(tmp_path, sampled):
    # The last ten synthetic images repeat two of three that were made once: plain sampling pays.
    of = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 5, 0, 0, 1, 2, 3, 4, 0, 1, 2, 3])
    (sampled["generate"] / "shards" / "000000.npy").unlink()
    write_shard(sampled["generate"], 0, IMAGES[of])
    load_stage(sampled["label"]).label(IMAGES[of], sampled["label"], RUNTIME)
    settings = {**ROUNDS, "stop_rounds": True}
    summary = run(tmp_path / "rounds", sampled, **settings)
    run(tmp_path / "plain", sampled, surrogate="none", num_images=30)
    assert [row["guided"] for row in summary["rounds"]] == [True, False, False]
    assert summary["plain_new_groups_per_1000"] == pytest.approx(1000 * 2 / (10 * 20))
    difference = load(tmp_path / "rounds")[10:].astype(int) - load(tmp_path / "plain")[10:]
    assert np.abs(difference).max() <= 1
    assert load_targets(tmp_path / "rounds")[10:].tolist() == [-1] * 20
    assert summary["surrogate_gradients"] == 10 * 20
    assert summary["unet_forwards"] == 30 * 20
    rows = rounds_csv(tmp_path / "rounds")
    assert [row["new_groups"] for row in rows] == ["0", "0", "0"]
    assert [row["targets"] for row in rows] == ["1", "0", "0"]


def test_where_every_cluster_is_reached_the_rest_is_plain(tmp_path, sampled):
    settings = {**ROUNDS, "targets": "uniform", "num_images": 60}
    summary = run(tmp_path / "rounds", sampled, **settings)
    assert [row["guided"] for row in summary["rounds"]] == [True, False, False]


def test_weighted_targets_leave_out_what_is_reached(tmp_path, sampled):
    settings = {**ROUNDS, "targets": "weighted", "num_images": 9}
    summary = run(tmp_path / "rounds", sampled, **settings)
    index, _ = nearest(load(tmp_path / "rounds"))
    assert summary["rounds"][1]["targets"] <= 6 - len(set(load_targets(tmp_path / "rounds")[:3]))
    assert not set(index[:3]) & set(index[3:6])


def test_a_run_killed_within_a_round_goes_on_with_the_same_result(tmp_path, sampled, monkeypatch):
    costs = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_cost", lambda *_: next(costs))
    monkeypatch.setattr("sidepipe.stages.attack.cost.gradient_seconds", lambda *_: 1.0)
    settings = {**ROUNDS, "shard_size": 5}
    whole = run(tmp_path / "whole", sampled, **settings)
    costs = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    predict_step, steps = ImageSampler.predict_step, []

    def killed(self, batch):
        steps.append(batch)
        if len(steps) == 4:  # of two shards a round, the second of the second
            raise KeyError("killed")
        return predict_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ImageSampler, "predict_step", killed)
        with pytest.raises(KeyError, match="killed"):
            run(tmp_path / "killed", sampled, **settings)
    resumed = run(tmp_path / "killed", sampled, **settings)
    assert resumed == whole
    np.testing.assert_array_equal(load(tmp_path / "killed"), load(tmp_path / "whole"))
    np.testing.assert_array_equal(
        load_targets(tmp_path / "killed"), load_targets(tmp_path / "whole")
    )
    assert rounds_csv(tmp_path / "killed") == rounds_csv(tmp_path / "whole")


def test_a_later_round_without_labels_is_plain(tmp_path, sampled, monkeypatch):
    def nothing(self, images, folder, runtime):
        raise NoMaterial("nothing repeats")

    monkeypatch.setattr("sidepipe.stages.label.stage.Label.label", nothing)
    summary = run(tmp_path / "rounds", sampled, **ROUNDS)
    assert [row["guided"] for row in summary["rounds"]] == [True, False, False]
    assert summary["num_images"] == len(load(tmp_path / "rounds")) == 30


def test_a_tuned_attack_in_rounds_is_chosen_once_for_all(tmp_path, sampled):
    sampled["tune"] = tmp_path / "tune"
    sampled["tune"].mkdir()
    choice = {"chosen": {"guidance_scale": 0.5}, "score": 0.5, **SPENT}
    write_json(sampled["tune"] / "choice.json", choice)
    summary = run(tmp_path / "tuned", sampled, **ROUNDS, tuned=True)
    assert len(summary["rounds"]) == 3
    assert summary["unet_forwards"] == 30 * len(TIMESTEPS) + SPENT["unet_forwards"]
    run(tmp_path / "alone", sampled, **ROUNDS, guidance_scale=0.5)
    np.testing.assert_array_equal(load(tmp_path / "tuned"), load(tmp_path / "alone"))


def test_rounds_are_part_of_the_key_where_there_are_several_and_their_judge_too():
    judged = {"near_duplicates": near_duplicates(0.2), "stop_rounds": False}
    assert key_settings(**judged) == key_settings()
    assert "features" not in key_settings()
    assert "rounds" not in key_settings()
    several = {"targets": "top_cohesion", "rounds": 3}
    assert key_settings(**several) != key_settings(targets="top_cohesion")
    assert key_settings(**several, **judged) != key_settings(**several)
    assert key_settings(surrogate="none", rounds=3) == key_settings(surrogate="none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, r"extract.rounds must be in \[1, extract.num_images = 48\], got 0"),
        ({"rounds": 49}, r"extract.rounds must be in \[1, .* got 49"),
        ({"rounds": 2, "surrogate": "classifier"}, r"extract.rounds must be 1 for a trained"),
    ],
)
def test_rounds_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        extract(**changes)


def test_rounds_of_real_labeled_images_are_refused_at_the_start():
    settings = {name: value for name, value in LABEL.items() if name != "_target_"}
    upstream = {"dpm": DPM, "label": Label(**{**settings, "assign": "original"})}
    with pytest.raises(ValueError, match=r"extract.rounds must be 1 where label.assign=original"):
        checked(extract(rounds=3), upstream, RUNTIME)
    checked(extract(rounds=3), {"dpm": DPM, "label": Label(**settings)}, RUNTIME)
