import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file
from torch import nn

from sidepipe.artifacts import write_json
from sidepipe.classifier.resnet import TimeResNet
from sidepipe.diffusion.guidance import Posterior
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import clip_x_0
from sidepipe.dpm.stage import TrainDPM
from sidepipe.extract.stage import Extract, draw_targets, load, load_targets
from sidepipe.images import to_model, to_uint8
from sidepipe.progress import quiet_libraries
from sidepipe.shards import write_shard
from sidepipe.stage import Runtime

RUNTIME = Runtime(accelerator="cpu", sampling_batch_size=7)
ALPHAS_CUMPROD = DDPMScheduler().alphas_cumprod
TIMESTEPS = list(range(950, -1, -50))
# Six images far apart, of three labels: all that the model has learnt, and all that it generates.
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
LABELS = np.array([0, 0, 0, 1, 1, 2])


def extract(**changes) -> Extract:
    settings = {
        "surrogate": "posterior",
        "guidance_scale": 1.0,
        "t_min": 0,
        "t_max": None,
        "targets": "uniform",
        "target_fraction": 0.1,
        "num_images": 48,
        "num_inference_steps": len(TIMESTEPS),
        "eta": 0.0,
        "timestep_spacing": "leading",
        "precision": "32-true",
        "shard_size": 20,
        "seed": 0,
    }
    return Extract(**{**settings, **changes})


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
    network, scheduler = ExactUNet(), DDPMScheduler()
    for stage in ("generate", "extract"):
        monkeypatch.setattr(f"sidepipe.{stage}.stage.load_dpm", lambda _: (network, scheduler))
    return network


@pytest.fixture
def inputs(tmp_path):
    """What the attacker has: every image that the model makes, labelled, two of no label."""
    for name in ("generate", "label", "classifier"):
        (tmp_path / name).mkdir()
    strays = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 1)).astype(np.uint8)
    write_shard(tmp_path / "generate", 0, np.concatenate([IMAGES, strays]))
    np.save(tmp_path / "label" / "labels.npy", np.append(LABELS, [-1, -1]))
    clusters(tmp_path / "label", [0.9, 0.8, 0.7])
    return {name: tmp_path / name for name in ("dpm", "generate", "label", "classifier")}


def clusters(folder, cohesions, kept=None):
    """clusters.csv of clusters with these cohesions; their labels count the kept ones."""
    with (folder / "clusters.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cluster", "size", "cohesion", "kept", "label", "labelled"])
        label = 0
        for k, cohesion in enumerate(cohesions):
            keep = kept is None or kept[k]
            writer.writerow([k, 9, f"{cohesion:.6f}", int(keep), label if keep else -1, 9])
            label += keep


def run(folder, inputs, runtime=RUNTIME, **changes):
    quiet_libraries()
    folder.mkdir(exist_ok=True)
    return extract(**changes).run(folder, inputs, runtime)


def nearest(images):
    """Index of the closest of `IMAGES`, and the largest difference from it in grey levels."""
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
        "sidepipe.extract.stage.load_classifier", lambda f: asked.append(f) or ExactClassifier()
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
        "_target_": "sidepipe.classifier.resnet.TimeResNet",
        "_partial_": True,
        "blocks": [1],
        "widths": [8],
    }
    arguments = {"in_channels": 1, "num_classes": 3}
    write_json(inputs["classifier"] / "network.json", {"network": network, "arguments": arguments})
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
    eps_fn = clip_x_0(lambda x_t, t: unet(x_t, t).sample, ALPHAS_CUMPROD)
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
    summary = run(tmp_path / "extract", inputs, surrogate=surrogate, num_images=23, **changes)
    assert summary["num_images"] == 23
    assert summary["unet_forwards"] == unet.images_seen == 23 * 20
    assert summary["surrogate_gradients"] == sum(gradients) == 23 * guided_steps


def test_images_depend_on_batch_size_by_rounding_only_and_on_the_seed(tmp_path, inputs, unet):
    run(tmp_path / "7", inputs)
    run(tmp_path / "48", inputs, runtime=Runtime(accelerator="cpu", sampling_batch_size=48))
    run(tmp_path / "other", inputs, seed=1)
    np.testing.assert_array_equal(load_targets(tmp_path / "7"), load_targets(tmp_path / "48"))
    assert np.abs(load(tmp_path / "7").astype(int) - load(tmp_path / "48")).max() <= 1
    assert not np.array_equal(load_targets(tmp_path / "7"), load_targets(tmp_path / "other"))
    assert not np.array_equal(load(tmp_path / "7"), load(tmp_path / "other"))


