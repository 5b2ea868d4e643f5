"""`report=audit`: two pages for people who decide, whose facts are counted here."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from tests.stages.report.conftest import CHROMIUM
from tests.stages.report.pages import Page, hit_images, rows_of
from tests.stages.report.planted import RUNTIME
from tests.stages.report.test_audit import CHANCES, audited

from sidepipe.engine.stage import Job
from sidepipe.memorization.rarefaction import rarefaction
from sidepipe.stages.report.decision import stage
from sidepipe.stages.report.decision.facts import _origin, _subjects
from sidepipe.stages.report.decision.stage import FACTS, AuditReport
from sidepipe.stages.report.stage import page_path

SCHEMA = Path(stage.__file__).with_name("schema.json")
KINDS = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
KINDS |= {"number": (int, float), "null": type(None)}


def require_valid(value, schema, where="audit.json"):
    """Raises AssertionError unless a value has the structure of a JSON schema."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    fits = [kind for kind in kinds if isinstance(value, KINDS[kind])]
    # In Python, True is a whole number.
    assert fits, where
    assert not isinstance(value, bool) or "boolean" in kinds, where
    assert value == schema.get("const", value), where
    assert value in schema.get("enum", [value]), where
    if isinstance(value, dict):
        own = schema.get("properties", {})
        assert set(schema.get("required", [])) <= set(value), where
        for name, inner in value.items():
            further = own.get(name, schema.get("additionalProperties", {}))
            assert further is not False, f"{where}.{name}"
            require_valid(inner, further, f"{where}.{name}")
    if isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)), where
        for inner in value:
            require_valid(inner, schema["items"], f"{where}[]")


def made(folder, inputs, **settings):
    own = {"title": "Audit of a model", "author": "A. Person", "pictures": 0} | settings
    AuditReport(**own).run(Job(folder, inputs, RUNTIME))
    found = json.loads((folder / FACTS).read_text())
    require_valid(found, json.loads(SCHEMA.read_text()))
    return found, Page(page_path(folder).read_text())


@pytest.fixture(scope="module")
def audit(outputs):
    """The first 20 training images of 60 come back, and one held-out image."""
    gamma = {kind: np.full(60, 0.2, np.float32) for kind in ("train", "heldout")}
    gamma["train"][:20], gamma["heldout"][0] = 0.01, 0.01
    return audited(outputs, "decided", 60, gamma)


def test_the_schema_is_published():
    published = Path(__file__).parents[3] / "docs" / "audit-schema.json"
    assert published.read_bytes() == SCHEMA.read_bytes()


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [("date", 3, "date"), ("extra", 1, "extra"), ("schema_version", 2, "schema_version")],
)
def test_facts_that_are_not_of_the_schema_are_found(outputs, audit, tmp_path, name, value, fault):
    found, _ = made(tmp_path, {"audit": audit})
    with pytest.raises(AssertionError, match=fault):
        require_valid({**found, name: value}, json.loads(SCHEMA.read_text()))


def test_attacks_are_counted_and_the_rest_is_named_as_not_tested(outputs, tmp_path):
    found, page = made(tmp_path, outputs.inputs)
    by_name = {one["name"]: one for one in found["attacks"]}
    rows = rows_of(outputs, "early", "nearest.csv")
    hits, different = sum(row["hit"] == "1" for row in rows), len(hit_images(outputs, "early"))
    assert by_name["early"]["copies"] == hits
    assert by_name["early"]["different_images"] == different
    assert f"copies of {different} of 256 training images" in found["answer"]
    assert found["answer"] in page.text
    assert found["budget"]["generated_images"] == sum(
        a["generated_images"] for a in by_name.values()
    )
    seen = set().union(*(set(hit_images(outputs, name)) for name in outputs.inputs))
    assert found["not_found"]["training_images"] == 256 - len(seen)
    # The rule of three.
    number = by_name["early"]["generated_images"]
    assert found["not_found"]["upper_bound"] == pytest.approx(3 / number, rel=0.02)
    assert found["audit"] is None
    assert found["subjects"] is None
    for text in ("one by one", "risk per person", "without the training images"):
        assert text in " ".join(found["not_tested"])
    most = max(found["worst"], key=lambda row: row["hits"])
    assert found["worst"][0]["hits"] == most["hits"]
    of_image = [row for n in outputs.inputs for row in rows_of(outputs, n, "nearest.csv")]
    own = [r for r in of_image if r["hit"] == "1" and r["train_id"] == found["worst"][0]["id"]]
    assert found["worst"][0]["hits"] == len(own)


