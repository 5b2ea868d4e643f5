import numpy as np
import pandas as pd
import pytest
import torch
from tests.stages.extract.test_lora import ExactLabeled
from tests.stages.extract.test_stage import (
    ALPHAS_CUMPROD,
    IMAGES,
    LABELS,
    RUNTIME,
    ExactUNet,
    clusters,
)

from sidepipe.base.images import to_model
from sidepipe.base.settings import check_field_types
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.guidance import Posterior
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import clip_x_0
from sidepipe.engine.shards import write_shard
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.detect.label_signals import label_difference
from sidepipe.stages.detect.labels import DetectLabels, load_labels

TIMESTEPS = list(range(950, -1, -50))


def detect(**changes) -> DetectLabels:
    settings = {
        "surrogate": "posterior",
        "num_generations": 3,
        "num_inference_steps": 20,
        "num_steps": 6,
        "guidance_scale": 1.0,
        "timestep_spacing": "leading",
        "precision": "32-true",
        "seed": 0,
    }
    return DetectLabels(**check_field_types("detect", DetectLabels, {**settings, **changes}))


def exact():
    return Denoiser(ExactUNet(), ALPHAS_CUMPROD, "epsilon", (1, 4, 4))


def posterior():
    return Posterior(to_model(IMAGES), torch.from_numpy(LABELS), ALPHAS_CUMPROD)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """An exact model of six images of three labels, which it also generated."""
    monkeypatch.setattr("sidepipe.stages.detect.labels.load_denoiser", lambda *_: exact())
    monkeypatch.setattr("sidepipe.stages.attack.strategies.load_lora", lambda *_: ExactLabeled())
    write_shard(tmp_path / "generate", 0, IMAGES)
    (tmp_path / "label").mkdir()
    np.save(tmp_path / "label" / "labels.npy", LABELS)
    clusters(tmp_path / "label", [0.9, 0.8, 0.7])
    return {name: tmp_path / name for name in ("dpm", "generate", "label", "lora")}


def run(folder, inputs, runtime=RUNTIME, **changes):
    folder.mkdir(exist_ok=True)
    return detect(**changes).run(Job(folder, inputs, runtime)), load_labels(folder)


def written_out(label, scale=1.0, steps=6):
    """Mean || D_t || of three images of a label, from its definition."""
    noise = image_noise(0, "prompts", [label * 1_000_000 + g for g in range(3)], (1, 4, 4))
    y, lengths, plain = torch.full((3,), label), [], exact().eps_fn(torch.zeros(3))

    def eps_fn(x_t, t):
        D_t = ExactLabeled().eps_fn(y)(x_t, t) - plain(x_t, t)
        lengths.append(D_t.flatten(1).norm(dim=1))
        return plain(x_t, t) + scale * D_t

    ddim(clip_x_0(eps_fn, ALPHAS_CUMPROD), noise(), TIMESTEPS[:steps], ALPHAS_CUMPROD)
    return float(torch.stack(lengths).mean())


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("surrogate", ["posterior", "lora"])
def test_the_signal_is_the_mean_length_of_what_a_label_changes(tmp_path, inputs, surrogate, scale):
    summary, table = run(tmp_path / "out", inputs, surrogate=surrogate, guidance_scale=scale)
    assert table["label"].tolist() == [0, 1, 2]
    assert table["size"].tolist() == [9, 10, 11]
    assert table["cohesion"].tolist() == [0.9, 0.8, 0.7]
    expected = [written_out(label, scale) for label in range(3)]
    np.testing.assert_allclose(table["signal"], expected, rtol=1e-3)
    assert table["signal"].nunique() == 3
    assert summary["num_labels"] == 3
    assert summary["unet_forwards"] == summary["surrogate_gradients"] == 3 * 3 * 6


def test_a_gradient_and_an_adapted_model_say_the_same_where_both_are_exact():
    x_t = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y, t = torch.tensor([0, 1, 2, 0]), 600
    eps = exact().eps_fn(y)(x_t, t)
    one, two = (
        label_difference(exact(), surrogate, y)(x_t, t, eps)
        for surrogate in (posterior(), ExactLabeled())
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_the_signal_depends_neither_on_the_batch_nor_on_a_kill(tmp_path, inputs):
    _, expected = run(tmp_path / "whole", inputs)
    small = Runtime(accelerator="cpu", sampling_batch_size=1)
    _, found = run(tmp_path / "small", inputs, small)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4)
    assert len(list((tmp_path / "small" / "parts").iterdir())) == 3
    (tmp_path / "small" / "parts" / "0000001-0000002.safetensors").unlink()
    _, again = run(tmp_path / "small", inputs, small)
    pd.testing.assert_frame_equal(again, found)


def test_it_reads_what_its_surrogate_was_trained_as():
    assert detect().inputs() == ("dpm", "generate", "label")
    for surrogate in ("classifier", "lora"):
        assert detect(surrogate=surrogate).inputs() == ("dpm", "generate", "label", surrogate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 0}, r"detect.num_generations must be >= 1, got 0"),
        ({"num_steps": 21}, r"detect.num_steps must be in \[1, detect.num_inference_steps = 20\]"),
        ({"guidance_scale": -1.0}, r"detect.guidance_scale must be >= 0, got -1.0"),
        ({"seed": -1}, r"detect.seed must be in \[0, 2\*\*32\), got -1"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        detect(**changes)
