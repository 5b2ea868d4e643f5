"""The page of a sweep and its files, at every stage of the sweep."""

import base64
import csv
import re
from html.parser import HTMLParser

import pytest
from tests.stages.report.conftest import NASTY
from tests.stages.report.pages import Page
from tests.stages.report.sweep.conftest import FAILED, QUEUED, SIZE

from sidepipe.stages.report.document import load_table, page_path
from sidepipe.stages.report.sweep import page as sweep_page
from sidepipe.stages.report.sweep.page import write_sweep
from sidepipe.stages.report.sweep.points import Missing, Point, read
from sidepipe.stages.report.sweep.quantities import EXCESS, QUANTITIES
from sidepipe.stages.report.sweep.terminal import sweep_text

TABLES = ["means", "models", "paper", "runs", "seeds"]


@pytest.fixture
def one_figure(monkeypatch):
    """Figures take most of the time."""
    monkeypatch.setattr(sweep_page, "QUANTITIES", (EXCESS,))


def test_the_head_says_what_was_swept_and_how_much_is_done(written):
    _, page = written
    assert f"Swept: {SIZE} (64, 256, 1,024), seed (0, 1)." in page.text
    assert "Finished: 5 of 6 points, 10 of 12 attacks." in page.text
    assert page.headings == [
        "Missing: 1 failed, 1 queued",
        "Hits at 1\N{NO-BREAK SPACE}% held-out false positives",
        "How much each model has memorized",
        "Comparison with the paper",
        "Where the numbers come from",
    ]


def test_what_is_missing_is_named_with_its_state_and_key(written):
    _, page = written
    said = page.text.split("Missing: ")[1].split("Hits at")[0]
    assert f"{SIZE}=1024, seed=1: early {FAILED.key}{FAILED.state}" in said
    assert said.index("failed") < said.index("queued")
    assert QUEUED.key in said
    assert all("open" in attrs for attrs in page.all("details"))


def test_a_sentence_names_the_largest_mean_excess_and_plain_sampling_beside_it(written, seeded):
    _, page = written
    done = [spot for spot in read(seeded).spots if spot.finished]
    best = max(done, key=EXCESS.mean)
    plain = next(s for s in done if s.place == best.place and s.attack == "unconditional")
    assert best.attack == "early"
    low, high = EXCESS.range(best)
    runs = f"{low:.2f} to {high:.2f} in {len(best.finished)} runs"
    assert f"early at {best.place} has the largest excess" in page.text
    assert f"{EXCESS.mean(best):.2f} % ({runs}) of its images; unconditional" in page.text
    assert f"has {EXCESS.mean(plain):.2f} %" in page.text


def test_files_are_those_of_the_page(written, seeded):
    folder, page = written
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        "report.html",
        "table.txt",
        "tables/attacks.csv",
        *(f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")),
        *(f"figures/{q.name}.{kind}" for q in QUANTITIES for kind in ("svg", "pdf")),
    }
    shown = [base64.b64decode(image["src"].partition(",")[2]) for image in page.all("img")]
    assert shown == [(folder / "figures" / f"{q.name}.svg").read_bytes() for q in QUANTITIES]
    assert load_table(folder) == sweep_text(read(seeded)).rstrip()
    with (folder / "tables" / "attacks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row[SIZE], row["seed"], row["attack"]) for row in rows[:3]] == [
        ("64", "0", "unconditional"),
        ("64", "0", "early"),
        ("64", "1", "unconditional"),
    ]
    assert all(row["key"] and row["calibrated_0.01_train_count"] for row in rows)


def test_a_table_of_the_page_is_that_of_the_file(written):
    folder, page = written
    with (folder / "tables" / "runs.csv").open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    plain = [[c.replace("\N{NO-BREAK SPACE}", " ") for c in row] for row in rows]
    assert page.tables["Every finished run"][2:] == plain


