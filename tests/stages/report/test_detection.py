"""The page on prompts against the results of detect, and what it says without any truth."""

import csv
import json
import math

import numpy as np
import pytest
from tests.stages.report.conftest import NASTY
from tests.stages.report.pages import pixels

from sidepipe.stages.detect.stage import load_gallery, load_prompts
from sidepipe.stages.report.detection import (
    SIGNALS,
    Detection,
    distributions_figure,
    signals_roc_figure,
)
from sidepipe.stages.report.stage import load_table

TABLE = "Signals of memorization and their cost"
MEMORIZED = "Prompts whose generations replay a training image"


@pytest.fixture(scope="module")
def page(prompted):
    return prompted[2]


@pytest.fixture(scope="module")
def results(prompted):
    return json.loads((prompted[0].inputs["detect"] / "results.json").read_text())


def interval(value, ends, factor=1, places=3):
    low, high = (factor * end for end in ends)
    return f"{factor * value:.{places}f} ({low:.{places}f} to {high:.{places}f})"


def test_the_headline_is_that_of_the_deciding_row_with_its_intervals(page, results):
    decision, text = results["decision"], page.text.replace("\xa0", " ")
    memorized = sum(
        r["count"] for r in results["memorized_by"]["role"] if r["role"] != "calibration"
    )
    assert f"{memorized} of 40 prompts are memorized" in text
    assert "in the first step, with 2 images per prompt (4 network evaluations)" in text
    assert f"ROC of {interval(decision['auc'], decision['auc_interval'])} and finds" in text
    found = interval(decision["tpr"], decision["tpr_interval"], 100, 1)
    assert f"finds {found} % of them at 10 % false positives" in text


def test_it_says_which_convention_of_the_true_positive_rate_is_taken(page):
    text = page.text.replace("\xa0", " ")
    assert "the last point of the ROC whose false positive rate is at most 10 %" in text


def test_it_says_how_prompts_are_labeled_and_on_what_the_threshold_was_set(page, results):
    text = page.text.replace("\xa0", " ")
    calibrating = sum(results["distributions"]["norm"]["calibration"])
    assert f"at most 10 % of {calibrating} calibration prompts" in text
    assert "at least 50 % of its images must be copies" in text
    assert "pixels-rms-v1 distance to a training image being at most 0.56" in text


def test_every_variant_of_every_signal_is_a_row_with_its_cost(page, results):
    rows = page.tables[TABLE][2:]
    assert len(rows) == len(results["signals"]) == 10
    for (name, *cells), row in zip(rows, results["signals"], strict=True):
        assert name == SIGNALS[row["signal"]]
        assert cells[:2] == [str(row["generations"]), str(row["steps"])]
        evaluations = [row["evaluations_per_image"], row["evaluations_per_prompt"]]
        assert cells[3:5] == list(map(str, evaluations))
        assert cells[5] == interval(row["auc"], row["auc_interval"])
        assert cells[6] == interval(row["tpr"], row["tpr_interval"], 100, 1)
        flagged = [row["flagged_memorized"], row["flagged_others"]]
        assert cells[7:] == [interval(r["share"], r["interval"], 100, 1) for r in flagged]
    assert [i for i, row in enumerate(rows) if row[3]] == [2]  # two images, one step


def test_memorized_prompts_are_counted_by_role_and_by_repeats(page, results):
    rows = {name: cells for name, *cells in page.tables[MEMORIZED][2:]}
    of = {row["role"]: row for row in results["memorized_by"]["role"]}
    planted = rows["planted training captions"]
    assert planted[:2] == [str(of["planted"]["of"]), str(of["planted"]["count"])] == ["12", "3"]
    seen = {row["repeats"]: row for row in results["memorized_by"]["repeats"]}
    assert rows["seen 16 times in training"][:2] == ["4", str(seen[16]["count"])]
    assert list(rows)[:2] == ["planted training captions", "other training captions"]


def ranking(page):
    more = page.tables["More prompts"]
    return [*page.tables["The most suspicious prompts"], *more[1:]]


def test_prompts_are_ranked_with_what_was_found_of_them(page, prompted):
    head, *rows = ranking(page)
    assert head[:7] == ["prompt", "rank", "kind", "seen", "d", "decision", "memorized"]
    table = load_prompts(prompted[0].inputs["detect"]).sort_values("d", ascending=False)
    assert len(rows) == len(table) == 60
    for rank, (shown, row) in enumerate(zip(rows, table.to_dict("records"), strict=True), 1):
        decision = "flagged" if row["flagged"] else "not flagged"
        memorized = "memorized" if row["memorized"] else "no"
        expected = [row["caption"], str(rank), row["role"], str(row["repeats"])]
        assert shown[:7] == [*expected, f"{row['d']:.3g}", decision, memorized]


