"""Copies and alignment, on images of which both are known."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tests.models.text.tiny import tiny_stable_diffusion

from sidepipe.features.encoders import Pixels, PixelsL2
from sidepipe.features.preprocessing import OPENAI
from sidepipe.models.text.pipeline import load_model
from sidepipe.stages.mitigate.alignment import CLIPScore, attribute_readers, reading, shares_right
from sidepipe.stages.mitigate.judging import (
    Alignment,
    Copies,
    Known,
    by_image,
    copied,
    read_from,
)

RNG = np.random.default_rng(0)
DATA = RNG.integers(256, size=(30, 4, 4, 1)).astype(np.uint8)
TRAIN = np.arange(20)
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION = {**SMALL, "image_size": 32, "patch_size": 16, "projection_dim": 8}


def clip_config():
    text = {
        **SMALL,
        "projection_dim": 8,
        "vocab_size": 80,
        "eos_token_id": 73,
        "max_position_embeddings": 77,
    }
    return transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)


def copies(encoder, threshold, share=0.5):
    train = encoder.encode(DATA[TRAIN])
    return Copies(DATA, train, encoder, threshold, share, "cpu")


@pytest.mark.parametrize(("encoder", "threshold"), [(PixelsL2(), 0.02), (Pixels(), 0.99)])
def test_copies_of_training_images_are_found_and_of_others_are_not(encoder, threshold):
    near = np.clip(DATA[:2].astype(int) + 2, 0, 255).astype(np.uint8)
    images = np.stack(
        [np.stack([DATA[4], near[0], DATA[25]]), np.stack([DATA[7], DATA[26], 255 - DATA[1]])]
    )
    found = copies(encoder, threshold)
    np.testing.assert_array_equal(found.of_any(images), [[True, True, False], [True, False, False]])
    # Of the wanted image alone, be it of the training set or not.
    rows = np.array([25, 7])
    np.testing.assert_array_equal(
        found.of(images, rows), [[False, False, True], [True, False, False]]
    )


def test_a_prompt_is_memorized_where_enough_of_its_images_are_copies():
    found = np.zeros((3, 10), bool)
    found[0, :7], found[1, :6] = True, True
    rates = copies(PixelsL2(), 0.02, share=0.7).rates(found)
    assert rates["prompts"]["count"] == 1
    assert rates["prompts"]["of"] == 3
    assert rates["images"]["mean"] == pytest.approx(13 / 30)
    # Clopper and Pearson, of 1 in 3.
    np.testing.assert_allclose(rates["prompts"]["interval"], [0.0084, 0.9057], atol=1e-4)


def test_rates_are_told_by_group_and_of_memorized_prompts_by_repeats():
    table = pd.DataFrame(
        {"group": ["memorized"] * 3 + ["other"], "repeats": [4, 64, 64, 0], "used": False}
    )
    rows = [[25, 26], [1, 1], [27, 1], [2, 2]]  # those below 20 are training images
    table, rates = copied(table, DATA[np.array(rows)], copies(PixelsL2(), 0.02))
    assert table["copies"].tolist() == [0, 2, 1, 2]
    assert rates["memorized"]["prompts"]["count"] == 2
    assert rates["other"]["prompts"]["of"] == 1
    by_repeats = [(row["repeats"], row["prompts"]["count"]) for row in rates["by_repeats"]]
    assert by_repeats == [(4, 0), (64, 2)]


def pictured(bold, tall):
    """Bright ones are bold, and tall ones have a column in the middle, with noise on top."""
    rng = np.random.default_rng(len(bold))
    images = np.where(np.array(bold)[:, None, None], 150, 50) + rng.integers(
        40, size=(len(bold), 4, 4)
    )
    images[np.array(tall), :, 1:3] += 60
    return images[..., None].astype(np.uint8)


def described(bold, tall):
    return [
        {"tone": "bold" if b else "faint", "shape": "tall" if t else "flat"}
        for b, t in zip(bold, tall, strict=True)
    ]


def flags(count, seed):
    rng = np.random.default_rng(seed)
    return rng.random(count) < 0.5, rng.random(count) < 0.5


def test_attributes_are_read_off_images_and_their_shares_are_means_of_what_is_known():
    train = flags(100, 1)
    readers = attribute_readers(pictured(*train), described(*train), 0)
    bold, tall = flags(50, 2)
    images = pictured(bold, tall)
    for values in reading(readers, images, described(bold, tall)).values():
        assert values.mean() > 0.95
    # Captions that say the opposite of one attribute, or leave it out, or say nothing.
    wrong = described(bold, ~tall)
    assert shares_right(readers, images, wrong).mean() == pytest.approx(0.5, abs=0.03)
    known = [{"tone": has["tone"]} for has in wrong]
    assert shares_right(readers, images, known).mean() > 0.95
    assert np.isnan(shares_right(readers, images, [{}] * 50)).all()


def test_readers_never_see_what_prompts_replay_and_their_ceiling_is_of_unseen_images():
    bold, tall = flags(120, 3)
    images, said = pictured(bold, tall), described(bold, tall)
    said[7] = {"tone": "planted", "shape": "tall"}  # a value that only image 7 has
    captions = pd.DataFrame({"caption": "a", "attributes": said})
    known = Known(images, captions, np.arange(80), np.arange(80, 120))
    alignment = read_from(known, [7], "cpu", 0)
    assert "planted" not in alignment.readers["tone"].classes_
    assert alignment.measure == "attributes"
    assert all(0.9 < share <= 1 for share in alignment.ceiling.values())
    both = alignment.of(images[:4].reshape(2, 2, 4, 4, 1), ["a"] * 2, [said[0], {}])
    assert 0 <= both[0] <= 1
    assert np.isnan(both[1])


def test_without_attributes_alignment_is_not_measured():
    known = Known(DATA, None, TRAIN, np.arange(20, 30))
    alignment = read_from(known, [], "cpu", 0)
    assert alignment.measure is None
    assert np.isnan(alignment.of(DATA[:4].reshape(2, 2, 4, 4, 1), ["a", "b"], [{}, {}])).all()


def test_clip_scores_are_cosines_of_the_models_own_embeddings(tmp_path):
    transformers.CLIPModel(clip_config()).eval().save_pretrained(tmp_path / "clip")
    sd = load_model(tiny_stable_diffusion(tmp_path / "sd"))
    sd.tokenizer.save_pretrained(tmp_path / "clip")
    images = RNG.integers(256, size=(3, 32, 32, 3)).astype(np.uint8)
    said = ["a six", "noon", "a six"]
    CLIPScore(str(tmp_path / "clip")).check()
    found = Alignment(str(tmp_path / "clip"), "cpu").of(images[:, None], said, [{}] * 3)
    model = transformers.CLIPModel.from_pretrained(tmp_path / "clip").eval()
    pixels = (
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(OPENAI[0])[:, None, None]
    )
    inputs = sd.tokenizer(said, padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = pixels / torch.tensor(OPENAI[1])[:, None, None]
        out = model(pixel_values=pixels, **inputs)
    expected = (out.image_embeds * out.text_embeds).sum(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_image_half_of_clip_alone_is_refused(tmp_path):
    config = transformers.CLIPVisionConfig(**VISION)
    folder = tmp_path / "half"
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"mitigate.clip must be a CLIP model with its text half"):
        CLIPScore(str(folder)).check()


def test_each_image_counts_once_however_many_prompts_replay_it():
    table = pd.DataFrame(
        {
            "group": ["memorized"] * 4 + ["other"] * 2,
            "number": range(6),
            "nearest": [7, 7, 7, 8, 1, 1],
            "still": [True, True, False, False, True, False],
            "gamma": 0.5,
            "alignment": [0.0, 0.3, 0.6, 0.9, np.nan, 1.0],
        }
    )
    found = by_image(table)
    assert found["memorized"]["still"]["of"] == 2
    assert found["memorized"]["still"]["mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["memorized"]["alignment"]["mean"] == pytest.approx((0.3 + 0.9) / 2)
    assert found["other"]["still"]["of"] == 2  # each prompt is its own cluster
    assert found["other"]["alignment"]["of"] == 1
    assert "recovered" not in found["memorized"]