def test_the_page_needs_nothing_from_outside_and_links_to_the_points_reports(written, planted):
    folder, page = written
    links = [attrs["href"] for attrs in page.all("a")]
    assert len(links) == len(planted)
    assert all((folder / link).parent.is_dir() for link in links)
    assert (folder / links[1]).resolve() == page_path(planted[64, 1].folder).resolve()
    others = set(page.addresses) - set(links)
    assert all(address.startswith("data:image/svg+xml") for address in others)
    text = page_path(folder).read_text()
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|<base|<script", text)
    assert "default-src 'none'" in text


def test_every_tag_is_closed_and_every_picture_has_a_text(written):
    folder, page = written

    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open_tags = []

        def handle_starttag(self, tag, attrs):
            self.open_tags.extend([tag] if tag not in {"meta", "img", "br"} else [])

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag, self.getpos()

    balance = Balance()
    balance.feed(page_path(folder).read_text())
    assert balance.open_tags == []
    assert all("against dpm.num_train_images" in image["alt"] for image in page.all("img"))
    assert {attrs.get("scope") for attrs in page.all("th")} == {"col", "colgroup", "row"}


def test_writing_again_gives_the_same_bytes(seeded, tmp_path, one_figure):
    texts = [write_sweep(tmp_path / name, "Again", seeded[-2:]).read_bytes() for name in ("a", "a")]
    assert texts[0] == texts[1]


def test_before_anything_is_finished_the_page_says_so(tmp_path):
    states = ["running step 300/2000, 0:12:00 left", "queued", FAILED.state]
    points = [Point({SIZE: n}, {"side": Missing("0" * 12, s)}) for n, s in enumerate(states)]
    page = Page(write_sweep(tmp_path, "Soon", points).read_text())
    assert "Finished: 0 of 3 points, 0 of 3 attacks." in page.text
    assert page.headings == ["Missing: 1 failed, 1 running, 1 queued"]
    assert "Nothing is finished yet" in page.text
    assert page.tables == {}
    assert "running step 300/2000" in load_table(tmp_path)
    write_sweep(tmp_path, "Soon", points)


def test_a_single_point_has_no_axis(planted, tmp_path):
    points = [Point({SIZE: 64, "seed": 0}, planted[64, 0].inputs)]
    page = Page(write_sweep(tmp_path, "One", points).read_text())
    assert f"A single point: {SIZE}=64, seed=0. Finished: 1 of 1 points" in page.text
    assert list(page.tables) == [
        "Every finished run",
        "How much each model has memorized",
        "The paper's table and ours, in percent of N_G",
    ]
    assert "Bars are 95 % intervals of the one run" in page.text
    assert "Missing" not in page.text


def test_a_hundred_points_fold_what_is_long(planted, tmp_path, one_figure):
    inputs = planted[64, 0].inputs
    waiting = dict.fromkeys(inputs, QUEUED)
    points = [
        Point({"scale": n, "clusters": k}, inputs if n < 8 else waiting, tmp_path / f"{n}_{k}")
        for n in range(10)
        for k in range(10)
    ]
    page = Page(write_sweep(tmp_path / "sweep", "Many", points).read_text())
    assert "Finished: 80 of 100 points, 160 of 200 attacks." in page.text
    assert len(page.tables["Every finished run"]) == 2 + 160
    assert [attrs for attrs in page.all("details") if "open" in attrs] == []
    assert page.text.count(QUEUED.key) == 40
    assert len(page.all("a")) == 100
    long = [a for a in page.all("div") if a.get("aria-label") == "Every finished run"]
    assert long[0]["class"] == "wide tall"


def test_names_and_states_are_text_and_nothing_else(planted, tmp_path, one_figure):
    waiting = Missing(NASTY, f"failed: {NASTY}")
    done = {NASTY: planted[64, 0].inputs["early"]}
    points = [Point({NASTY: NASTY}, done), Point({NASTY: "b"}, {NASTY: waiting})]
    page = Page(write_sweep(tmp_path, NASTY, points).read_text())
    assert page.all("script") == []
    assert page.text.count(NASTY) >= 6
