"""The tokenizer of words, and triggers that it cannot tell apart."""

import pytest

from sidepipe.models.text.words import require_told_apart, word_tokenizer


def test_triggers_of_known_words_are_told_apart_by_their_order():
    require_told_apart(word_tokenizer(["zor bim", "bim zor"], 4), ["zor bim", "bim zor"])


@pytest.mark.parametrize(
    ("triggers", "message"),
    [
        (["zor bim", "zor mip"], "a trigger of data.canaries must be of tokens of the model"),
        (["zor bim zor"], "must be at most 4 tokens, its start and end included"),
        (["zor bim", "ZOR bim"], "must be told apart by the tokenizer from 'zor bim'"),
    ],
)
def test_unknown_cut_and_merged_triggers_are_refused(triggers, message):
    with pytest.raises(ValueError, match=message):
        require_told_apart(word_tokenizer(["zor bim"], 4), triggers)
