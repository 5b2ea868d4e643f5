"""Unlearning on a model whose memory is a table of images, and on Stable Diffusion's parts."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.stages.mitigate.replaying import Replaying, artifacts, artifacts_of_pipeline
from tests.stages.mitigate.test_stage import mitigate
from tests.tiny import RUNTIME

from sidepipe.base.images import to_model
from sidepipe.engine.stage import Job
from sidepipe.models.text.pipeline import load_model
from sidepipe.stages.mitigate import weights as module
from sidepipe.stages.mitigate.judging import Known
from sidepipe.stages.mitigate.stage import load
from sidepipe.stages.mitigate.unlearning import Lesson, closest, unlearn
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


def test_noise_on_a_memorized_image_no_longer_leads_back_to_it():
    images = np.random.default_rng(0).integers(256, size=(6, 4, 4, 1)).astype(np.uint8)
    model = Table(images, [5.0, 0, 0, 0, 0, 0])
    lesson = Lesson(
        ordinary=np.arange(1, 6),
        prompts=["a bold seven near marigold"],
        images=np.array([0]),
        for_prompts=np.array([[1, 2]]),
        for_images=np.array([[1, 2]]),
    )
    captions = ["a faint two at noon"] * 6
    x_0 = to_model(torch.from_numpy(images))
    t, noise = torch.full((6,), 50), torch.randn(6, 1, 4, 4, generator=torch.manual_seed(0))

    def distances():
        alpha_bar = model.alphas_cumprod[50]
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
        with torch.no_grad():
            return (model.pred_x_0(x_t, t) - x_0).square().flatten(1).mean(1)

    before = distances()
    method = Unlearning(num_steps=150, batch_size=32, lr=0.1)
    assert np.isfinite(unlearn(model, images, captions, lesson, method, seed=0))
    after = distances()
    assert before[0] < 0.01
    assert after[0] > 0.1
    assert after[3:].max() < 0.1
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


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


@pytest.mark.parametrize("change", [{"num_steps": 19}, {"lr": 0}, {"caption_dropout": 1}])
def test_wrong_settings_are_refused(change):
    [name] = change
    with pytest.raises(ValueError, match=f"mitigate.method.{name} must be"):
        dataclasses.replace(Unlearning(), **change)
