"""Mitigation at inference, on models whose answers are known."""

import numpy as np
import pytest
import torch
from tests.models.text.tiny import tiny_stable_diffusion, tiny_text_model
from tests.stages.mitigate.replaying import CAPTIONS, Replaying

from sidepipe.models.text.guidance import noise_difference, norms
from sidepipe.models.text.pipeline import load_model
from sidepipe.models.text.trajectory import prompt_noise
from sidepipe.models.text.words import ordinary_words
from sidepipe.stages.mitigate.methods import (
    lowered,
    with_words,
    without_word,
)

IMAGE = np.random.default_rng(0).integers(256, size=(4, 4, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return tiny_text_model()


def first_norms(model, x_T, e, t=80):
    return norms(noise_difference(model, x_T, t, e, model.encode([""]))[1])


def test_the_norm_falls_and_the_first_position_stays(model):
    x_T, e = prompt_noise(model, 0, [0, 1], 1), model.encode(CAPTIONS[:2])
    with torch.no_grad():
        before = first_norms(model, x_T, e)
    found, evaluations = lowered(model, x_T, 80, e, model.encode([""]), 0.0, 0.05, 10)
    assert (first_norms(model, x_T, found) < 0.8 * before).all()
    assert torch.equal(found[:, 0], e[:, 0])
    assert not torch.equal(found[:, 1:], e[:, 1:])
    # One without the prompt, and ten of a forward and a backward.
    assert evaluations.tolist() == [31, 31]


def test_an_image_is_mitigated_as_if_it_were_alone_and_stops_when_its_own_norm_is_low(model):
    x_T, e, e_0 = prompt_noise(model, 0, [0, 1], 1), model.encode(CAPTIONS[:2]), model.encode([""])
    with torch.no_grad():
        before = first_norms(model, x_T, e)
    target = float(before.mean())
    both, evaluations = lowered(model, x_T, 80, e, e_0, target, 0.05, 10)
    low, high = (int(i) for i in before.argsort())
    assert torch.equal(both[low], e[low])
    assert evaluations[low] == 2
    assert 2 < evaluations[high] <= 31
    alone, own = lowered(model, x_T[high:][:1], 80, e[high:][:1], e_0, target, 0.05, 10)
    torch.testing.assert_close(both[high:][:1], alone)
    assert own[0] == evaluations[high]


def test_what_is_replayed_fades_to_the_target():
    model = Replaying(IMAGE)
    x_T, e = prompt_noise(model, 0, [0], 1), model.encode(CAPTIONS[:1])
    start = float(first_norms(model, x_T, e))
    found, _ = lowered(model, x_T, 80, e, model.encode([""]), start / 2, 0.05, 10)
    assert start / 4 < float(first_norms(model, x_T, found)) <= start / 2


def test_words_are_added_and_the_prompts_own_keep_their_order():
    rng = np.random.default_rng(0)
    places = set()
    for _ in range(50):
        words = with_words("one two three", ["apple", "pear"] * 2, rng).split()
        assert len(words) == 7
        assert [word for word in words if word not in ("apple", "pear")] == ["one", "two", "three"]
        places.add(words.index("one"))
    assert {0, 4} <= places


def test_words_to_add_are_whole_ordinary_ones(tmp_path):
    model = Replaying(IMAGE)
    words = ordinary_words(model.tokenizer, ["marigold"])
    spoken = {word for caption in CAPTIONS for word in caption.split()}
    assert words == sorted(spoken - {"marigold"})
    of_clip = load_model(tiny_stable_diffusion(tmp_path)).tokenizer
    assert ordinary_words(of_clip, ["b"]) == [*"acdefghijklmnopqrstuvwxyz"]


def test_a_word_is_dropped_whole_by_any_of_its_tokens(tmp_path):
    of_words = Replaying(IMAGE).tokenizer
    assert without_word(of_words, "a bold seven near marigold", 5) == "a bold seven near"
    assert without_word(of_words, "a bold  seven", 1) == "bold seven"
    assert without_word(of_words, "a seven, at noon", 2) == "a at noon"
    of_letters = load_model(tiny_stable_diffusion(tmp_path)).tokenizer
    for position in (2, 3, 4):
        assert without_word(of_letters, "a two by", position) == "a by"
