import csv
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from tests.tiny import checked

from sidepipe.base.images import to_model
from sidepipe.diffusion.guidance import Posterior
from sidepipe.engine.shards import write_shard
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.classifier.module import NoisyClassifierModule, quality_by_noise_level
from sidepipe.stages.classifier.resnet import TimeResNet
from sidepipe.stages.classifier.stage import BEST, Classifier, load, load_quality

RUNTIME = Runtime(accelerator="cpu")
NETWORK = {
    "_target_": "sidepipe.stages.classifier.resnet.TimeResNet",
    "_partial_": True,
    "blocks": [1, 1],
    "widths": [8, 16],
}
FILES = ("model.safetensors", "network.json", "quality.csv")


def classifier(**changes) -> Classifier:
    settings = {
        "network": NETWORK,
        "noised": True,
        "labels": "hard",
        "max_steps": 150,
        "batch_size": 32,
        "lr": 0.01,
        "weight_decay": 0.01,
        "lr_warmup_steps": 5,
        "gradient_clip_val": 1.0,
        "random_flip": False,
        "precision": "32-true",
        "validation_fraction": 0.25,
        "log_every_steps": 50,
        "checkpoint_every_steps": 1000,
        "validate_every_steps": 50,
        "seed": 0,
    }
    return Classifier(**{**settings, **changes})


def upstream(folder, images, labels, **schedule):
    """Artifacts of dpm (untrained: only its schedule is read), generate and label."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=images.shape[3],
        out_channels=images.shape[3],
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler(**schedule))
    pipeline.save_pretrained(folder / "dpm" / "model")
    write_shard(folder / "generate", 0, images)
    (folder / "label").mkdir()
    np.save(folder / "label" / "labels.npy", labels)
    return {name: folder / name for name in ("dpm", "generate", "label")}


def halves(n, seed=0):
    """Images of which one half is bright: left, right, top or bottom, label 0 to 3."""
    rng = np.random.default_rng(seed)
    images = rng.normal(60, 20, (n, 8, 8, 1))
    labels = np.arange(n) % 4
    for image, label in zip(images, labels, strict=True):
        (image[:, :4], image[:, 4:], image[:4], image[4:])[label][...] += 130
    return images.clip(0, 255).astype(np.uint8), labels


def run(folder, inputs, **changes):
    folder.mkdir(exist_ok=True)
    return classifier(**changes).run(Job(folder, inputs, RUNTIME))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Inputs with four kinds of images, the labels of a few withheld."""
    images, labels = halves(400)
    labels[::40] = -1
    return upstream(tmp_path_factory.mktemp("planted"), images, labels)


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(folder, planted)


def quality(folder):
    with (folder / "quality.csv").open(newline="") as file:
        return [{name: float(v) for name, v in row.items()} for row in csv.DictReader(file)]


