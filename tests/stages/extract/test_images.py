"""Images of another tool as a row of the comparison, without a model or next to its rows."""

import csv
import json
import os
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tests.composing import composed

import sidepipe
from sidepipe.engine import pipeline
from sidepipe.engine.plan import check_parts, plan
from sidepipe.stages.evaluate.charts import EVALUATIONS
from sidepipe.stages.extract.stage import load
from sidepipe.stages.report.comparison import read_attack
from sidepipe.stages.report.stage import load_table, page_path
from sidepipe.stages.report.sweep.quantities import COST, NEW

LOADED: Any = load_digits()
DIGITS = np.rint(LOADED.images * (255 / 16)).astype(np.uint8)
TRAIN, HELDOUT, OTHERS = DIGITS[:60], DIGITS[60:120], DIGITS[200:240]
GENERATED = np.concatenate([TRAIN[:10], HELDOUT[:1], OTHERS])


def write(folder, images, kind="png"):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.{kind}")
    return folder


@pytest.fixture
def planned(tmp_path):
    """A function that plans a comparison of tmp_path/generated, without a model."""
    write(tmp_path / "real/train", TRAIN)
    write(tmp_path / "real/heldouts", HELDOUT)
    write(tmp_path / "generated", GENERATED, kind="bmp")

    def planned(*overrides):
        return plan(
            composed(
                *("experiment=images", f"data.source.folder={tmp_path}/real", "data.size=8"),
                *("data.channels=1", f"extract.surrogate.folder={tmp_path}/generated"),
                *(f"runtime.outputs={tmp_path}/outputs", "runtime.accelerator=cpu", *overrides),
            )
        )

    return planned


def node_of(the_plan, stage):
    return next(node for node in the_plan.nodes.values() if node.stage.name == stage)


def folder_of(the_plan, stage):
    return node_of(the_plan, stage).folder(the_plan.runtime)