def test_an_audit_alone_says_that_nothing_was_generated(audit, tmp_path):
    found, page = made(tmp_path, {"audit": audit})
    assert "reproduces 20 of 60 training images" in found["answer"]
    assert "1 of 60 images that it never saw" in found["answer"]
    assert found["attacks"] == []
    assert found["not_found"] is None
    assert found["budget"] == {"generated_images": 0, "network_evaluations": 120 * 120}
    (estimate,) = found["extractable"]
    assert estimate["expected"] == pytest.approx(20 - 1)
    low, high = estimate["interval"]
    assert 0 < low < 19 < high < 60
    assert "No generated images were compared" in page.text
    assert [row["flagged"] for row in found["worst"]] == [True] * 12


def test_both_together_rank_the_images_by_copies_and_then_by_the_audit(outputs, audit, tmp_path):
    found, page = made(tmp_path, {**outputs.inputs, "audit": audit})
    hits = [row["hits"] for row in found["worst"]]
    assert hits == sorted(hits, reverse=True)
    assert {"early", "audit"} <= {row["basis"] for row in found["extractable"]}
    assert "audit by A. Person" in page.text


def test_no_evidence_is_not_called_safe(outputs, tmp_path):
    gamma = {kind: np.full(30, 0.2, np.float32) for kind in ("train", "heldout")}
    found, page = made(tmp_path, {"audit": audited(outputs, "nothing", 30, gamma)}, author=None)
    assert found["answer"].startswith("There is no evidence")
    assert "no proof" in page.text
    assert "audit by" not in page.text
    assert found["extractable"][0]["interval"][1] > 0


def test_without_the_training_images_the_answer_says_so(blind, tmp_path):
    found, _ = made(tmp_path, blind[0].inputs)
    assert found["answer"].startswith("No test of this run compares")
    assert found["attacks"] == []


def test_pictures_are_off_unless_asked_for(audit, tmp_path):
    assert not made(tmp_path, {"audit": audit})[1].all("img")
    (tmp_path / "shown").mkdir()
    assert len(made(tmp_path / "shown", {"audit": audit}, pictures=5)[1].all("img")) == 5
    with pytest.raises(ValueError, match=r"report\.pictures must be in \[0, 12\], got 13"):
        AuditReport(title="a", author=None, pictures=13)


