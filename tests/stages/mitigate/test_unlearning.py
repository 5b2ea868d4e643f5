"""Unlearning on a model whose memory is a table of images, and on Stable Diffusion's parts."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from tests.stages.mitigate.replaying import Replaying, artifacts, artifacts_of_pipeline
from tests.stages.mitigate.test_stage import mitigate
from tests.tiny import RUNTIME

from sidepipe.base.images import to_model
from sidepipe.engine.stage import Job
from sidepipe.models.text.pipeline import load_model
from sidepipe.stages.detect.stage import PROMPTS
from sidepipe.stages.mitigate import unlearning
from sidepipe.stages.mitigate import weights as module
from sidepipe.stages.mitigate.judging import Known
from sidepipe.stages.mitigate.stage import load, load_prompts_asked
from sidepipe.stages.mitigate.unlearning import Lesson, closest, relearn, unlearn
from sidepipe.stages.mitigate.weights import Unlearning


def test_captions_with_most_words_in_common_are_closest():
    others = ["a b c d", "a x y z", "a b x y", "w"]
    assert closest(["a b c q", "w"], others, 2).tolist() == [[0, 2], [3, 0]]


class Table(Replaying):
    """The optimal denoiser of a table of images with logits; both can be trained."""

    def __init__(self, images, logits):
        super().__init__(images[0])
        self.network = torch.nn.Module()
        self.network.images = torch.nn.Parameter(to_model(torch.from_numpy(images)))
        self.network.logits = torch.nn.Parameter(torch.tensor(logits))

    def pred_x_0(self, x_t, t):
        alpha_bar = self.alphas_cumprod[t][:, None, None, None]
        distance = (x_t[:, None] - alpha_bar.sqrt()[:, None] * self.network.images).square()
        logits = self.network.logits - distance.flatten(2).sum(2) / (2 - 2 * alpha_bar.flatten(1))
        return (logits.softmax(1)[..., None, None, None] * self.network.images).sum(1)

    def eps(self, x_t, t, e):
        alpha_bar = self.alphas_cumprod[t][:, None, None, None]
        return (x_t - alpha_bar.sqrt() * self.pred_x_0(x_t, t)) / (1 - alpha_bar).sqrt()


IMAGES = np.random.default_rng(0).integers(256, size=(6, 4, 4, 1)).astype(np.uint8)
LESSON = Lesson(
    data=IMAGES,
    captions=["a faint two at noon"] * len(IMAGES),
    ordinary=np.arange(1, 6),
    prompts=["a bold seven near marigold"],
    images=np.array([0]),
    for_prompts=np.array([[1, 2]]),
    for_images=np.array([[1, 2]]),
    given_back=np.empty(0, np.int64),
)
SMALL = Unlearning(num_steps=150, relearn_steps=100, batch_size=32, lr=0.1)


def memorizing():
    """A model that memorized the first image."""
    return Table(IMAGES, [5.0, 0, 0, 0, 0, 0])


def trained(train, model, method=SMALL, lesson=LESSON):
    assert np.isfinite(train(model, lesson, method, seed=0))
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    return distances(model)


def distances(model):
    """How far noise on each image leads from it."""
    x_0, alpha_bar = to_model(torch.from_numpy(IMAGES)), model.alphas_cumprod[50]
    t, noise = torch.full((6,), 50), torch.randn(6, 1, 4, 4, generator=torch.manual_seed(0))
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    with torch.no_grad():
        return (model.pred_x_0(x_t, t) - x_0).square().flatten(1).mean(1)


def test_noise_on_a_memorized_image_no_longer_leads_back_to_it():
    model = memorizing()
    assert distances(model)[0] < 0.01
    after = trained(unlearn, model)
    assert after[0] > 0.1
    assert after[3:].max() < 0.1


@pytest.mark.parametrize(
    ("examples", "prompts", "images"),
    [
        (["ordinary"], 0, 0),
        (["ordinary", "prompts"], 8, 0),
        (["ordinary", "images"], 0, 8),
        (["ordinary", "prompts", "images"], 8, 8),
    ],
)
def test_ordinary_pairs_take_the_place_of_examples_that_are_left_out(
    monkeypatch, examples, prompts, images
):
    model, texts, batches = memorizing(), [], []
    encode, errors = model.encode, unlearning._errors
    monkeypatch.setattr(model, "encode", lambda some: texts.extend(some) or encode(some))
    monkeypatch.setattr(
        unlearning, "_errors", lambda *given: batches.append(given[1:3]) or errors(*given)
    )
    method = dataclasses.replace(SMALL, examples=examples, num_steps=20, caption_dropout=0.0)
    trained(unlearn, model, method)
    memorized = to_model(torch.from_numpy(IMAGES[:1]))
    kept = torch.cat([x_0 for x_0, target in batches if target is x_0])
    moved = [x_0 for x_0, target in batches if target is not x_0]
    assert len(kept) == 20 * (32 - images)
    assert not (kept == memorized).flatten(1).all(1).any()
    assert [len(x_0) for x_0 in moved] == [images] * (20 if images else 0)
    assert all((x_0 == memorized).all() for x_0 in moved)
    assert texts.count(LESSON.prompts[0]) == 20 * prompts


def test_only_an_adversary_that_has_the_image_brings_it_back():
    given_back = dataclasses.replace(LESSON, given_back=np.array([0]))
    for lesson, is_back in ((LESSON, False), (given_back, True)):
        model = memorizing()
        trained(unlearn, model)
        assert (trained(relearn, model, lesson=lesson)[0] < 0.05) == is_back


def test_copies_of_memorized_images_are_not_ordinary(tmp_path, monkeypatch):
    inputs, images = artifacts(tmp_path)
    images[9] = images[3]  # another row of the memorized image
    np.save(tmp_path / "data/images.npy", images)
    settings = {"features": {"_target_": "sidepipe.features.encoders.PixelsL2"}}
    monkeypatch.setattr(module, "Artifact", lambda folder: type("A", (), {"settings": settings}))
    from sidepipe.stages.detect.stage import load_prompts
    from sidepipe.stages.mitigate.stage import _known

    prompts = load_prompts(inputs["detect"])
    ours = prompts.loc[prompts["memorized"] == True]  # noqa: E712 - nan is not
    known = _known(inputs)
    rows = Unlearning()._ordinary(known, ours, np.array([3]), inputs["detect"])
    assert rows.tolist() == [row for row in range(40) if row not in (3, 9)]


def test_a_model_without_its_training_set_is_refused(tmp_path):
    inputs, images = artifacts(tmp_path)
    nothing = np.empty(0, np.int64)
    known = Known(images, None, nothing, nothing)
    with pytest.raises(ValueError, match=r"the training set for mitigate.method=unlearn must be"):
        Unlearning().build(Replaying(images[3]), known, inputs)


def test_stable_diffusion_is_unlearned_saved_and_judged(tmp_path, monkeypatch):
    inputs = artifacts_of_pipeline("sd", tmp_path)
    settings = {"features": {"_target_": "sidepipe.features.encoders.PixelsL2"}}
    monkeypatch.setattr(module, "Artifact", lambda folder: type("A", (), {"settings": settings}))
    method = {"name": "unlearn", "num_steps": 20, "batch_size": 4, "num_neighbors": 50}
    folder = tmp_path / "mitigate"
    folder.mkdir()
    small = {"num_inference_steps": 2, "adversary": {"num_steps": 2, "lr": 0.1}}
    mitigate(method, **small).run(Job(folder, inputs, RUNTIME))
    results = load(folder)
    assert results["made"]["num_images"] == 1
    assert results["made"]["num_ordinary"] == 39
    assert "memorized_used" not in results["memorized"]  # it is made with all prompts
    assert results["by_image"]["memorized"]["recovered"]["of"] == 1
    before, after = load_model(tmp_path / "dpm/model"), load_model(folder / "model")
    pairs = zip(before.unet.parameters(), after.unet.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    pairs = zip(before.text_encoder.parameters(), after.text_encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_half_of_the_memorized_images_are_given_back_and_the_others_judged(tmp_path, monkeypatch):
    inputs = artifacts_of_pipeline("sd", tmp_path)
    prompts = pd.read_csv(inputs["detect"] / PROMPTS, index_col="number", keep_default_na=False)
    prompts.loc[1, "memorized"], prompts.loc[1, "nearest"] = True, 5
    prompts.to_csv(inputs["detect"] / PROMPTS)
    settings = {"features": {"_target_": "sidepipe.features.encoders.PixelsL2"}}
    monkeypatch.setattr(module, "Artifact", lambda folder: type("A", (), {"settings": settings}))
    seen = []
    monkeypatch.setattr(unlearning, "relearn", lambda *given: seen.append(given[1]) or 0.5)
    method = {"name": "unlearn", "num_steps": 20, "batch_size": 4}
    method |= {"relearn_steps": 20, "give_back": True}
    folder = tmp_path / "mitigate"
    folder.mkdir()
    small = {"num_inference_steps": 2, "adversary": None}
    mitigate(method, **small).run(Job(folder, inputs, RUNTIME))
    table, results = load_prompts_asked(folder), load(folder)
    [image] = seen[0].given_back
    assert sorted(seen[0].images) == [3, 5]
    assert table.loc[table["used"], "nearest"].tolist() == [image]
    assert results["memorized"]["memorized_heldout"]["prompts"]["of"] == 1
    assert results["made"]["num_given_back"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 19},
        {"lr": 0},
        {"caption_dropout": 1},
        {"examples": ["prompts", "images"]},
        {"examples": ["ordinary", "negatives"]},
        {"examples": ["ordinary", "ordinary"]},
        {"relearn_steps": 19},
    ],
)
def test_wrong_settings_are_refused(change):
    [name] = change
    with pytest.raises(ValueError, match=f"mitigate.method.{name} must be"):
        dataclasses.replace(Unlearning(), **change)


def test_images_are_given_back_by_a_fine_tuning_alone():
    with pytest.raises(ValueError, match=r"relearn_steps must be >= 20, got 0; give_back needs"):
        Unlearning(give_back=True)