def metrics(folder, name):
    """Step and value of every time that `name` was logged."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == name]
    return [(int(row["step"]), float(row["value"])) for row in rows]


def test_it_learns_what_can_be_seen_and_at_the_highest_noise_nothing_can(trained):
    rows = quality(trained[0])
    assert rows[0]["accuracy"] > 0.95
    assert rows[0]["cross_entropy"] < 0.3
    # ab_t is below 0.0003 in the last bin; 97 images are judged there, four times each.
    assert rows[-1]["accuracy"] == pytest.approx(0.25, abs=0.1)
    assert rows[-1]["cross_entropy"] > 0.95 * math.log(4)


def test_quality_has_ten_bins_beside_what_chance_gives(trained, planted):
    folder, summary = trained
    rows = quality(folder)
    assert [(r["t_from"], r["t_to"]) for r in rows] == [(i, i + 100) for i in range(0, 1000, 100)]
    labels = np.load(planted["label"] / "labels.npy")
    # Ten labels withheld, all of label 0.
    shares = [(labels == y).sum() / 390 for y in range(4)]
    assert shares[0] < 0.24 < shares[1]
    for row in rows:
        assert row["chance_cross_entropy"] == pytest.approx(math.log(4), abs=1e-6)
        assert row["chance_accuracy"] == pytest.approx(max(shares), abs=1e-6)
        entropy = -sum(share * math.log(share) for share in shares)
        assert row["label_entropy"] == pytest.approx(entropy, abs=1e-6)
    assert summary["num_labels"] == 4
    for row, same in zip(rows, summary["quality"], strict=True):
        assert row == pytest.approx(same, abs=1e-6)


def test_load_quality_gives_the_rows(trained):
    folder, summary = trained
    for row, same in zip(load_quality(folder), summary["quality"], strict=True):
        assert row == pytest.approx(same, abs=1e-6)


def test_on_clean_images_it_learns_them_knows_no_time_and_is_judged_by_noise_all_the_same(
    planted, trained, tmp_path
):
    summary = run(tmp_path, planted, noised=False, max_steps=100)
    assert summary["clean"]["accuracy"] > 0.95
    assert summary["clean"]["cross_entropy"] < 0.2
    assert "clean" not in trained[1]
    network = load(tmp_path)
    x = torch.randn(3, 1, 8, 8)
    same = network(x, torch.tensor([0, 500, 999]))
    assert same.equal(network(x, torch.zeros(3, dtype=torch.int64)))
    # What it has not seen it cannot do: noise misleads it, as it does not the one trained on noise.
    clean, noised = (quality(folder) for folder in (tmp_path, trained[0]))
    assert len(clean) == 10
    assert clean[9]["cross_entropy"] > clean[9]["label_entropy"] + 0.1
    assert np.mean([row["cross_entropy"] for row in clean]) > np.mean(
        [row["cross_entropy"] for row in noised]
    )


def test_load_gives_the_network_that_was_judged(trained, planted):
    folder, summary = trained
    network = load(folder)
    assert not network.training
    trained_one = TimeResNet(1, 4, NETWORK["blocks"], NETWORK["widths"]).eval()
    trained_one.load_state_dict(load_file(folder / "model.safetensors"))
    x, t = torch.randn(5, 1, 8, 8), torch.tensor([0, 10, 300, 700, 999])
    torch.testing.assert_close(network(x, t), trained_one(x, t), rtol=1e-4, atol=1e-4)
    # The same images, labels and noise give the same judgment.
    labels = np.load(planted["label"] / "labels.npy")
    order = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))[:98]
    images = to_model(halves(400)[0][order])
    alphas_cumprod = DDPMScheduler().alphas_cumprod
    rows = quality_by_noise_level(network, images, torch.tensor(labels[order]), alphas_cumprod, 0)
    for row, judged in zip(rows, summary["quality"], strict=True):
        assert row["cross_entropy"] == pytest.approx(judged["cross_entropy"], rel=1e-5)
        assert row["accuracy"] == judged["accuracy"]


def test_training_sees_no_image_it_is_judged_by_and_none_without_a_label(
    planted, tmp_path, monkeypatch
):
    seen, judged = set(), set()
    step, validate = NoisyClassifierModule.training_step, NoisyClassifierModule.validation_step

    def spied(into, original):
        def spy(self, batch, batch_idx):
            into.update(image.numpy().tobytes() for image in batch[0])
            return original(self, batch, batch_idx)

        return spy

    monkeypatch.setattr(NoisyClassifierModule, "training_step", spied(seen, step))
    monkeypatch.setattr(NoisyClassifierModule, "validation_step", spied(judged, validate))
    run(tmp_path, planted, max_steps=20, validate_every_steps=20)
    images, labels = halves(400)[0], np.load(planted["label"] / "labels.npy")
    assert len(seen) == 292
    assert len(judged) == 98  # a quarter of 390
    assert not seen & judged
    assert seen | judged == {image.tobytes() for image in images[labels >= 0]}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """A network that learns 100 random labels by heart, and so grows worse on others."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 8, 8, 1)).astype(np.uint8)
    labels = rng.permutation(np.arange(200) % 4)
    inputs = upstream(tmp_path_factory.mktemp("random"), images, labels)
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("sidepipe.stages.classifier.stage")
    logger.addHandler(handler)
    folder = tmp_path_factory.mktemp("overfitted")
    settings = {"max_steps": 100, "validate_every_steps": 10, "lr": 0.02}
    run(folder, inputs, validation_fraction=0.5, **settings)
    logger.removeHandler(handler)
    return folder, [r.getMessage() for r in records if r.levelno == logging.WARNING]