@pytest.fixture(scope="module")
def attacks(outputs, tmp_path_factory):
    """Attacks whose hits are written here: generated images, hits by image, held-out hits."""
    folder = tmp_path_factory.mktemp("hits")
    source = outputs.inputs["early"]

    def planted(name, interval, num_images, unique, chance):
        """An attack of `unique` different images, one hit each, and `chance` held-out ones."""
        made = outputs.start("evaluate", f"{folder.name}-{name}")
        shutil.copytree(source, made, dirs_exist_ok=True)
        results = json.loads((made / "results.json").read_text())
        first = results["calibrated"][0]
        first["train"] |= {"count": unique, "unique": unique}
        first["heldout"] |= {"scaled": chance, "unique": chance}
        share = (unique - chance) / num_images
        first["excess"] = {"share": share, "interval": interval}
        hits = np.arange(unique)
        curve = rarefaction(hits, num_images, hits[: unique // 4], 256)
        results |= {"num_images": num_images, "rarefaction": curve}
        (made / "results.json").write_text(json.dumps(results))
        return made

    return planted


def test_the_finding_is_that_of_the_best_evidence_and_not_of_the_most_images(attacks, tmp_path):
    inputs = {
        "refined": attacks("refined", [-0.12, 0.07], 200, 50, 52.0),
        "unconditional": attacks("unconditional", [0.05, 0.11], 400, 36, 4.0),
    }
    found, page = made(tmp_path, inputs)
    assert [one["finding"] for one in found["attacks"]] == ["copies", "inconclusive"]
    assert "copies of 36 of 256 training images" in found["answer"]
    assert "never saw, 4 would be matched" in found["answer"]
    assert {row["basis"] for row in found["extractable"]} == {"unconditional"}
    assert [row["by_chance"] for row in found["extractable"]] == [4, None]
    assert found["not_found"]["attack"] == "unconditional"
    assert "too few images for a conclusion" in page.text


@pytest.mark.parametrize(
    ("interval", "images", "finding", "words"),
    [
        ([-0.04, 0.02], 2000, "chance", "this is no evidence of copying"),
        ([-0.1, 0.12], 150, "inconclusive", "too few images for a conclusion"),
    ],
)
def test_hits_by_chance_give_no_number_of_images(
    attacks, tmp_path, interval, images, finding, words
):
    found, page = made(tmp_path, {"refined": attacks(finding, interval, images, 26, 24.0)})
    (attack,) = found["attacks"]
    assert (attack["finding"], attack["at_least"]) == (finding, None)
    assert found["answer"].startswith("26 of")
    assert words in found["answer"]
    assert ("no evidence" in found["answer"]) == (finding == "chance")
    assert found["extractable"] == []
    assert found["not_found"]["next_new_share"] is None
    assert "at least" not in page.text
    assert "can be extracted from" not in page.text
    assert found["worst"] == []
    assert "None was found." in page.text


def test_no_copy_among_few_images_is_not_a_conclusion(attacks, tmp_path):
    found, _ = made(tmp_path, {"few": attacks("few", [-0.25, 0.25], 12, 0, 0.0)})
    assert found["answer"].startswith("No copy of a training image was found among 12")
    assert found["answer"].endswith("too few images for a conclusion.")


def test_a_lower_bound_never_exceeds_its_estimate(outputs, tmp_path):
    found, _ = made(tmp_path, outputs.inputs)
    best, estimate = found["attacks"][0], found["extractable"][-1]
    assert best["name"] == estimate["basis"]
    assert best["at_least"] <= estimate["expected"]


def test_the_audit_leads_where_no_attack_finds_a_copy(outputs, attacks, tmp_path):
    gamma = {kind: np.full(64, 0.2, np.float32) for kind in ("train", "heldout")}
    gamma["train"][:60] = 0.01
    inputs = {"none": attacks("none", [-0.002, 0.002], 2000, 0, 0.0)}
    inputs["audit"] = audited(outputs, "leads", 64, gamma)
    found, page = made(tmp_path, inputs)
    assert found["answer"].startswith(
        "The model has stored training images: it reproduces 60 of 64"
    )
    assert "No copy of a training image was found among 2,000" in found["answer"]
    assert found["answer"] in page.text
    assert [row["flagged"] for row in found["worst"]] == [True] * 12


def test_flags_of_an_audit_that_flags_held_out_images_as_often_list_no_image(outputs, tmp_path):
    gamma = {kind: np.full(64, 0.2, np.float32) for kind in ("train", "heldout")}
    for kind in gamma:
        gamma[kind][:60] = 0.01
    found, page = made(tmp_path, {"audit": audited(outputs, "alike", 64, gamma)})
    assert found["worst"] == []
    assert "None was found." in page.text


def test_dataset_inference_is_told_with_its_condition_or_named_as_not_tested(outputs, tmp_path):
    gamma = {kind: np.full(30, 0.2, np.float32) for kind in ("train", "heldout")}
    power = [{"size": 5, "power": 0.2}, {"size": 10, "power": 0.75}]
    inference = {"p_value": 0.00042, "statistic": 3.9, "num_suspects": 15, "num_control": 15}
    inference |= {"level": 0.01, "power": power, "unit": "subject"}
    found, page = made(tmp_path, {"audit": audited(outputs, "set", 30, gamma, inference)})
    assert found["audit"]["inference"] == {k: v for k, v in inference.items() if k != "statistic"}
    assert "p = 0.00042 (15 subjects against 15" in page.text
    assert "if the subjects are independent" in page.text
    assert "dataset inference" not in " ".join(found["not_tested"])
    without, page = made(tmp_path, {"audit": audited(outputs, "no-set", 30, gamma)})
    assert "dataset inference" in " ".join(without["not_tested"])
    assert "p = " not in page.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"score": "population"},
            "in closed form of the distribution of the images, without training",
        ),
        ({"path": "my/model"}, "my/model"),
        ({"path": "my/model", "max_steps": 9}, "my/model, fine-tuned by this program"),
        ({"max_steps": 9}, "trained by this program"),
        ({}, "images of another tool"),
    ],
)
def test_the_origin_of_the_model_is_true(settings, words):
    assert _origin(cast("Any", SimpleNamespace(settings=settings))).endswith(words)


