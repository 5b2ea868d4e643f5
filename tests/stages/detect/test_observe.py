"""Watching a model: known differences, batches of any size, full memory, ignored prompts."""

import logging

import numpy as np
import pytest
import torch
from tests.models.text.tiny import tiny_text_model
from tests.stages.detect.fakes import Fake

from sidepipe.engine.stage import NoMaterial
from sidepipe.models.text.trajectory import prompt_noise, prompt_timesteps
from sidepipe.stages.detect.observe import Watch, halving, observe, require_guidance
from sidepipe.stages.detect.signals import pair_ssim, residuals

ALL = ("norm", "hessian", "entropy", "ssim", "tile_l2")


def watch(signals=ALL, layer=None, n=3):
    return Watch(n, 4, 2.0, signals, layer, seed=0)


def test_norms_are_those_of_the_known_difference_at_every_step():
    found, images = observe(
        Fake(), ["ab", "abcde"], range(2), watch(["norm"]), halving(4), halving(4)
    )
    np.testing.assert_allclose(found["norm"][0], np.full((3, 4), 2), rtol=1e-5)
    np.testing.assert_allclose(found["norm"][1], np.full((3, 4), 5), rtol=1e-5)
    assert set(found) == {"norm"}
    assert images.shape == (2, 3, 8, 8, 1)
    assert images.dtype == np.uint8


def test_the_similarity_is_of_what_the_prompt_alone_predicts_first():
    model = tiny_text_model()
    found, _ = observe(
        model, ["marigold"], range(5, 6), watch(["norm", "ssim"]), halving(8), halving(8)
    )
    x_T, e = prompt_noise(model, 0, [5], 3), model.encode(["marigold"] * 3)
    with torch.no_grad():
        eps = model.eps(x_T, prompt_timesteps(model, 4)[0], e)
    expected = pair_ssim(residuals(x_T, eps)).numpy()
    np.testing.assert_allclose(found["ssim"][0], expected, atol=1e-4)


def test_batches_and_neighbors_change_what_is_seen_by_rounding_alone():
    model = tiny_text_model()
    captions = ["marigold", "a faint two at noon", "a bold seven"]
    whole, images = observe(model, captions, range(4, 7), watch(), halving(100), halving(100))
    parts, same = observe(model, captions, range(4, 7), watch(), halving(2), halving(2))
    alone, own = observe(model, captions[1:2], range(5, 6), watch(), halving(100), halving(100))
    assert set(whole) == set(ALL)
    for name, rows in whole.items():
        np.testing.assert_allclose(parts[name], rows, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(alone[name][0], rows[1], rtol=1e-3, atol=1e-4)
    assert np.abs(images.astype(int) - same).max() <= 1
    assert np.abs(images[1].astype(int) - own[0]).max() <= 1


def test_the_entropy_is_of_the_layer_asked_for_and_the_mean_of_all_without():
    model = tiny_text_model()
    of = [
        observe(
            model, ["marigold"], range(1), watch(["norm", "entropy"], layer), halving(8), halving(8)
        )[0]
        for layer in (1, 2, 3, 4, None)
    ]
    layers = np.stack([found["entropy"] for found in of[:4]])
    np.testing.assert_allclose(layers.mean(0), of[4]["entropy"], rtol=1e-5)
    assert len(np.unique(layers.round(6))) > 4
    with pytest.raises(ValueError, match=r"detect.attention_layer must be <= 4, .* got 5"):
        observe(
            model, ["marigold"], range(1), watch(["norm", "entropy"], 5), halving(8), halving(8)
        )


def test_full_memory_halves_the_batches_for_good_and_nothing_is_made_twice(caplog):
    sizes, made = [], []

    def step(some):
        sizes.append(some.stop - some.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("full")
        made.extend(range(some.start, some.stop))
        return some.start

    in_batches = halving(10)
    with caplog.at_level(logging.WARNING):
        in_batches(step, 12)
    assert made == list(range(12))
    assert sizes == [10, 5, 3, 3, 3, 3]
    in_batches(step, 2)
    assert sizes[-1] == 2
    assert "continuing with 3 images at once" in caplog.text


def test_one_image_that_does_not_fit_is_an_error():
    def step(some):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        halving(2)(step, 2)


class Deaf(Fake):
    def pattern(self, x_t):
        return torch.zeros_like(x_t)


class Broken(Fake):
    def pattern(self, x_t):
        return torch.full_like(x_t, torch.nan)


def test_a_model_that_ignores_its_prompt_is_refused_before_anything_is_made():
    require_guidance(Fake(), ["a", ""], 0, 4)
    with pytest.raises(ValueError, match=r"is 0 for every prompt: the model ignores its") as raised:
        require_guidance(Deaf(), ["a", "b"], 0, 4)
    assert not isinstance(raised.value, NoMaterial), "an empty result would pass for a finished run"
    with pytest.raises(ValueError, match=r"must be finite, got nan; use detect.precision=32-true"):
        require_guidance(Broken(), ["a", "b"], 0, 4)
