"""The page's section on the audit: its flags against the hits of the attacks, counted here."""

import json

import numpy as np
import pandas as pd
import pytest
from tests.stages.report.pages import REPORT, Page, hit_images, rows_of
from tests.stages.report.planted import RUNTIME

from sidepipe.base.files import write_table
from sidepipe.engine.stage import Job
from sidepipe.features.encoders import PixelsL2
from sidepipe.memorization.real import Encoded
from sidepipe.stages.audit import tables
from sidepipe.stages.report.audit import invmm_table, reliability_table
from sidepipe.stages.report.stage import load_table, page_path

CHANCES = {"budget": 8000, "sampled": 100, "hits": 3, "expected": 41.6, "interval": [30, 55]}
CHANCES |= {"heldout_hits": 1, "heldout_expected": 2.2, "heldout_interval": [0, 7]}
FLAGS = "Images that come back"
EXTRACTED = "Flagged training images, and those that the attacks extracted"
SCORES = "Scores of training images against extraction by early"
HEADING = "The training images that the model returns to"


def audited(outputs, key, count, gamma, inference=None, extraction=None):
    """A finished audit artifact of `count` images of each kind. gamma: of both kinds, by name."""
    folder = outputs.start("audit", key)
    rng = np.random.default_rng(0)
    found = {
        kind: {
            "gamma": gamma[kind],
            "error": np.full(count, 0.1, np.float32),
            "recall": rng.random((count, 1)).astype(np.float32),
            "ends": rng.integers(-1, count, (count, 1, 2)),
        }
        for kind in ("train", "heldout")
    }
    rows = {"train": outputs.train, "heldout": outputs.heldout}
    sets = {kind: Encoded(rows[kind][:count], np.empty((count, 1))) for kind in rows}
    ids = np.array([f"{i:04d}" for i in range(len(outputs.images))])
    table = tables.scores(sets, found, "l2", 0.05, [300], ids)
    if extraction is not None:
        table["probability"] = np.linspace(1, 0, len(table))
    write_table(folder / "audit.csv", table)
    refined = outputs.images[outputs.train[:count]]
    tables.save_gallery(folder, table, outputs.images, refined, "l2", 30)
    results = {"threshold": 0.05, "false_positive_rate": 0.001, "metric": "l2"}
    results |= {"transform": PixelsL2().transform, "evaluations_per_image": 120}
    results |= {"evaluations_of_sample": 0 if extraction is None else 1800}
    results |= {**tables.counts(table), "inference": inference}
    results |= {"extraction": extraction}
    (folder / "results.json").write_text(json.dumps(results))
    inputs = {"data": "da", "dpm": "dp", "reference": "re"}
    return outputs.finish("audit", key, inputs, {"draws": 4}, results)


@pytest.fixture(scope="module")
def shown(outputs, tmp_path_factory):
    """Flagged are the training images that `early` extracts, and three held-out ones."""
    count = len(outputs.train)
    extracted = {int(i) for i in hit_images(outputs, "early")}
    gamma = {
        "train": np.array([0.01 if row in extracted else 0.2 for row in outputs.train], np.float32),
        "heldout": np.array([0.04] * 3 + [0.3] * (count - 3), np.float32),
    }
    folder = tmp_path_factory.mktemp("audited")
    inputs = {**outputs.inputs, "audit": audited(outputs, "au", count, gamma)}
    summary = REPORT.run(Job(folder, inputs, RUNTIME))
    return Page(page_path(folder).read_text()), folder, summary, len(extracted)


def test_flags_of_both_kinds_stand_next_to_each_other(shown, outputs):
    page, _, summary, extracted = shown
    rows = {name: cells for name, *cells in page.tables[FLAGS][2:]}
    assert rows["training images"][:2] == ["256", str(extracted)]
    assert rows["held-out images"][:2] == ["256", "3"]
    assert summary["audit"] == {"flagged": extracted, "heldout_flagged": 3}


