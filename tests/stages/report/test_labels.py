"""The page on labels: signals of a model without prompts beside what the labels yield."""

import csv

import numpy as np
import pytest
from tests.stages.report.pages import REPORT, Page, rows_of
from tests.stages.report.planted import NUM_LABELS, RUNTIME

from sidepipe.engine.stage import Job
from sidepipe.stages.report.comparison import read_attacks
from sidepipe.stages.report.labels import LabelYields, section
from sidepipe.stages.report.stage import load_table, page_path

TABLE = "Signals of labels and their yield"
SETTINGS = {"_target_": "sidepipe.stages.detect.labels.DetectLabels", "num_generations": 4}
SETTINGS |= {"num_steps": 50}


def detected(outputs, key, signals, label="la"):
    """A finished detect artifact of labels."""
    folder = outputs.start("detect", key)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "size", "cohesion", "signal"])
        writer.writerows([k, 4, 1 - 0.02 * k, signal] for k, signal in enumerate(signals))
    inputs = {"dpm": "dp", "generate": "ge", "label": label}
    return outputs.finish("detect", key, inputs, SETTINGS, {"num_labels": NUM_LABELS})


@pytest.fixture(scope="module")
def shown(outputs, tmp_path_factory):
    """The signal of each label is what `side` gains there: the page, its folder, the summary."""
    shares = {int(r["label"]): int(r["hits"]) / int(r["images"]) for r in side_rows(outputs)}
    folder = tmp_path_factory.mktemp("labels")
    signals = [shares.get(k, 0) for k in range(NUM_LABELS)]
    inputs = {**outputs.inputs, "detect": detected(outputs, "dl", signals)}
    summary = REPORT.run(Job(folder, inputs, RUNTIME))
    return Page(page_path(folder).read_text()), folder, summary


def side_rows(outputs):
    return rows_of(outputs, "side", "labels.csv")


def test_a_signal_that_is_the_yield_has_a_rank_correlation_of_one(shown, outputs):
    page, _, summary = shown
    cells = page.cells(TABLE)["side"]
    hits = sum(int(row["hits"]) > 0 for row in side_rows(outputs))
    assert cells[:3] == [str(len(side_rows(outputs))), str(hits), "1.00"]
    assert summary["detect"]["side"] == pytest.approx(1)
    assert summary["detect"]["early"] < 0.9


def test_attacks_without_labels_are_no_rows(shown):
    assert list(shown[0].cells(TABLE)) == ["side", "early"]


def test_the_section_follows_those_of_the_attacks_which_stay_as_they_were(shown, page, outputs):
    headings = shown[0].headings
    assert headings == [
        *page.headings[:-1],
        "Which labels lead to memorized images",
        page.headings[-1],
    ]
    same = [name for name in page.tables if name != "Every artifact behind this page"]
    assert {name: shown[0].tables[name] for name in same} == {n: page.tables[n] for n in same}


def test_the_terminal_has_the_correlations(shown):
    text = load_table(shown[1])
    line = next(row for row in text.splitlines()[::-1] if row.startswith("side"))
    assert line.split()[3] == "1.00"


@pytest.mark.parametrize("ties", [False, True])
def test_the_rank_correlation_is_that_of_the_ranks(ties):
    rng = np.random.default_rng(3)
    images, hits = rng.integers(3, 9, 30), rng.integers(0, 3 if ties else 300, 30)
    signal = rng.normal(size=30) + hits
    rows = [
        {"images": i, "hits": h, "signal": s} for i, h, s in zip(images, hits, signal, strict=True)
    ]

    def ranks(values):  # equal ones share the mean of their places
        return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])

    expected = np.corrcoef(ranks(signal), ranks(hits / images))[0, 1]
    assert LabelYields("x", rows).correlation("signal") == pytest.approx(expected)


def test_labels_that_yield_alike_have_no_correlation():
    rows = [{"images": 4, "hits": 1, "signal": s} for s in (1.0, 2.0, 3.0)]
    assert LabelYields("x", rows).correlation("signal") is None


def test_labels_of_another_clustering_are_set_beside_nothing(outputs):
    outputs.start("label", "lb")
    outputs.finish("label", "lb", {"generate": "ge"}, {"num_clusters": 9}, {"num_labels": 20})
    folder = detected(outputs, "do", [1.0] * NUM_LABELS, label="lb")
    found = section(folder, read_attacks(outputs.inputs))
    assert (found.tables, found.drawings, found.summary) == ([], {}, {})
    assert found.text == "Detection of 20 labels: no attack here aims at them.\n"
    assert len(found.numbers["label_signals"]) == NUM_LABELS
