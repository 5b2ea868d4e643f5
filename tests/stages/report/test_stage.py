"""What the stage writes: which files, the same bytes again, and what it refuses."""

import base64
import json
from xml.etree import ElementTree

import pytest
from tests.stages.report.pages import REPORT, Page, report
from tests.stages.report.planted import ATTACKS, L2, RUNTIME, Outputs

from sidepipe.engine import artifacts
from sidepipe.engine.stage import Job
from sidepipe.stages.report.stage import load_table, page_path

FIGURES = ["ams", "clusters", "excess", "rarefaction", "roc", "ums"]
TABLES = ["bands", "blind", "cost", "distances", "hits", "novelty", "overlap", "quality"]
TABLES += ["rarefaction", "rules"]


def test_a_second_run_gives_the_same_bytes(made, outputs, folder, tmp_path):
    report(tmp_path / "again", outputs)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert {str(path) for path in files} == {
        "report.html",
        "table.txt",
        "tables/attacks.csv",
        "figures/pairs.png",
        *(f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")),
        *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "pdf")),
    }
    for path in files:
        assert (tmp_path / "again" / path).read_bytes() == (folder / path).read_bytes(), path


def test_the_figures_are_those_of_the_page(page, folder):
    shown = {
        base64.b64decode(image["src"].partition(",")[2])
        for image in page.all("img")
        if image["src"].startswith("data:image/svg")
    }
    assert shown == {(folder / "figures" / f"{name}.svg").read_bytes() for name in FIGURES}
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in shown)


def test_figures_for_a_paper_are_pdf_without_a_date(made, folder):
    for name in FIGURES:
        content = (folder / "figures" / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF")
        assert b"Date" not in content


def test_summary_holds_the_hits(made, outputs):
    for name, found in made[0]["attacks"].items():
        results = json.loads((outputs.inputs[name] / "results.json").read_text())
        row = results["calibrated"][0]
        assert found["hits"] == row["train"]["count"]
        assert found["heldout_hits"] == row["heldout"]["count"]
        assert found["excess_interval"] == row["excess"]["interval"]
    assert json.loads(json.dumps(made[0])) == made[0]
    assert list(made[0]["attacks"]) == list(ATTACKS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"pixels-rms-v1"', '"pixels-rms-v2"'),
        ('"false_positive_rate": 0.01', '"false_positive_rate": 0.02'),
        ('"threshold": ', '"threshold": 1'),
        ("0.075", "0.076"),
    ],
)
def test_attacks_on_different_measures_are_refused(two, tmp_path, old, new):
    path = two.inputs["other"] / "results.json"
    before = path.read_text()
    assert old in before
    try:
        path.write_text(before.replace(old, new))
        with pytest.raises(ValueError, match="the model and measure of all attacks must be one"):
            REPORT.run(Job(tmp_path, two.inputs, RUNTIME))
    finally:
        path.write_text(before)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    attacks = {"one": ("none", 0.1, {}), "other": ("none", 0.1, {})}
    folder = tmp_path_factory.mktemp("two")
    return Outputs(folder, attacks, L2, num_train=32, num_heldout=1000, num_images=20)


def test_measures_that_evaluate_left_out_are_left_out(two, tmp_path):
    paths = [folder / "results.json" for folder in two.inputs.values()]
    before = [path.read_text() for path in paths]
    for path, text in zip(paths, before, strict=True):
        results = json.loads(text)
        assert set(results["rules"]) == {"ratio"}  # 32 training images have no 50 nearest
        # Of 20 images and 32 training images of 64 pixels there is neither FID nor KID.
        assert [results["quality"][name] for name in ("fid", "kid", "mifid")] == [None] * 3
        path.write_text(json.dumps({**results, "divergence": None}))
    try:
        _, page = report(tmp_path / "report", two)
    finally:
        for path, text in zip(paths, before, strict=True):
            path.write_text(text)
    assert "Image quality" not in page.tables
    assert "Left out: KID: 20 images, fewer than 100." in page.text
    assert "Gaussian" not in page.text
    assert "adaptive" not in page.text
    table = page.tables["Distance to training images compared with held-out images"]
    assert table[1] == ["attack", "training minus held-out"]


