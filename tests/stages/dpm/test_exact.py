"""Models in closed form in the pipeline's own stages: what is found is what is true."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from tests.composing import composed, planned
from tests.stages.audit.test_stage import L2
from tests.stages.audit.test_stage import SETTINGS as AUDIT
from tests.tiny import RUNTIME

from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.sampler import ddim
from sidepipe.engine.plan import plan
from sidepipe.engine.stage import Job
from sidepipe.stages.audit.stage import Audit, load_scores
from sidepipe.stages.data.stage import Data
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.exact import ExactDPM
from sidepipe.stages.dpm.stage import load_subset
from sidepipe.stages.generate.stage import load_denoiser
from sidepipe.stages.reference.stage import Reference

SCHEDULE = {
    "_target_": "diffusers.DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}
SOURCE = {
    "_target_": "sidepipe.stages.data.mixtures.Mixtures",
    "num_images": 600,
    "components": 20,
    "size": 8,
    "deviation": 0.1,
    "spread": 0.15,
    "slope": 0.5,
    "seed": 0,
}
NUM_TRAIN, DIMENSION = 100, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    stage = Data(source=SOURCE, size=8, channels=1, center_crop=None, on_bad_file="error")
    stage.run(Job(folder, {}, RUNTIME))
    (folder / "manifest.json").write_text(json.dumps({"files": {}, "settings": {"source": SOURCE}}))
    return folder


def model(folder, data, **changes):
    """The artifact of a model."""
    settings = {"score": "training", "bandwidth": 0.0, "num_train_images": NUM_TRAIN, **changes}
    folder.mkdir(exist_ok=True)
    shared = {"noise_schedule": SCHEDULE, "train_partitions": None, "subset_seed": 0}
    ExactDPM(**shared, **settings).run(Job(folder, {"data": data}, RUNTIME))
    return folder


def sampled(folder, count, steps=50):
    """x_0 of `count` plain samples, as rows, and the denoiser."""
    denoiser = load_denoiser(folder, "32-true")
    x_t = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    eps_fn = denoiser.eps_fn(torch.zeros(count).long())
    x_0 = ddim(eps_fn, x_t, denoiser.timesteps(steps, "trailing"), denoiser.alphas_cumprod)
    return x_0, denoiser


def rows(images):
    return torch.as_tensor(np.asarray(images)).flatten(1).double() / 127.5 - 1


def test_the_perfect_memory_returns_training_images_each_equally_often(tmp_path, data):
    folder = model(tmp_path / "dpm", data)
    x_0, denoiser = sampled(folder, 400)
    images = load_images(data)
    known = {image.tobytes(): row for row, image in enumerate(images)}
    found = [known.get(image.numpy().tobytes()) for image in denoiser.decode(x_0)]
    train = load_subset(folder)[0]
    assert set(found) <= set(train.tolist()), "exact training images and nothing else"
    missed = (1 - 1 / NUM_TRAIN) ** 400
    both = (1 - 2 / NUM_TRAIN) ** 400
    variance = NUM_TRAIN * missed + NUM_TRAIN * (NUM_TRAIN - 1) * both - (NUM_TRAIN * missed) ** 2
    expected = NUM_TRAIN * (1 - missed)
    assert abs(len(set(found)) - expected) < 4 * math.sqrt(variance)


def deviation_by_ddim(bandwidth, denoiser, timesteps):
    """The standard deviation of DDIM's samples around a mean, which DDIM's finite steps lessen.

    Near one mean the optimal pred_x_0 is linear, and so is each step.
    """
    ratios = ((1 - denoiser.alphas_cumprod) / denoiser.alphas_cumprod).double().sqrt()[timesteps]
    deviation = ratios[0]
    for ratio, following in zip(ratios, [*ratios[1:], torch.zeros(())], strict=True):
        kept = bandwidth**2 / (bandwidth**2 + ratio**2)
        deviation = deviation * (kept + (1 - kept) * following / ratio)
    return float(deviation)


def test_samples_of_a_smoothed_image_lie_around_it_as_its_kernel(tmp_path, data):
    bandwidth = 0.03
    folder = model(tmp_path / "dpm", data, bandwidth=bandwidth, num_train_images=1)
    train = rows(load_images(data)[load_subset(folder)[0]])
    for steps, least in ((25, 0.3), (250, 0.8)):
        x_0, denoiser = sampled(folder, 400, steps)
        deviation = deviation_by_ddim(bandwidth, denoiser, denoiser.timesteps(steps, "trailing"))
        assert least * bandwidth < deviation < bandwidth
        square = torch.cdist(x_0.flatten(1).double(), train).min(1).values ** 2 / deviation**2
        assert stats.kstest(square.numpy(), stats.chi2(DIMENSION).cdf).pvalue > 0.01


def test_refinement_of_a_smoothed_model_ends_at_training_images(tmp_path, data):
    """At little noise each training image is a mode; refinement leads from its kernel to it."""
    folder = model(tmp_path / "dpm", data, bandwidth=0.03)
    x_0, denoiser = sampled(folder, 50)
    eps_fn = denoiser.eps_fn(torch.zeros(50).long())
    refined = seek_mode(eps_fn, x_0, 60, 20, denoiser.alphas_cumprod)
    train = rows(load_images(data)[load_subset(folder)[0]])
    before, after = (
        torch.cdist(x.flatten(1).double(), train).min(1).values / 8 for x in (x_0, refined)
    )
    assert after.max() < 0.005
    assert before.median() > 0.015


def test_the_population_model_samples_the_distribution_of_held_out_images(tmp_path, data):
    folder = model(tmp_path / "dpm", data, score="population")
    x_0, _ = sampled(folder, 300, steps=250)
    train, heldout = (rows(load_images(data)[part]) for part in load_subset(folder))
    of_samples = torch.cdist(x_0.flatten(1).double(), train).min(1).values
    of_heldout = torch.cdist(heldout, train).min(1).values
    assert stats.ks_2samp(of_samples.numpy(), of_heldout.numpy()).pvalue > 0.01


@pytest.mark.parametrize(("score", "low", "high"), [("training", 1, 1), ("population", 0.4, 0.6)])
def test_the_audit_tells_members_of_a_memory_and_of_nothing_else(
    tmp_path, data, monkeypatch, score, low, high
):
    inputs = {"data": data, "dpm": model(tmp_path / "dpm", data, score=score)}
    inputs["reference"] = tmp_path / "reference"
    inputs["reference"].mkdir()
    Reference(features=L2, false_positive_rates=[0.05]).run(
        Job(inputs["reference"], inputs, RUNTIME)
    )
    (tmp_path / "audit").mkdir()
    settings = AUDIT | {"refine_t": 60, "levels": [150], "contrast_t": 150}
    Audit(**settings).run(Job(tmp_path / "audit", inputs, RUNTIME))
    table = load_scores(tmp_path / "audit")
    of_train = (table["kind"] == "train").to_numpy()
    gamma = table["gamma"].to_numpy()
    auc = stats.mannwhitneyu(gamma[~of_train], gamma[of_train]).statistic / of_train.sum() ** 2
    assert low <= auc <= high


def test_the_experiment_is_planned():
    planned("experiment=exact", "data=gaussian", "dpm.score=population")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["dpm.bandwidth=-1"], "dpm.bandwidth must be >= 0, got -1"),
        (
            ["data=digits", "dpm.score=population"],
            "dpm.score must be training unless data=gaussian or data=mixture, got 'population'",
        ),
        (["data=none", "data.size=8"], "data must be images, got 'none'"),
    ],
)
def test_what_has_no_exact_model_is_refused(changes, message):
    with pytest.raises(ValueError, match="must be") as error:
        plan(composed("experiment=exact", "attacks=single", "extract.surrogate=none", *changes))
    assert message in str(error.value)


def test_the_bandwidth_is_no_part_of_the_population_key():
    keys = {
        next(
            node.key
            for node in plan(composed("experiment=exact", *change)).nodes.values()
            if node.stage.name == "dpm"
        )
        for change in (
            ["dpm.score=population", "dpm.bandwidth=0"],
            ["dpm.score=population", "dpm.bandwidth=0.1"],
        )
    }
    assert len(keys) == 1