def test_extracted_images_are_counted_among_flagged_ones_and_the_others(shown, outputs):
    page, _, _, extracted = shown
    cells = page.cells(EXTRACTED)
    assert list(cells) == ["unconditional", "side", "early"]
    hits = sum(row["hit"] == "1" for row in rows_of(outputs, "early", "nearest.csv"))
    others = f"0 of {256 - extracted}"
    assert cells["early"] == [str(hits), f"{extracted} of {extracted}", others, "100 %"]
    flagged = {int(i) for i in hit_images(outputs, "early")}
    of_side = {int(i) for i in hit_images(outputs, "side")}
    assert cells["side"][1] == f"{len(of_side & flagged)} of {extracted}"
    assert cells["side"][2] == f"{len(of_side - flagged)} of {256 - extracted}"


def test_a_perfect_score_is_told_from_a_useless_one(shown):
    cells = shown[0].cells(SCORES)
    assert cells["distance to the refined image"][0].startswith("1.000")
    assert cells["error of one denoising step"][0].startswith("0.500")
    assert cells["error of one denoising step"][2] == "\N{EN DASH}"
    assert list(cells)[2:] == [
        "own noised copies that come back, t = 300",
        "noised copies that arrive, t = 300",
    ]


def test_the_page_has_the_section_the_numbers_and_the_gallery(shown, page):
    made, folder, _, extracted = shown
    assert made.headings == [*page.headings[:-1], HEADING, page.headings[-1]]
    assert f"returns to {extracted} of 256 training images, and to 3 of 256" in made.text
    assert len((folder / "tables" / "audit.csv").read_text().splitlines()) == 1 + 512
    assert "6 more" in made.text
    assert "Audit: The model returns to" in load_table(folder)


def test_without_attacks_the_audit_stands_alone(outputs, tmp_path):
    count = 30
    gamma = {kind: np.full(count, 0.2, np.float32) for kind in ("train", "heldout")}
    summary = REPORT.run(Job(tmp_path, {"audit": audited(outputs, "a2", count, gamma)}, RUNTIME))
    page = Page(page_path(tmp_path).read_text())
    assert FLAGS in page.tables
    assert EXTRACTED not in page.tables
    assert not [caption for caption in page.tables if "are expected to hit" in caption]
    assert summary["audit"]["flagged"] == 0


def test_expected_numbers_of_both_kinds_stand_next_to_each_other(outputs, tmp_path):
    gamma = {kind: np.full(30, 0.2, np.float32) for kind in ("train", "heldout")}
    audit = audited(outputs, "a3", 30, gamma, extraction=CHANCES)
    REPORT.run(Job(tmp_path, {**outputs.inputs, "audit": audit}, RUNTIME))
    page = Page(page_path(tmp_path).read_text())
    cells = page.cells("Images that 8,000 refined images are expected to hit")
    assert cells["training images"] == ["3", "42", "30 to 55"]
    assert cells["held-out images"] == ["1", "2", "0 to 7"]
    assert "calibrated by the hits of 100 refined samples (1,800 network evaluations)" in page.text
    assert "probability of extraction" in page.cells(SCORES)
    # No attack of these has refined images, so none tests the probabilities.
    assert not [caption for caption in page.tables if caption.startswith("Probability of")]


def test_the_probabilities_are_compared_with_the_images_that_are_extracted():
    train = pd.DataFrame({"probability": [0.01, 0.9, 0.94, 0.99]})
    table = reliability_table(train, np.array([0, 3, 0, 1]), "refined")
    assert dict(table.rows) == {
        "0\N{NO-BREAK SPACE}% to 5\N{NO-BREAK SPACE}%": ["1", "0.0", "0"],
        "80\N{NO-BREAK SPACE}% to 95\N{NO-BREAK SPACE}%": ["2", "1.8", "1"],
        "95\N{NO-BREAK SPACE}% to 100\N{NO-BREAK SPACE}%": ["1", "1.0", "1"],
    }


def test_an_infinite_median_is_shown_as_such():
    finite = {"num_images": 8, "finite": 6 / 8, "median": 0.1234}
    table = invmm_table({"train": finite, "heldout": {**finite, "finite": 0.0, "median": None}})
    rows = dict(table.rows)
    assert (rows["training images"][0], rows["training images"][2]) == ("8", "0.123")
    assert rows["training images"][1].startswith("75")
    assert rows["held-out images"][2] == "\N{INFINITY}"
