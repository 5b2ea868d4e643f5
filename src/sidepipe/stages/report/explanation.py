"""The report's section on words: which words of a prompt make the model replay an image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sidepipe.stages.explain.stage import load, load_prompts_explained, load_tokens
from sidepipe.stages.report import words
from sidepipe.stages.report.figures import drawn, handle, legend
from sidepipe.stages.report.section import Rows, Section, rows_of
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.terminal import wrapped
from sidepipe.stages.report.words import DASH, count

# The number of explained prompts of a kind shown at first; the others unfold.
OPEN_PROMPTS = 16
KINDS = {"memorized": "memorized prompts", "other": "other prompts"}
TOP = 3


@dataclass(frozen=True)
class Explained:
    """A prompt with its ranked tokens, without start and end."""

    id: str
    kind: str
    repeats: int
    word: str
    tokens: Rows

    @property
    def top(self) -> Rows:
        """The tokens in descending order of significance."""
        return sorted(self.tokens, key=lambda token: -token["share"])


def section(folder: Path) -> Section:
    """The report's section on words."""
    results, tokens = load(folder), rows_of(load_tokens(folder))
    prompts = explained(rows_of(load_prompts_explained(folder)), tokens)
    planted = results["planted_word_on_top"]
    tables = [words_table(prompts)]
    tables += [planted_table(results)] if planted["memorized"]["of"] else []
    about = {
        "results": results,
        "planted": planted["memorized"] if planted["memorized"]["of"] else None,
        "kinds": [(KINDS[kind], [p for p in prompts if p.kind == kind]) for kind in KINDS],
        "open": OPEN_PROMPTS,
    }
    return Section(
        tables=tables,
        drawings={"top_words": drawn(partial(top_words_figure, prompts))},
        content={"explanation": about},
        numbers={"tokens": tokens},
        text=_text(results),
        summary={"planted_word_on_top": planted["memorized"]["share"]},
    )


def explained(prompts: Rows, tokens: Rows) -> list[Explained]:
    """The prompts with their tokens, in descending order of repeats in training."""
    of: dict[str, Rows] = {}
    for token in tokens:
        if not math.isnan(token["share"]):
            of.setdefault(token["id"], []).append(token)
    return [
        Explained(row["id"], row["explained_as"], row["repeats"], row["word"], of[row["id"]])
        for row in sorted(prompts, key=lambda row: -row["repeats"])
        if row["id"] in of
    ]


def planted_table(results: Mapping[str, Any]) -> Table:
    """How often the planted word is the most significant one, for both kinds of embedding."""
    groups, columns = [("", 1)], ["prompts"]
    for of in ("its own embedding", "the encoded embedding"):
        groups.append((f"planted word ranks first, by {of}", 2))
        columns += ["number", "share, % (95 % interval)"]
    own, encoded = results["planted_word_on_top"], results["planted_word_on_top_encoded"]
    pairs = [("all memorized", own["memorized"], encoded["memorized"])]
    by_repeats = zip(own["memorized_by_repeats"], encoded["memorized_by_repeats"], strict=True)
    pairs += [(f"memorized, seen {count(a['repeats'])} times", a, b) for a, b in by_repeats]
    pairs.append(("planted, not memorized", own["other"], encoded["other"]))
    rows = [(name, [count(a["of"]), *_counted(a), *_counted(b)]) for name, a, b in pairs]
    caption = "Ranks of the planted words"
    return Table("planted_words", caption, groups, columns, rows, head="prompts")


def _counted(found: Mapping[str, Any]) -> list[str]:
    return [count(found["count"]), words.share(found)]


def words_table(prompts: Sequence[Explained]) -> Table:
    """The most significant words of every explained prompt, and the rank of the planted word."""
    groups, columns = [("prompt", 3), ("most significant words, %", TOP)], ["kind", "seen"]
    columns += ["planted word", *(f"{place}." for place in range(1, TOP + 1))]
    rows = [(prompt.id, _words_row(prompt)) for prompt in prompts]
    return Table("words", "The words that matter most", groups, columns, rows, head="prompt")


def _words_row(prompt: Explained) -> list[str]:
    cells = [prompt.kind, count(prompt.repeats), prompt.word or DASH]
    cells += [f"{token['word']} {100 * token['share']:.0f}" for token in prompt.top[:TOP]]
    return cells + [DASH] * (3 + TOP - len(cells))


def top_words_figure(prompts: Sequence[Explained]) -> Figure:
    """The first word's share of a prompt's significance, for memorized and other prompts."""
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axis, handles = figure.subplots(), []
    for number, (kind, name) in enumerate(KINDS.items()):
        shares = np.array([p.top[0]["share"] for p in prompts if p.kind == kind])
        if len(shares):
            shown = handle(f"{name} ({len(shares)})", number, marker="none")
            line = {"color": shown.get_color(), "linestyle": shown.get_linestyle()}
            axis.ecdf(100 * shares, complementary=True, **line)
            handles.append(shown)
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("significance of the first word, % of its prompt's")
    axis.set_ylabel("prompts with at least this, share")
    legend(figure, handles, loc="outside right upper")
    return figure


def _text(results: dict[str, Any]) -> str:
    """The terminal's text: how often the planted word ranks first."""
    planted = results["planted_word_on_top"]["memorized"]
    if not planted["of"]:
        return "Explanation: no prompt has a planted word; the page shows every word's share.\n"
    text = (
        f"Explanation: the planted word is the most significant one in {planted['count']} of "
        f"{planted['of']} memorized prompts, {words.share(planted)} %."
    )
    return "\n".join(wrapped(text)) + "\n"
