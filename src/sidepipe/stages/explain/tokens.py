"""The table of tokens, and how often a planted word has the highest significance."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sidepipe.memorization.rates import mean, rate
from sidepipe.stages.detect.groups import GROUPS

# Start and end token, the first and last of every prompt, are no words and are not ranked.
FIRST, LAST = 1, -1

Values = Float[np.ndarray, "p l"]


def token_table(
    ids: Sequence[str], words: Sequence[Sequence[str]], significance: Values, encoded: Values
) -> pd.DataFrame:
    """A row per token: id (of the prompt), position, word, significance, share and encoded.

    words: of each prompt, with start and end token. share: of the significance of the tokens in
    between, which are ranked; nan for start and end. encoded: the significance by the encoded
    embedding.
    """
    tables = []
    for prompt, spoken, own, other in zip(ids, words, significance, encoded, strict=True):
        own, other = own[: len(spoken)], other[: len(spoken)]
        shares = np.full(len(spoken), np.nan)
        shares[FIRST:LAST] = own[FIRST:LAST] / max(own[FIRST:LAST].sum(), 1e-30)
        about = {"id": prompt, "position": range(len(spoken)), "word": spoken}
        about |= {"significance": own, "share": shares, "encoded": other}
        tables.append(pd.DataFrame(about))
    return pd.concat(tables, ignore_index=True)


def top_tokens(tokens: pd.DataFrame, by: str) -> pd.DataFrame:
    """Each prompt's ranked token with the highest value in a column, by the prompt's id."""
    ranked = tokens.dropna(subset="share").sort_values(by, ascending=False, kind="stable")
    return ranked.drop_duplicates("id").set_index("id")


def summary(
    tokens: pd.DataFrame, prompts: pd.DataFrame, pieces: Callable[[str], Sequence[str]]
) -> dict[str, Any]:
    """How concentrated significance is, and how often a planted word has the highest one.

    prompts: id, word, repeats and group. pieces: the tokens of a word; any of them counts as the
    word.
    """
    top = top_tokens(tokens, "share")
    by_group = prompts.set_index("id")["group"]
    shares = {name: top["share"][by_group[top.index] == name] for name in GROUPS}
    return {
        "top_share": {name: mean(np.asarray(values)) for name, values in shares.items()},
        "planted_word_on_top": _planted(top, prompts, pieces),
        "planted_word_on_top_encoded": _planted(top_tokens(tokens, "encoded"), prompts, pieces),
    }


def _planted(
    top: pd.DataFrame, prompts: pd.DataFrame, pieces: Callable[[str], Sequence[str]]
) -> dict[str, Any]:
    """Rates of both groups, and of memorized prompts by repeats; only with a planted word."""
    found = top["word"].to_dict()
    rows = [
        (row["group"], row["repeats"], found[row["id"]] in pieces(row["word"]))
        for row in prompts.to_dict("records")
        if row["word"] and row["id"] in found
    ]
    group = np.array([row[0] for row in rows], str)
    repeats = np.array([row[1] for row in rows], np.int64)
    on_top = np.array([row[2] for row in rows], bool)
    ours = group == "memorized"
    return {
        **{name: rate(on_top[group == name]) for name in GROUPS},
        "memorized_by_repeats": [
            {"repeats": int(r), **rate(on_top[ours & (repeats == r)])}
            for r in np.unique(repeats[ours])
        ],
    }
