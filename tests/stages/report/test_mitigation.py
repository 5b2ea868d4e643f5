"""The page on mitigation: what is left, what it costs, and images before and after."""

import csv
import json

import numpy as np
import pytest
from tests.stages.report.pages import REPORT, Page, pixels
from tests.stages.report.planted import RUNTIME
from tests.stages.report.prompted import METHODS

from sidepipe.engine import artifacts
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.stage import Job
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.mitigate.stage import load, load_generated, load_prompts_asked
from sidepipe.stages.report.mitigation import baseline, mitigations_figure, read
from sidepipe.stages.report.stage import load_table, page_path

LEFT, PRICE = "Memorization left by each method", "The cost of each method"


@pytest.fixture(scope="module")
def page(prompted):
    return prompted[2]


def results(prompted, method):
    return load(prompted[0].inputs[f"mitigate {method}"])


def interval(found, factor=1, places=3, value="mean"):
    low, high = (factor * end for end in found["interval"])
    return f"{factor * found[value]:.{places}f} ({low:.{places}f} to {high:.{places}f})"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_leaves_is_that_of_its_results(page, prompted, method):
    found = results(prompted, method)
    ours = found["memorized"]["memorized"]["prompts"]
    cells = page.cells(LEFT)[method]
    assert cells[:2] == [f"{ours['count']} of {ours['of']}", interval(ours, 100, 1, "share")]
    after = [found["adversary"][g]["after"]["prompts"] for g in ("memorized", "other")]
    assert cells[3:] == [interval(of, 100, 1, "share") for of in after]


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_costs_is_that_of_its_results(page, prompted, method):
    found, cells = results(prompted, method), page.cells(PRICE)[method]
    assert cells[0] == interval(found["alignment"]["memorized"])
    assert cells[2] == interval(found["alignment"]["other"])
    assert cells[4] == f"{found['evaluations_per_image']:,.1f}"


def test_the_loss_of_the_model_is_given_where_it_was_measured(page, prompted):
    assert page.cells(PRICE)["none"][3] == interval(results(prompted, "none")["heldout_loss"], 1, 4)
    assert page.cells(PRICE)["embedding"][3] == "–"  # noqa: RUF001


def changed(made, method, change, key):
    """A copy of a mitigate artifact of another key, its results changed."""
    folder = made.folder / "mitigate" / key
    source = made.inputs[f"mitigate {method}"]
    folder.mkdir()
    for name in ("prompts.csv", "images.npy"):
        (folder / name).write_bytes((source / name).read_bytes())
    found = load(source)
    change(found)
    (folder / "results.json").write_text(json.dumps(found))
    manifest = artifacts.read_manifest(source)
    artifacts.write_manifest(folder, {**manifest, "key": key})
    return folder


def page_of(folder, made, **rows):
    """The page of `none` and these rows of mitigation."""
    inputs = {"detect": made.inputs["detect"], "mitigate none": made.inputs["mitigate none"]}
    inputs |= {f"mitigate {name}": row for name, row in rows.items()}
    REPORT.run(Job(folder, inputs, RUNTIME))
    return Page(page_path(folder).read_text())


@pytest.fixture(scope="module")
def helped(prompted, tmp_path_factory):
    """One of four prompts is left memorized, with three quarters of the alignment."""

    def change(found):
        rate = {"count": 1, "of": 4, "share": 0.25, "interval": [0.006, 0.806]}
        found["memorized"]["memorized"]["prompts"] = rate
        found["alignment"]["memorized"]["mean"] *= 0.75

    better = changed(prompted[0], "none", change, "mi-better")
    return page_of(tmp_path_factory.mktemp("helped"), prompted[0], better=better)


def test_a_method_stands_beside_none(helped):
    assert helped.cells(LEFT)["better"][2] == "25 %"
    assert helped.cells(PRICE)["better"][1] == "75 %"
    assert helped.cells(LEFT)["none"][2] == "–"  # noqa: RUF001


def test_a_sentence_names_the_method_that_leaves_the_fewest(helped):
    text = helped.text.replace("\xa0", " ")
    assert "better leaves the fewest prompts memorized: 1 of 4, 25.0 (0.6 to 80.6) %" in text
    assert "against 100.0 (39.8 to 100.0) % with none" in text