def test_a_classifier_no_better_than_chance_is_warned_of_with_the_numbers(overfitted):
    folder, warnings = overfitted
    rows = quality(folder)
    useless = [r for r in rows if r["cross_entropy"] >= r["label_entropy"]]
    assert len(useless) >= 5
    [warning] = warnings
    assert "no better than chance" in warning
    assert f"{rows[0]['label_entropy']:.3f} nats" in warning
    assert "ln K' = 1.386" in warning
    said = [f"[{r['t_from']:.0f}, {r['t_to']:.0f}) ({r['cross_entropy']:.3f} nats)" for r in rows]
    for row, words in zip(rows, said, strict=True):
        assert (words in warning) == (row in useless)


def test_a_classifier_better_than_chance_at_every_noise_level_is_not_warned_of(tmp_path, caplog):
    images, labels = halves(120)
    (tmp_path / "inputs").mkdir()
    inputs = upstream(tmp_path / "inputs", images, labels, beta_end=0.002)  # ends in ab_T = 0.35
    with caplog.at_level(logging.INFO, "sidepipe"):
        run(tmp_path / "classifier", inputs, max_steps=100)
    bins = [r.getMessage() for r in caplog.records if "cross-entropy" in r.getMessage()]
    assert len(bins) == 10
    for row in quality(tmp_path / "classifier"):
        assert row["cross_entropy"] < row["label_entropy"]
    assert all(r.levelno == logging.INFO for r in caplog.records)


def test_the_weights_saved_are_those_of_the_best_validation(overfitted):
    folder, _ = overfitted
    validations = metrics(folder, "val/cross_entropy")
    assert [step for step, _ in validations] == list(range(10, 101, 10))
    best_step = min(validations, key=lambda pair: pair[1])[0]
    assert best_step < 100
    checkpoint = torch.load(folder / BEST, weights_only=True)
    assert checkpoint["global_step"] == best_step
    last = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in load_file(folder / "model.safetensors").items():
        assert value.equal(checkpoint["state_dict"][f"network.{name}"])
    assert not last["network.head.weight"].equal(checkpoint["state_dict"]["network.head.weight"])


def test_learning_the_closed_form_comes_nearer_to_it_than_labels_do_where_noise_is_high(
    tmp_path_factory,
):
    """Images of eight labels, alike but for noise of their own: the classifier memorizes them."""
    rng = np.random.default_rng(0)
    images = (128 + rng.normal(0, 40, (64, 8, 8, 1))).clip(0, 255).astype(np.uint8)
    inputs = upstream(tmp_path_factory.mktemp("inputs"), images, np.arange(64) % 8)
    teacher = Posterior(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.arange(64) % 8,
        DDPMScheduler().alphas_cumprod,
    )
    settings = {"max_steps": 200, "validate_every_steps": 200, "lr": 0.005, "seed": 1}
    distance = {}
    for labels in ("hard", "posterior"):
        folder = tmp_path_factory.mktemp(labels)
        summary = run(folder, inputs, labels=labels, **settings)
        rows = quality_by_noise_level(
            load(folder),
            to_model(images),
            torch.arange(64) % 8,
            DDPMScheduler().alphas_cumprod,
            0,
            num_bins=5,
            teacher=teacher,
        )
        distance[labels] = np.array([row["posterior_kl"] for row in rows])
        assert ("posterior_kl" in summary["quality"][0]) == (labels == "posterior")
    assert (distance["posterior"][2:] < distance["hard"][2:]).all()
    assert (distance["posterior"][3:] < 0.3 * distance["hard"][3:]).all()
    assert distance["posterior"][-1] < 0.01


def test_clean_images_have_no_closed_form():
    with pytest.raises(
        ValueError, match=r"classifier.labels must be 'hard' where .*noised is fals"
    ):
        classifier(labels="posterior", noised=False)