def test_attacks_have_descriptions_and_no_page_claims_every_test(outputs, tmp_path):
    found, page = made(tmp_path, outputs.inputs)
    for attack in found["attacks"]:
        assert " ".join(f"{attack['description']} ({attack['name']})".split()) in page.text
    assert "Other attacks" in found["not_tested"][-1]
    assert ", key" not in page.text


@pytest.mark.browser
def test_it_prints_on_two_pages(outputs, audit, tmp_path):
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"needs {CHROMIUM}")
    made(tmp_path, {**outputs.inputs, "audit": audit}, pictures=12)
    file = tmp_path / "printed.pdf"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--print-to-pdf={file}"]
    options += [f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run([CHROMIUM, *options, page_path(tmp_path).as_uri()], check=True, timeout=120)
    assert file.read_bytes().count(b"/Type /Page\n") == 2


def test_the_images_of_one_subject_are_one_row_of_the_subjects():
    rows = [("a", 0, True), ("b", 2, True), ("a", 0, False), ("b", 1, False), ("c", 0, False)]
    images = pd.DataFrame(rows, columns=["subject", "hits", "flagged"])
    images = images.assign(id="x", probability=None)
    found = _subjects(images)
    assert found is not None
    assert (found["number"], found["at_risk"]) == (3, 2)
    first = {"subject": "b", "images": 2, "hits": 3, "flagged": 1, "probability": None}
    assert found["worst"][0] == first
    assert [row["subject"] for row in found["worst"]] == ["b", "a", "c"]


def test_the_chance_of_extraction_is_told_per_image_and_in_all(outputs, tmp_path):
    gamma = {kind: np.full(30, 0.2, np.float32) for kind in ("train", "heldout")}
    gamma["train"][:10] = 0.01
    audit = audited(outputs, "chances", 30, gamma, extraction=CHANCES)
    found, page = made(tmp_path, {"audit": audit})
    kept = [name for name in CHANCES if name not in ("hits", "heldout_hits")]
    assert found["audit"]["extraction"] == {name: CHANCES[name] for name in kept}
    (row,) = [one for one in found["extractable"] if one["basis"] == "audit probability"]
    assert (row["generated_images"], row["expected"]) == (8000, 41.6)
    assert (row["interval"], row["by_chance"]) == ([30, 55], 2.2)
    assert found["budget"]["network_evaluations"] == 120 * 60 + 1800
    assert [one["probability"] for one in found["worst"]] == pytest.approx(
        np.linspace(1, 0, 60)[:10]
    )
    assert "8,000 generated images, expected from" in page.text
    assert "100 generated images, 100 of them by the audit; 9,000 evaluations" in page.text
    assert "No attack was run" in found["answer"]
    assert "No generated images" not in page.text


def test_an_expected_number_is_rounded_as_that_by_chance(outputs, tmp_path):
    gamma = {kind: np.full(30, 0.2, np.float32) for kind in ("train", "heldout")}
    few = {**CHANCES, "hits": 0, "expected": 2.4, "interval": [0.02, 6.2], "heldout_expected": 2.4}
    audit = audited(outputs, "few", 30, gamma, extraction=few)
    found, page = made(tmp_path, {**outputs.inputs, "audit": audit})
    row = "8,000 generated images, expected from the model's treatment of each image and from 100 "
    assert f"{row}generated images2.40.02 to 6.22.4" in page.text
    attacks = sum(attack["generated_images"] for attack in found["attacks"])
    assert found["budget"]["generated_images"] == attacks + 100
    number = found["not_found"]["training_images"]
    assert f"{number} training images have no copy among the generated images." in page.text


def test_the_chance_of_a_subject_is_that_of_at_least_one_image():
    images = pd.DataFrame({"id": ["a", "b", "c"], "subject": ["one", "one", "two"], "hits": 0})
    images = images.assign(flagged=False, probability=[0.5, 0.4, 0.1])
    found = _subjects(images)
    assert found is not None
    chances = {row["subject"]: row["probability"] for row in found["worst"]}
    assert chances == pytest.approx({"one": 1 - 0.5 * 0.6, "two": 0.1})
