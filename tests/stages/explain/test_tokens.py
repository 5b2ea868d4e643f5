"""The table of tokens and its summary, on prompts made by hand."""

import numpy as np
import pandas as pd
import pytest

from sidepipe.stages.explain.tokens import summary, token_table

IDS = ["p0", "p1", "p2", "p3"]
WORDS = [
    ["<s>", "a", "six", "marigold", "<e>"],
    ["<s>", "mari", "gold", "a", "<e>"],
    ["<s>", "a", "ivy", "<e>"],
    ["<s>", "noon", "<e>"],
]
# The start and end tokens have the most, and are not ranked; the last column is padding.
SIGNIFICANCE = np.array(
    [[9, 1, 2, 5, 9, 7], [9, 1, 4, 3, 9, 7], [9, 3, 1, 9, 7, 7], [9, 2, 9, 7, 7, 7]], float
)
PROMPTS = pd.DataFrame(
    {
        "id": IDS,
        "word": ["marigold", "marigold", "ivy", ""],
        "repeats": [64, 4, 1, 1],
        "group": ["memorized", "memorized", "other", "other"],
    }
)


def pieces(word):
    return {"marigold": ["mari", "gold", "marigold"], "ivy": ["ivy"]}[word]


@pytest.fixture
def tokens():
    encoded = SIGNIFICANCE.copy()
    encoded[0, 1] = 8  # by encoded embeddings the first prompt's "a" is on top
    return token_table(IDS, WORDS, SIGNIFICANCE, encoded)


def test_every_token_has_a_row_and_words_share_what_is_theirs(tokens):
    first = tokens[tokens["id"] == "p0"]
    assert first["word"].tolist() == WORDS[0]
    assert first["position"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(first["share"][1:4], [1 / 8, 2 / 8, 5 / 8])
    assert first["share"].isna().tolist() == [True, False, False, False, True]
    assert len(tokens) == sum(map(len, WORDS))


def test_planted_words_on_top_are_counted_by_group_and_repeats(tokens):
    found = summary(tokens, PROMPTS, pieces)["planted_word_on_top"]
    assert (found["memorized"]["count"], found["memorized"]["of"]) == (2, 2)
    assert (found["other"]["count"], found["other"]["of"]) == (0, 1)
    rows = [(row["repeats"], row["count"]) for row in found["memorized_by_repeats"]]
    assert rows == [(4, 1), (64, 1)]
    # Clopper and Pearson, of 2 in 2.
    np.testing.assert_allclose(found["memorized"]["interval"], [0.1581, 1], atol=1e-4)


def test_encoded_embeddings_are_counted_beside_them(tokens):
    found = summary(tokens, PROMPTS, pieces)["planted_word_on_top_encoded"]
    assert found["memorized"]["count"] == 1


def test_concentration_is_the_share_of_the_top_word(tokens):
    found = summary(tokens, PROMPTS, pieces)["top_share"]
    assert found["memorized"]["mean"] == pytest.approx((5 / 8 + 4 / 8) / 2)
    assert found["other"]["mean"] == pytest.approx((3 / 4 + 1) / 2)


def test_without_planted_words_and_with_an_empty_prompt_nothing_is_counted():
    prompts = PROMPTS.assign(word="")
    tokens = token_table(IDS, [*WORDS[:3], ["<s>", "<e>"]], SIGNIFICANCE, SIGNIFICANCE)
    found = summary(tokens, prompts, pieces)
    assert found["planted_word_on_top"]["memorized"]["share"] is None
    assert found["planted_word_on_top"]["memorized_by_repeats"] == []
    assert found["top_share"]["other"]["of"] == 1