# Targets


def test_targets_are_uniform_over_the_allowed_labels():
    allowed = np.array([2, 3, 5, 7, 11])
    targets = draw_targets(allowed, 5000, seed=0)
    assert targets.dtype == np.int64
    values, counts = np.unique(targets, return_counts=True)
    assert values.tolist() == allowed.tolist()
    assert np.abs(counts - 1000).max() < 4 * math.sqrt(1000 * 0.8)


def test_an_image_s_target_depends_on_seed_and_index_alone():
    allowed = np.arange(50)
    targets = draw_targets(allowed, 300, seed=3)
    np.testing.assert_array_equal(draw_targets(allowed, 100, seed=3), targets[:100])
    other = draw_targets(allowed, 300, seed=4)
    assert (other == targets).mean() < 0.1


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
    return stage.key_settings({name: getattr(stage, name) for name in stage.__dataclass_fields__})


def test_settings_of_guidance_are_no_part_of_the_key_of_plain_samples_only():
    assert key_settings(surrogate="none") == key_settings(
        surrogate="none",
        guidance_scale=3.0,
        t_min=100,
        t_max=200,
        targets="top_cohesion",
        target_fraction=0.5,
    )
    for changes in (
        {"guidance_scale": 3.0},
        {"t_min": 1},
        {"t_max": 9},
        {"targets": "top_cohesion"},
    ):
        for surrogate in ("posterior", "classifier"):
            assert key_settings(surrogate=surrogate, **changes) != key_settings(surrogate=surrogate)
    for changes in ({"num_images": 9}, {"eta": 1.0}, {"seed": 1}, {"num_inference_steps": 3}):
        assert key_settings(surrogate="none", **changes) != key_settings(surrogate="none")


def test_the_target_fraction_is_part_of_the_key_where_it_is_used():
    assert key_settings(target_fraction=0.5) == key_settings()
    top = {"targets": "top_cohesion"}
    assert key_settings(target_fraction=0.5, **top) != key_settings(**top)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": -1.0}, r"extract.guidance_scale must be >= 0, got -1.0"),
        ({"t_min": -1}, r"extract.t_min must be >= 0, got -1"),
        ({"t_min": 5, "t_max": 4}, r"extract.t_max must be >= extract.t_min = 5, got 4; swap"),
        ({"target_fraction": 0.0}, r"extract.target_fraction must be in \(0, 1\], got 0.0"),
        ({"target_fraction": 1.1}, r"extract.target_fraction must be in \(0, 1\], got 1.1"),
        ({"num_images": 0}, r"extract.num_images must be >= 1, got 0"),
        ({"eta": -0.1}, r"extract.eta must be in \[0, 1\], got -0.1"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        extract(**changes)


def test_one_timestep_and_scale_0_are_settings_like_others():
    assert extract(t_min=5, t_max=5).t_max == 5
    assert extract(t_min=0, t_max=0).t_max == 0
    assert extract(guidance_scale=0.0).guidance_scale == 0


DPM = TrainDPM(
    num_train_images=8,
    train_partitions=None,
    subset_seed=0,
    unet={},
    noise_schedule={"num_train_timesteps": 1000},
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
        ({"t_min": 1000}, r"extract.t_min must be < diffusion.num_train_timesteps = 1000"),
        ({"t_min": 951}, r"one of the 20 timesteps from 0 to 950 .* got \[951, None\]"),
        ({"t_min": 1, "t_max": 49}, r"t_min, extract.t_max\] must .* got \[1, 49\]"),
        ({"num_inference_steps": 1001}, r"extract.num_inference_steps must be <= .* got 1001"),
    ],
)
def test_an_attack_that_guides_nowhere_is_refused_at_the_start(changes, message):
    with pytest.raises(ValueError, match=message):
        extract(**changes).check({"dpm": DPM}, RUNTIME)


@pytest.mark.parametrize(
    "changes",
    [
        {"t_min": 950},
        {"t_min": 951, "timestep_spacing": "trailing"},
        {"t_min": 50, "t_max": 50},
        {"t_min": 1000, "surrogate": "none"},
        {"t_min": 1000, "guidance_scale": 0.0},
    ],
)
def test_an_attack_that_guides_somewhere_or_means_not_to_is_accepted(changes):
    extract(**changes).check({"dpm": DPM}, RUNTIME)