def test_a_folder_alone_has_the_numbers_of_compare_and_no_cost(planned, tmp_path):
    the_plan = planned()
    pipeline.run(the_plan, "all")
    np.testing.assert_array_equal(load(folder_of(the_plan, "extract"))[..., 0], GENERATED)
    with (folder_of(the_plan, "extract") / "files.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[10] == {"index": "10", "file": "010.bmp"}
    results = json.loads((folder_of(the_plan, "evaluate") / "results.json").read_text())
    found = sidepipe.compare(
        tmp_path / "generated", train=tmp_path / "real/train", heldout=tmp_path / "real/heldouts"
    )
    at = results["calibrated"][0]
    assert found.hits >= 10
    assert (at["train"]["count"], at["train"]["unique"]) == (found.hits, found.unique)
    assert (at["heldout"]["scaled"], at["threshold"]) == (found.heldout_hits, found.threshold)
    assert results["exact_copies"] == {
        "train": 10,
        "heldout": 1,
        "train_alone": 10,
        "different": 10,
    }
    assert set(results["cost"].values()) == {None}
    assert (
        EVALUATIONS
        not in next(
            iter(
                node_of(the_plan, "evaluate").stage.curves(folder_of(the_plan, "evaluate")).values()
            )
        )[0]
    )


def test_repeated_files_are_named_and_widen_the_interval(planned, tmp_path):
    intervals = []
    for times in range(2):
        the_plan = planned()
        pipeline.run(the_plan, "all")
        results = json.loads((folder_of(the_plan, "evaluate") / "results.json").read_text())
        intervals.append(results["calibrated"][0]["excess"]["interval"])
        assert ("51 different pictures" in results.get("repeated", "")) == (times > 0)
        page = page_path(folder_of(the_plan, "report")).read_text()
        assert ("generated images are 51 different pictures" in page) == (times > 0)
        for i, image in enumerate(GENERATED):
            Image.fromarray(image).save(tmp_path / f"generated/{i:03d} copy.png")
    assert intervals[1] == pytest.approx(intervals[0])


def test_the_report_says_that_the_cost_is_not_known(planned):
    the_plan = planned()
    pipeline.run(the_plan, "all")
    report, attack = (
        folder_of(the_plan, "report"),
        read_attack("gan", folder_of(the_plan, "evaluate")),
    )
    text, page = load_table(report), page_path(report).read_text()
    assert "not known" in text
    assert "plain samples" not in text
    assert "Cost: not known" in page
    assert "There is no model here" in page
    assert "images of another tool, from “generated”" in page
    cost = (report / "tables/cost.csv").read_text()
    assert cost.count("not known") == 4
    assert np.isnan([COST.value(attack), NEW.value(attack)]).all()
    assert attack.new_unique is None


def test_the_row_stands_next_to_rows_that_the_model_sampled(tmp_path):
    write(tmp_path / "flux", np.kron(DIGITS[:30], np.ones((1, 2, 2), np.uint8)))
    row = f"{{extract: {{surrogate: {{name: images, folder: {tmp_path}/flux, resize: crop}}}}}}"
    the_plan = plan(
        composed(
            *("experiment=smoke", "attacks=single", "extract=none", f"+attacks.flux={row}"),
            *(f"runtime.outputs={tmp_path}/outputs", "runtime.accelerator=cpu"),
        )
    )
    report = next(reversed(the_plan.nodes.values()))
    goals = {name: goal.upstream().values() for name, goal in report.inputs.items()}
    reads = {name: {node.stage.name for node in nodes} for name, nodes in goals.items()}
    assert reads["attack"] - reads["flux"] == {"generate"}
    assert reads["flux"] == {"data", "dpm", "reference", "extract", "evaluate"}


def test_the_key_is_of_the_content_and_not_of_the_place(planned, tmp_path):
    key = node_of(planned(), "extract").key
    shutil.copytree(tmp_path / "generated", tmp_path / "moved")
    moved = f"extract.surrogate.folder={tmp_path}/moved"
    assert node_of(planned(moved), "extract").key == key
    assert node_of(planned(moved, "extract.num_images=7"), "extract").key == key
    one, two = tmp_path / "moved/000.bmp", tmp_path / "moved/001.bmp"
    assert one.stat().st_size == two.stat().st_size  # only the content tells them apart
    before, other = one.stat(), two.read_bytes()
    two.write_bytes(one.read_bytes())
    one.write_bytes(other)
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert node_of(planned(moved), "extract").key != key
    resized = node_of(planned("extract.surrogate.resize=crop"), "extract").key
    assert resized != key


def test_files_that_change_between_plan_and_run_are_an_error(planned, tmp_path):
    the_plan = planned()
    assert node_of(the_plan, "extract").key
    Image.fromarray(OTHERS[0]).save(tmp_path / "generated/new.bmp")
    with pytest.raises(ValueError, match=r"folder must be unchanged while the command runs"):
        pipeline.run(the_plan, "extract")
    pipeline.run(planned(), "extract")


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_other_sizes_are_refused_or_resized_as_named(planned, tmp_path, resize):
    tall = Image.fromarray(np.arange(16 * 24, dtype=np.uint16).astype(np.uint8).reshape(24, 16))
    tall.save(tmp_path / "generated/tall.png")
    the_plan = planned()
    with pytest.raises(ValueError, match=r"must be images of 8 x 8 .* got '8 x 8 \(51\), 24 x 16"):
        check_parts(the_plan.nodes.values(), the_plan.runtime)
    the_plan = planned(f"extract.surrogate.resize={resize}")
    check_parts(the_plan.nodes.values(), the_plan.runtime)
    pipeline.run(the_plan, "extract")
    whole = tall if resize == "stretch" else tall.crop((0, 4, 16, 20))
    expected = np.asarray(whole.resize((8, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(load(folder_of(the_plan, "extract"))[-1, ..., 0], expected)


def test_a_broken_file_is_an_error_or_left_out(planned, tmp_path):
    (tmp_path / "generated/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"broken.png .*remedy: .*surrogate.on_bad_file=skip"):
        pipeline.run(planned(), "extract")
    the_plan = planned("extract.surrogate.on_bad_file=skip")
    pipeline.run(the_plan, "extract")
    assert len(load(folder_of(the_plan, "extract"))) == len(GENERATED)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attacks=compare"], r"generate needs a model, and dpm=none has none; remedy: dpm=pre"),
        (["audit=returns"], r"audit needs a model, and dpm=none"),
        (
            ["+attacks.plain={extract: {surrogate: none}}"],
            r"generate needs a model, and dpm=none has none",
        ),
        (["extract.surrogate.folder=/nowhere"], r"must be a folder of images or a NumPy file"),
        (["dpm.train_partitions=null"], r"evaluate needs held-out images"),
    ],
)
def test_what_needs_a_network_or_images_is_refused_with_the_plan(planned, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        planned(*overrides)


def test_too_few_images_are_refused_with_the_plan(planned, tmp_path):
    write(tmp_path / "few", OTHERS[:19])
    with pytest.raises(ValueError, match=r"surrogate.folder must be >= 20 images, got 19"):
        planned(f"extract.surrogate.folder={tmp_path}/few")