def test_the_attacker_s_own_images_take_the_synthetic_ones_place(planted, tmp_path, monkeypatch):
    images, labels = halves(80, seed=5)
    inputs = {**planted, "label": tmp_path / "label"}
    inputs["label"].mkdir()
    np.save(inputs["label"] / "labels.npy", labels)
    np.save(inputs["label"] / "images.npy", images)
    seen, step = set(), NoisyClassifierModule.training_step

    def spy(self, batch, batch_idx):
        seen.update(image.numpy().tobytes() for image in batch[0])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(NoisyClassifierModule, "training_step", spy)
    run(tmp_path / "classifier", inputs, max_steps=20, validate_every_steps=20)
    assert seen < {image.tobytes() for image in images}
    assert len(seen) == 60


class Killed(Exception):
    pass


def killed(self, batch, batch_idx):
    raise Killed


@pytest.mark.parametrize(
    ("method", "at_step"),
    [
        ("training_step", 7),  # before any checkpoint
        ("training_step", 33),  # between two
        ("validation_step", 20),  # a validation never happened
        ("validation_step", 60),  # nor did the last
    ],
)
def test_an_interrupted_run_goes_on_to_the_bytes_of_an_uninterrupted_one(
    planted, tmp_path, monkeypatch, method, at_step
):
    settings = {"max_steps": 60, "validate_every_steps": 20, "checkpoint_every_steps": 10}
    run(tmp_path / "whole", planted, **settings)
    original = getattr(NoisyClassifierModule, method)

    def killed_there(self, batch, batch_idx):
        return (killed if self.global_step == at_step else original)(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(NoisyClassifierModule, method, killed_there)
        with pytest.raises(Killed):
            run(tmp_path / "resumed", planted, **settings)
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    run(tmp_path / "resumed", planted, **settings)
    for file in FILES:
        assert (tmp_path / "resumed" / file).read_bytes() == (
            tmp_path / "whole" / file
        ).read_bytes()


def test_a_run_killed_after_training_only_judges_again(planted, tmp_path, monkeypatch):
    run(tmp_path, planted, max_steps=20, validate_every_steps=10)
    first = {file: (tmp_path / file).read_bytes() for file in FILES}
    for file in FILES:
        (tmp_path / file).unlink()
    monkeypatch.setattr(NoisyClassifierModule, "training_step", killed)
    run(tmp_path, planted, max_steps=20, validate_every_steps=10)
    assert {file: (tmp_path / file).read_bytes() for file in FILES} == first


def test_the_seed_decides_the_weights(planted, tmp_path):
    settings = {"max_steps": 5, "validate_every_steps": 5}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, planted, seed=seed, **settings)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("max_steps", 0, ">= 1"),
        ("batch_size", 0, ">= 1"),
        ("lr", 0.0, "> 0"),
        ("validation_fraction", 0.0, r"in \(0, 0.5\]"),
        ("validation_fraction", 0.6, r"in \(0, 0.5\]"),
        ("validate_every_steps", 151, r"in \[1, max_steps\]"),
        ("seed", -1, r"in \[0, 2\*\*32\)"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_rule_and_value(name, value, rule):
    with pytest.raises(ValueError, match=f"classifier.{name} must be {rule}, got {value}"):
        classifier(**{name: value})


def test_a_batch_that_devices_cannot_share_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"divisible by the number of devices, 3, got 32"):
        checked(classifier(), {}, Runtime(devices=3))
    checked(classifier(), {}, Runtime(devices=2))


def test_a_network_that_cannot_be_is_refused_at_the_start():
    with pytest.raises(ValueError, match="widths must be as many as blocks"):
        checked(classifier(network={**NETWORK, "widths": [8]}), {}, RUNTIME)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_classifier_that_is_not_finite_or_not_whole_is_refused(trained, tmp_path, value):
    for name in FILES:
        shutil.copy(trained[0] / name, tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = next(name for name in weights if name.endswith("bias"))
    broken = weights[name].clone()
    broken[0] = value
    save_file({**weights, name: broken}, path)
    with pytest.raises(ValueError, match=rf"^{name} of .*model.safetensors must be finite"):
        load(tmp_path)
    del weights[name]
    save_file(weights, path)
    with pytest.raises(ValueError, match=rf"must fit the network .* got 1 missing \({name}\)"):
        load(tmp_path)
