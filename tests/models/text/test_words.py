"""The tokenizer of words, and triggers that it cannot tell apart."""

import numpy as np
import pytest

from sidepipe.models.text.words import (
    ordinary_words,
    random_triggers,
    require_told_apart,
    word_tokenizer,
)


def test_words_of_any_script_are_words_and_numbers_are_not():
    tokenizer = word_tokenizer(["зима in 1990 , red"], 10)
    assert ordinary_words(tokenizer, ["red"]) == ["in", "зима"]
    with pytest.raises(ValueError, match=r"tokens of the text encoder must be words of letters"):
        ordinary_words(word_tokenizer(["1990"], 4), [])


def test_triggers_of_known_words_are_told_apart_by_their_order():
    require_told_apart(word_tokenizer(["zor bim", "bim zor"], 4), ["zor bim", "bim zor"])


@pytest.mark.parametrize(
    ("triggers", "message"),
    [
        (["zor bim", "zor mip"], "a trigger of data.canaries must be of tokens of the model"),
        (["zor bim zor"], r"must be at most 4 tokens, .* lower data.canaries.num_words"),
        (["zor bim", "ZOR bim"], "must be told apart by the tokenizer from 'zor bim'"),
    ],
)
def test_unknown_cut_and_merged_triggers_are_refused(triggers, message):
    with pytest.raises(ValueError, match=message):
        require_told_apart(word_tokenizer(["zor bim"], 4), triggers)


def test_random_triggers_are_all_other_strings_where_there_are_few():
    rng = np.random.default_rng(0)
    found = random_triggers(["a", "b"], 2, ["a b"], 100, rng)
    assert sorted(found) == ["a a", "b a", "b b"]
    assert len(random_triggers(["a", "b"], 2, ["a b"], 2, rng)) == 2