def test_a_method_made_with_prompts_shows_those_that_did_not_make_it(prompted, tmp_path):
    def change(found):
        for part, number in (("used", 0), ("heldout", 2)):
            rate = {"count": number, "of": 2, "share": number / 2, "interval": [0.1, 0.9]}
            found["memorized"][f"memorized_{part}"] = {"prompts": rate}

    pruned = changed(prompted[0], "none", change, "mi-pruned")
    cells = page_of(tmp_path, prompted[0], pruned=pruned).cells(LEFT)
    assert [cell.replace("\xa0", " ") for cell in cells["pruned"][-2:]] == [
        "0.0 (10.0 to 90.0)",
        "100.0 (10.0 to 90.0)",
    ]
    assert len(cells["none"]) == len(cells["pruned"])


def test_a_method_that_changes_nothing_is_not_said_to_help(prompted, tmp_path):
    same = changed(prompted[0], "none", lambda found: None, "mi-same")
    text = page_of(tmp_path, prompted[0], same=same).text
    assert "No method leaves fewer prompts memorized than none." in text
    assert "leaves the fewest" not in text


def test_the_row_to_compare_with_is_that_of_the_model_that_detect_looked_at(prompted):
    made = prompted[0]
    rows = [read(f"mitigate {name}", made.inputs[f"mitigate {name}"]) for name in METHODS]
    assert baseline(rows) is rows[0]
    manifest = rows[0].artifact.manifest
    filtered = Artifact(rows[0].artifact.folder.with_name("filtered"))
    filtered.folder.mkdir()
    inputs = {**manifest["inputs"], "dpm": "other"}
    artifacts.write_manifest(filtered.folder, {**manifest, "inputs": inputs})
    another = type(rows[0])("filter", filtered, rows[0].results, [])
    assert baseline([another, *rows[1:]]) is None


def test_the_same_prompt_stands_with_every_method_beside_the_training_image(page, prompted):
    made = prompted[0]
    first, *_ = shown = [
        image
        for image in page.all("img")
        if image["alt"].startswith("the training image")
        or "image 1 with" in image["alt"]
        or "image 2 with" in image["alt"]
    ]
    asked = load_prompts_asked(made.inputs["mitigate none"])
    assert (asked["group"].head(4) == "memorized").all()
    train = load_images(made.folder / "data" / "da")[asked["nearest"][0]]
    assert np.array_equal(pixels(first), train[:, :, 0])
    for number, method in enumerate(METHODS):
        images = load_generated(made.inputs[f"mitigate {method}"])[0]
        for place in range(2):
            image = shown[1 + 2 * number + place]
            assert image["alt"] == f"generated image {place + 1} with {method}"
            assert np.array_equal(pixels(image), images[place, :, :, 0])
    assert len(shown) == 4 * (1 + 2 * len(METHODS))


def test_the_figure_has_both_shares_of_every_method(prompted):
    made = prompted[0]
    rows = [read(f"mitigate {name}", made.inputs[f"mitigate {name}"]) for name in METHODS]
    left, right = mitigations_figure(rows).axes
    marks = [line for line in left.lines if line.get_marker() in "oD"]
    assert [line.get_marker() for line in marks] == ["o", "D"] * len(METHODS)
    shares = [
        100 * results(prompted, m)["memorized"]["memorized"]["prompts"]["share"] for m in METHODS
    ]
    assert [line.get_xdata()[0] for line in marks[::2]] == shares
    assert [text.get_text() for text in left.get_yticklabels()] == list(METHODS)
    assert len([line for line in right.lines if line.get_marker() == "o"]) == len(METHODS)


def test_numbers_of_every_method_are_written_unrounded(prompted):
    path = prompted[0].folder / "report" / "tables" / "mitigations.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == list(METHODS)
    found = results(prompted, "none")
    assert float(rows[0]["alignment_memorized_mean"]) == found["alignment"]["memorized"]["mean"]
    high = found["memorized"]["memorized"]["prompts"]["interval"][1]
    assert float(rows[0]["memorized_memorized_prompts_interval_high"]) == high


def test_the_terminal_has_a_line_a_method(prompted):
    lines = load_table(prompted[0].folder / "report").splitlines()
    for method in METHODS:
        found = results(prompted, method)["memorized"]["memorized"]["prompts"]
        line = next(line for line in lines if line.startswith(method))
        assert f"{found['count']} of {found['of']}" in line


def test_without_training_images_nothing_is_said_of_copies(unknown):
    _, summary, page = unknown
    assert page.cells(LEFT)["none"] == ["–"] * 5  # noqa: RUF001
    assert "Alignment was not measured" in page.text
    assert summary["mitigate"]["none"]["memorized"] is None
    assert "still memorized as filled circles" not in page.text