def test_a_report_on_no_attack_is_refused(tmp_path):
    with pytest.raises(ValueError, match="attacks must be at least one row"):
        REPORT.run(Job(tmp_path, {}, RUNTIME))


# Prompts


PROMPT_TABLES = ["memorized", "mitigations_benchmark", "mitigations_left", "mitigations_price"]
PROMPT_TABLES += ["planted_words", "signals_of_prompts", "words"]
PROMPT_FIGURES = ["distributions", "mitigations", "signals_roc", "top_words"]
PROMPT_NUMBERS = ["mitigations", "prompts", "signals", "tokens"]


def test_a_report_on_prompts_alone_has_their_files_and_the_same_bytes_again(prompted, tmp_path):
    made, summary, _ = prompted
    folder = made.folder / "report"
    assert report(tmp_path / "again", made)[0] == summary
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert {str(path) for path in files} == {
        "report.html",
        "table.txt",
        *(f"tables/{name}.csv" for name in PROMPT_NUMBERS),
        *(f"tables/{name}.{kind}" for name in PROMPT_TABLES for kind in ("csv", "md", "tex")),
        *(f"figures/{name}.{kind}" for name in PROMPT_FIGURES for kind in ("svg", "pdf")),
    }
    for path in files:
        assert (tmp_path / "again" / path).read_bytes() == (folder / path).read_bytes(), path


def test_a_page_on_prompts_alone_says_nothing_of_attacks(prompted):
    _, summary, page = prompted
    assert page.headings == [
        "Which prompts replay a training image",
        "Which words replay an image",
        "Which methods stop replays",
        "Where the numbers come from",
    ]
    assert "42 of 122 pairs of an image and a caption (Planted, 8 " in page.text
    assert "2407.21720" in page.text
    assert "2410.02467" not in page.text
    assert list(summary) == ["detect", "explain", "mitigate"]
    assert json.loads(json.dumps(summary)) == summary


def test_attacks_and_prompts_share_a_page_where_each_says_what_it_says_alone(
    two, prompted, tmp_path
):
    alone = report(tmp_path / "alone", two)[1]
    made, summary, prompts = prompted
    both = REPORT.run(Job(tmp_path, {**two.inputs, **made.inputs}, RUNTIME))
    page = Page(page_path(tmp_path).read_text())
    assert page.headings == [*alone.headings[:-1], *prompts.headings]
    ours = {name: table for name, table in alone.tables.items() if "artifact" not in name}
    theirs = {name: table for name, table in prompts.tables.items() if "artifact" not in name}
    assert {name: page.tables[name] for name in ours | theirs} == ours | theirs
    assert {name: both[name] for name in summary} == summary
    assert set(both["attacks"]) == {"one", "other"}
    attacks, detected = (load_table(f) for f in (tmp_path, made.folder / "report"))
    assert attacks.startswith("attack ")
    assert attacks.endswith(detected)


def test_prompts_of_another_model_than_the_attacks_are_refused(two, prompted, tmp_path):
    made = prompted[0]
    manifest = artifacts.read_manifest(made.inputs["detect"])
    (made.folder / "dpm" / "dx").mkdir()
    artifacts.write_manifest(
        made.folder / "dpm" / "dx",
        {"stage": "dpm", "key": "dx", "inputs": {"data": "da"}, "settings": {}},
    )
    other = made.folder / "detect" / "dx"
    other.mkdir()
    artifacts.write_manifest(other, {**manifest, "inputs": {"data": "da", "dpm": "dx"}})
    with pytest.raises(ValueError, match="the model of attacks and detect must be one and the"):
        REPORT.run(Job(tmp_path, {**two.inputs, "detect": other}, RUNTIME))
