"""The page on words: every word's share of significance, in color, as a number and in a table."""

import csv
import json
import re

import pytest

from sidepipe.stages.explain.stage import load_prompts_explained, load_tokens
from sidepipe.stages.report.explanation import Explained, top_words_figure
from sidepipe.stages.report.stage import page_path

PLANTED = "Ranks of the planted words"
WORDS = "The words that matter most"


@pytest.fixture(scope="module")
def page(prompted):
    return prompted[2]


@pytest.fixture(scope="module")
def tokens(prompted):
    table = load_tokens(prompted[0].inputs["explain"]).dropna(subset=["share"])
    return dict(iter(table.groupby("id", sort=False)))


@pytest.fixture(scope="module")
def results(prompted):
    return json.loads((prompted[0].inputs["explain"] / "results.json").read_text())


def spoken(folder):
    """{prompt: [(share, title, word, number), ...]} as the page has them."""
    text = page_path(folder).read_text()
    found = {}
    for said, words in re.findall(
        r'<span class="said">(\w+).*?<p class="spoken">(.*?)</p>', text, re.DOTALL
    ):
        pattern = r'--share: ([\d.]+)" title="(.*?)">(.*?)<rt>(\d+)</rt>'
        found[said] = re.findall(pattern, words)
    return found


def test_every_word_has_its_share_as_color_as_number_and_to_hover(prompted, tokens):
    shown = spoken(prompted[0].folder / "report")
    assert set(shown) == set(tokens)
    for prompt, words in shown.items():
        expected = [
            (f"{s:.3f}", f"{w}: {100 * s:.1f} % of the significance", w, f"{100 * s:.0f}")
            for w, s in zip(tokens[prompt]["word"], tokens[prompt]["share"], strict=True)
        ]
        assert words == expected
        assert sum(float(share) for share, *_ in words) == pytest.approx(1, abs=0.01)


def test_start_and_end_are_no_words_and_that_is_said(prompted, page):
    assert "start and end token are not ranked" in page.text
    shown = spoken(prompted[0].folder / "report")
    assert not [word for words in shown.values() for _, _, word, _ in words if "start" in word]


def test_planted_words_are_marked_without_color(prompted, page):
    planted = [a["title"].partition(":")[0] for a in page.all("ruby") if "planted" in a["class"]]
    prompts = load_prompts_explained(prompted[0].inputs["explain"])
    assert sorted(planted) == sorted(word for word in prompts["word"] if word)
    assert planted


def test_the_planted_word_on_top_is_counted_with_its_interval(page, results):
    rows = {name: cells for name, *cells in page.tables[PLANTED][2:]}
    found = results["planted_word_on_top"]
    all_of = found["memorized"]
    low, high = (100 * end for end in all_of["interval"])
    assert rows["all memorized"][:3] == [
        str(all_of["of"]),
        str(all_of["count"]),
        f"{100 * all_of['share']:.1f} ({low:.1f} to {high:.1f})",
    ]
    encoded = results["planted_word_on_top_encoded"]["memorized"]
    assert rows["all memorized"][3] == str(encoded["count"])
    by = [f"memorized, seen {row['repeats']} times" for row in found["memorized_by_repeats"]]
    assert list(rows)[1:-1] == by
    assert rows["planted, not memorized"][0] == str(found["other"]["of"])
    text = page.text.replace("\xa0", " ")
    assert f"in {all_of['count']} of {all_of['of']} memorized prompts with a planted word" in text


def test_the_table_has_the_words_that_matter_most_in_order(page, tokens):
    rows = {name: cells for name, *cells in page.tables[WORDS][2:]}
    assert set(rows) == set(tokens)
    for prompt, cells in rows.items():
        top = tokens[prompt].sort_values("share", ascending=False).head(3)
        assert cells[3:] == [
            f"{word} {100 * share:.0f}"
            for word, share in zip(top["word"], top["share"], strict=True)
        ]


def test_prompts_that_training_repeated_most_come_first(page):
    seen = [int(row[2]) for row in page.tables[WORDS][2:]]
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == 16


def test_the_figure_says_what_share_of_prompts_has_a_word_of_so_much():
    def prompt(number, kind, *shares):
        tokens = [{"word": "x", "share": share} for share in shares]
        return Explained(str(number), kind, 1, "", tokens)

    some = [prompt(0, "memorized", 0.2, 0.8), prompt(1, "memorized", 0.5, 0.5)]
    axis = top_words_figure([*some, prompt(2, "other", 0.4, 0.6)]).axes[0]
    memorized, other = axis.lines
    assert sorted(set(memorized.get_xdata())) == [50, 80]
    assert memorized.get_linestyle() != other.get_linestyle()


def test_every_token_is_in_a_csv(prompted):
    with (prompted[0].folder / "report" / "tables" / "tokens.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(load_tokens(prompted[0].inputs["explain"]))
    assert {"id", "position", "word", "significance", "share"} <= set(rows[0])


def test_without_planted_words_shares_stand_there_and_nothing_is_counted(unknown):
    _, summary, page = unknown
    assert "No prompt here has a planted word" in page.text
    assert PLANTED not in page.tables
    assert page.all("ruby")
    assert summary["explain"]["planted_word_on_top"] is None
