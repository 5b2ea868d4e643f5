"""Surrogates as strategies: what each reads and has, and that a new one is one class."""

from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

import pytest
import yaml
from tests.composing import composed

from sidepipe.base.settings import check_field_types
from sidepipe.cli.main import CONF
from sidepipe.engine.graph import Node
from sidepipe.engine.plan import plan
from sidepipe.stages.attack.guidance import AttackGuidance
from sidepipe.stages.attack.strategies import (
    AdaptedModel,
    BaseModel,
    Classifier,
    NoSurrogate,
    OtherImages,
    Posterior,
    Surrogate,
)
from sidepipe.stages.detect.labels import DetectLabels
from sidepipe.stages.extract.stage import Extract

KINDS = (NoSurrogate, Classifier, Posterior, AdaptedModel, BaseModel)
FILES = {path.stem: path for path in (CONF / "extract" / "surrogate").glob("*.yaml")}


def extract_of(*overrides: str, attacks: str = "single") -> Node:
    nodes = plan(composed("experiment=smoke", f"attacks={attacks}", *overrides)).nodes
    [node] = [node for node in nodes.values() if node.stage.name == "extract"]
    return node


def surrogate_of(node: Node) -> Surrogate:
    assert isinstance(node.stage, Extract)
    return node.stage.surrogate


@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_of_file_has_all_settings_of_its_class_with_their_defaults(kind) -> None:
    assert yaml.safe_load(FILES[kind().name].read_text()) == asdict(kind())


def test_the_file_of_other_images_has_all_settings_but_the_folder() -> None:
    expected = asdict(OtherImages(folder="???"))
    assert yaml.safe_load(FILES["images"].read_text()) == expected


def test_every_class_has_a_file_and_every_file_a_class() -> None:
    assert set(FILES) == {OtherImages.name, *(kind().name for kind in KINDS)}


@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        (NoSurrogate, set()),
        (Classifier, {"generate", "label", "classifier"}),
        (Posterior, {"generate", "label"}),
        (AdaptedModel, {"generate", "label", "lora"}),
    ],
)
def test_an_attack_reads_the_model_and_what_its_surrogate_reads(kind, reads) -> None:
    node = extract_of(f"extract/surrogate={kind().name}")
    assert set(node.inputs) == {"dpm"} | reads
    assert surrogate_of(node) == kind()


@pytest.mark.parametrize("kind", KINDS[:4])  # tests/stages/extract/test_base.py has the base
def test_all_forms_of_one_surrogate_are_one_artifact(kind) -> None:
    name = kind().name
    by_file = extract_of(f"extract/surrogate={name}").key
    by_name = extract_of(f"extract.surrogate={name}").key
    row = extract_of(f"+attacks.row={{extract: {{surrogate: {name}}}}}", attacks="none").key
    assert by_file == by_name == row


def test_a_setting_of_the_surrogate_changes_the_key_of_its_attack() -> None:
    cut = ("extract/surrogate=posterior", "extract.surrogate.neighbors=5")
    assert surrogate_of(extract_of(*cut)) == Posterior(neighbors=5)
    assert extract_of(*cut).key != extract_of(cut[0]).key
    row = "+attacks.row={extract: {surrogate: {name: posterior, neighbors: 5}}}"
    assert extract_of(row, attacks="none").key == extract_of(*cut).key


def test_a_row_keeps_the_settings_of_the_surrogate_that_it_does_not_replace() -> None:
    given = ("extract/surrogate=posterior", "extract.surrogate.neighbors=5")
    for row, surrogate in (
        ("{surrogate: {name: posterior}}", Posterior(neighbors=5)),
        ("{surrogate: {name: classifier}}", Classifier()),
        ("{surrogate: posterior}", Posterior()),
        ("{guidance: {t_min: 9}}", Posterior(neighbors=5)),
    ):
        node = extract_of(*given, f"+attacks.row={{extract: {row}}}", attacks="none")
        assert surrogate_of(node) == surrogate


@pytest.mark.parametrize(
    ("surrogate", "changes", "message"),
    [
        ("lora", {"guidance_schedule": [[0, 1]]}, r"guidance_schedule must be 'constant' where"),
        ("lora", {"max_guidance_norm": 0.5}, r"max_guidance_norm must be None where .* is 'lora'"),
        ("posterior", {"guidance_schedule": "classifier_quality"}, r"'constant' or points where"),
    ],
)
def test_a_surrogate_refuses_guidance_that_it_cannot_have(surrogate, changes, message) -> None:
    kinds = {kind().name: kind() for kind in KINDS}
    with pytest.raises(ValueError, match=message):
        kinds[surrogate].check_guidance(replace(AttackGuidance(), **changes))
    Classifier().check_guidance(replace(AttackGuidance(), **changes))


def test_detect_takes_every_surrogate_that_guides_and_no_other() -> None:
    for kind in KINDS[1:4]:
        found = check_field_types("detect", DetectLabels, {"surrogate": kind().name})
        assert found == {"surrogate": kind()}
    for name in ("none", "base"):
        chosen = ("detect=labels", f"detect.surrogate={name}")
        with pytest.raises(ValueError, match=rf"one that guides toward labels, got '{name}'"):
            plan(composed("experiment=smoke", *chosen))


def test_a_new_surrogate_is_one_class() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Planted(Surrogate):
        name: Literal["planted"] = "planted"
        reads: ClassVar[tuple[str, ...]] = ("generate", "label")
        width: int = 3

    row = "+attacks.new={extract: {surrogate: {name: planted, width: 5}}}"
    node = extract_of(row, attacks="none")
    assert surrogate_of(node) == Planted(width=5)
    assert node.settings["surrogate"] == {"name": "planted", "width": 5}
    assert set(node.inputs) == {"dpm", "generate", "label"}
    misspelled = row.replace("width: 5", "widht: 5")
    with pytest.raises(ValueError, match=r"surrogate=planted, which has .*\.width$"):
        plan(composed("experiment=smoke", "attacks=none", misspelled))
