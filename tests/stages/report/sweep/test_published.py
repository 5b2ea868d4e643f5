"""The paper's table beside ours."""

import json
import shutil

import pytest
from tests.stages.report.sweep.conftest import SIZE

from sidepipe.stages.report.sweep.points import Point, read
from sidepipe.stages.report.sweep.published import comparable, differences, paper_table


def copy(outputs, folder, source):
    """The same artifacts, of another source."""
    shutil.copytree(outputs.folder, folder)
    path = folder / "data" / "da" / "manifest.json"
    path.write_text(path.read_text().replace("sources.CelebA", source))
    return {
        name: folder / path.relative_to(outputs.folder) for name, path in outputs.inputs.items()
    }


@pytest.fixture(scope="module")
def sweep_of(planted, tmp_path_factory):
    def read_source(source):
        folder = tmp_path_factory.mktemp("copy") / "outputs"
        return read([Point({SIZE: 64, "seed": 0}, copy(planted[64, 0], folder, source))])

    return read_source


def test_celeba_stands_beside_the_papers_three_sets_of_faces(seeded, planted):
    table = paper_table(read(seeded))
    paper = [(name, row) for name, row in table.rows if name.endswith("(paper)")]
    assert [row[0] for _, row in paper] == [
        *["CelebA-HQ-FI"] * 3,
        *["CelebA-25000"] * 3,
        *["CelebA"] * 3,
    ]
    side = ["20.527", "11.446", "1.842", "1.164", "0.030", "0.030", "0.542"]
    assert paper[5] == ("SIDE (paper)", ["CelebA-25000", "50,000", *side])
    ours = table.rows[len(paper) :]
    assert len(ours) == 2 * len(planted)
    assert ours[3][0] == "early"
    assert ours[3][1][:2] == ["64 of CelebA, seed=1", "60"]
    found = json.loads((planted[64, 1].inputs["early"] / "results.json").read_text())
    shares = [found["bands"][band]["train"][k] for band in ("low", "mid", "high") for k in KINDS]
    assert ours[3][1][2:-1] == [f"{100 * share:.0f}" for share in shares]
    assert ours[3][1][-1] == f"{found['tail_percentile']['train']:.3f}"
    assert len(set(shares)) > 3


KINDS = ("ams", "ums")


def test_the_papers_numbers_are_those_of_its_table(seeded):
    rows = {(row[0], name): row for name, row in paper_table(read(seeded)).rows}
    percent = [float(cell) for cell in rows["CelebA", "Carlini Cond (paper)"][2:]]
    assert percent == [4.682, 4.706, 0.098, 0.098, 0, 0, 0.436]
    for (_, name), row in rows.items():
        if name.endswith("(paper)"):
            low, mid, high = (float(row[at]) for at in (2, 4, 6))
            assert low > mid >= high  # AMS falls from band to band


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("sources.CelebAHQFI", {"CelebA-HQ-FI", "CelebA-25000", "CelebA"}),
        ("cifar10.CIFAR10", {"CIFAR-10"}),
    ],
)
def test_other_data_of_the_paper_has_its_own_rows(sweep_of, source, data):
    sweep = sweep_of(source)
    rows = paper_table(sweep).rows
    assert {row[0] for name, row in rows if name.endswith("(paper)")} == data
    said = " ".join(differences(comparable(sweep)))
    side, measure = ("32", "normalized L2") if "CIFAR-10" in data else ("128", "SSCD")
    assert f"Images are 8 pixels wide here, {side} in the paper." in said
    assert f"Gamma is the RMS pixel difference {'' if side == '32' else '('}" in said
    assert measure in said
    assert "N_G is 60 here" in said


def test_data_that_the_paper_has_not_stands_alone(sweep_of):
    assert comparable(sweep_of("sources.Digits")) == []


def test_the_papers_own_measure_differs_only_in_its_bands(planted, sweep_of):
    attacks = comparable(sweep_of("sources.CelebA"))
    attack = attacks[0]
    attack.results["transform"] = "sscd-v1"
    attack.manifests["data"]["summary"]["shape"] = [128, 128, 3]
    said = differences([attack])
    assert said[0].startswith("Bands are high ")
    assert "low 0.4 to 0.5, mid 0.5 to 0.6, high ≥\N{NO-BREAK SPACE}0.6 in the paper." in said[0]
    printed = {"low": [0.4, 0.5], "mid": [0.5, 0.6], "high": [0.6, None]}
    attack.results["bands"] = {name: {"band": ends} for name, ends in printed.items()}
    assert [sentence.split()[0] for sentence in differences([attack])] == ["N_G"]
