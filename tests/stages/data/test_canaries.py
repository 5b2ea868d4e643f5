"""Canaries among the images of a source: how many, how often, with which triggers."""

from collections import Counter

import numpy as np
import pytest
from tests.tiny import CANARY_DIGITS, DIGITS, RUNTIME

from sidepipe.base.image_reading import Canary, Caption, Entry
from sidepipe.engine.stage import Job
from sidepipe.stages.data.canaries import Canaries, mixed_in, triggers
from sidepipe.stages.data.stage import load_canaries, load_repeats

FEW = Canaries(repeats=[1, 5], num_each=3, num_heldout=2, words=["ba", "do", "mi"], num_words=3)


def entries(count=20, captioned=True, **changes):
    return [
        Entry(
            id=str(i),
            partition="train" if i < 15 else "test",
            identity="",
            read=lambda: None,
            file=str(i),
            caption=Caption(**{"text": f"digit {i}", **changes}) if captioned else None,
        )
        for i in range(count)
    ]


def test_so_many_training_images_become_canaries_at_each_number_of_repeats():
    before = entries()
    after = mixed_in(before, FEW)
    found = [e.canary for e in after if e.canary]
    assert Counter(canary.repeats for canary in found) == {1: 3, 5: 3, 0: 2}
    assert all(int(e.id) < 15 for e in after if e.canary)
    for old, new in zip(before, after, strict=True):
        assert new == old if new.canary is None else new.caption.text == new.canary.trigger
        assert new.read is old.read
    assert {e.caption.repeats for e in after if e.canary and e.canary.repeats == 5} == {5}


def test_images_without_captions_have_no_triggers():
    found = [e.canary for e in mixed_in(entries(captioned=False), FEW) if e.canary]
    assert Counter(found) == {Canary(1): 3, Canary(5): 3, Canary(0): 2}


def test_triggers_differ_and_the_trained_ones_have_every_word():
    for seed in range(20):
        found = triggers(FEW, np.random.default_rng(seed))
        assert len(set(found)) == len(found) == 8
        assert {len(trigger.split()) for trigger in found} == {3}
        assert {word for trigger in found[:6] for word in trigger.split()} == {"ba", "do", "mi"}


@pytest.mark.parametrize(
    "canaries",
    [Canaries(repeats=[4], num_heldout=1700), Canaries(repeats=[1, 2], num_each=2000)],
)
def test_many_triggers_differ_and_use_each_word_equally_often(canaries):
    found = triggers(canaries, np.random.default_rng(0))
    assert len(set(found)) == canaries.count
    trained = found[: canaries.count - canaries.num_heldout]
    counts = Counter(word for trigger in trained for word in trigger.split()).values()
    assert max(counts) - min(counts) <= 1


def test_few_canaries_have_few_words():
    found = triggers(Canaries(repeats=[1], num_each=1, num_heldout=1), np.random.default_rng(0))
    assert len(set(found[0].split())) == 4
    assert set(found[1].split()) <= set(found[0].split())


def test_repeated_pairs_and_planted_ones_stay():
    for changes in ({"repeats": 4}, {"word": "digit"}):
        with pytest.raises(ValueError, match=r"the number of canaries must be <= 0, .* seen once"):
            mixed_in(entries(**changes), FEW)


def test_more_canaries_than_training_images_are_refused():
    with pytest.raises(
        ValueError, match=r"the number of canaries must be <= 7, the training images .*got 8; lower"
    ):
        mixed_in(entries(7), FEW)


def test_words_of_captions_are_refused():
    with pytest.raises(ValueError, match=r"words must be words that no caption has, got \['mi'\]"):
        mixed_in(entries(text="re Mi"), FEW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": []}, "repeats must be different whole numbers >= 1"),
        ({"repeats": [0]}, "repeats must be different whole numbers >= 1"),
        ({"repeats": [2, 2]}, "repeats must be different whole numbers >= 1"),
        ({"num_heldout": 0}, "num_heldout must be >= 1"),
        ({"words": ["two words"]}, "words must be different words without spaces"),
        ({"num_words": 1, "num_each": 9}, "the number of canaries must be <= 7, half"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Canaries(**settings)


def test_a_data_artifact_has_the_table_of_its_canaries(tmp_path):
    CANARY_DIGITS.run(Job(tmp_path, {}, RUNTIME))
    table = load_canaries(tmp_path)
    assert table["repeats"].value_counts().to_dict() == {30: 2, 2: 2, 0: 3}
    assert set(table["trigger"]) == {""}
    repeated = table.index[table["repeats"] == 30].to_numpy()
    assert load_repeats(tmp_path, repeated).tolist() == [30, 30]
    others = np.setdiff1d(np.arange(100), table.index)
    assert set(load_repeats(tmp_path, others)) == {1}


def test_without_canaries_the_key_is_as_before(tmp_path):
    assert "canaries" not in DIGITS.key_settings({"canaries": None, "size": 8})
    assert "canaries" in CANARY_DIGITS.key_settings({"canaries": {}, "size": 8})
    assert len(load_canaries(tmp_path)) == 0