def test_beside_a_prompt_stand_its_images_and_the_training_image_they_come_closest_to(
    page, prompted
):
    images, train, _ = load_gallery(prompted[0].inputs["detect"])
    first = [i for i in page.all("img") if i["alt"].startswith(("generated image", "its nearest"))]
    shown = [pixels(image) for image in first[:3]]
    assert [image["alt"] for image in first[1:3]] == [
        "generated image 2",
        "its nearest training image",
    ]
    for picture, made in zip(shown, [*images[0], train[0]], strict=True):
        assert np.array_equal(picture, made[:, :, 0])


def test_the_distributions_are_in_percent_of_each_kind_with_a_line_at_the_threshold(results):
    axis = distributions_figure(Detection(results, [])).axes[0]
    counts = results["distributions"]["norm"]
    kinds = [
        kind for kind in ("memorized", "others", "unlabeled", "calibration") if any(counts[kind])
    ]
    assert kinds == ["memorized", "others", "calibration"]
    for patch, kind in zip(axis.patches, kinds, strict=True):
        values = np.array(counts[kind]).reshape(-1, 2).sum(1)  # two bins are drawn as one
        assert np.allclose(patch.get_data().values, 100 * values / values.sum())
        assert np.allclose(patch.get_data().edges, counts["edges"][::2])
    assert axis.lines[0].get_xdata()[0] == results["decision"]["threshold"]
    styles = {(patch.get_linestyle(), patch.get_edgecolor()) for patch in axis.patches}
    assert len({style for style, _ in styles}) == 3  # not told apart by color alone


def test_the_roc_of_every_signal_is_drawn(results):
    figure = signals_roc_figure(Detection(results, []))
    names = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert names == [*SIGNALS.values(), "10 % false positives"]
    curve = figure.axes[0].lines[1]
    assert np.array_equal(curve.get_ydata(), results["distributions"]["norm"]["roc"]["tpr"])


def test_numbers_are_written_unrounded(prompted, results):
    folder = prompted[0].folder / "report" / "tables"
    with (folder / "signals.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["auc_interval_high"]) for row in rows] == [
        row["auc_interval"][1] for row in results["signals"]
    ]
    with (folder / "prompts.csv").open(newline="", encoding="utf-8") as file:
        prompts = list(csv.DictReader(file))
    assert len(prompts) == 60
    ordered = [float(row["d"]) for row in prompts]
    assert ordered == sorted(ordered, reverse=True)


def test_the_terminal_has_the_decision_and_every_signal_of_as_many_images(prompted, results):
    text = load_table(prompted[0].folder / "report")
    assert max(map(len, text.splitlines())) <= 110
    decision = results["decision"]
    line = next(line for line in text.splitlines() if line.startswith("norm of D_t, 1 steps"))
    assert line.split()[-3:] == ["4", f"{decision['auc']:.3f}", f"{decision['tpr']:.3f}"]
    assert "Hessian" in text


def test_the_summary_holds_the_deciding_row(prompted, results):
    summary = prompted[1]["detect"]
    assert json.loads(json.dumps(summary)) == summary
    assert summary["auc"] == results["decision"]["auc"]
    assert summary["tpr_interval"] == results["decision"]["tpr_interval"]


# Without any truth


def test_without_labels_prompts_are_flagged_and_nothing_is_judged(unknown):
    made, summary, page = unknown
    text = page.text.replace("\xa0", " ")
    assert "of 5 prompts are flagged as memorized" in text
    assert "No training images are available to decide which of them are memorized" in text
    assert page.tables[TABLE][1][-1] == "per prompt"  # its cost; no column judges
    assert MEMORIZED not in page.tables
    assert "AUC" not in load_table(made.folder / "report")
    assert summary["detect"]["auc"] is None
    assert math.isfinite(summary["detect"]["threshold"])


def test_without_labels_the_ranking_has_no_column_of_them(unknown):
    _, _, page = unknown
    head, *rows = ranking(page)
    assert head == ["prompt", "rank", "kind", "seen", "d", "decision", "images it makes"]
    assert NASTY in [row[0] for row in rows]
    assert len(page.all("script")) == 0


def test_what_the_encoder_cut_is_said(unknown):
    assert "1 prompt is longer than the encoder takes and was cut." in unknown[2].text
