"""Methods of mitigation as strategies: their settings and keys, and that a new one is one class."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pytest
import torch
import yaml
from tests.composing import composed
from tests.stages.mitigate.replaying import LOUD, Replaying, artifacts
from tests.tiny import RUNTIME

from sidepipe.base.settings import check_field_types
from sidepipe.cli.main import CONF
from sidepipe.engine.graph import Node
from sidepipe.engine.plan import plan
from sidepipe.engine.stage import Job
from sidepipe.stages.mitigate import stage as module
from sidepipe.stages.mitigate.requests import Mitigated, requests
from sidepipe.stages.mitigate.stage import Mitigate, _known, load
from sidepipe.stages.mitigate.strategies import (
    AttentionScaling,
    DroppedWord,
    LoweredEmbedding,
    Method,
    NoMethod,
    RandomNumbers,
    RandomTokens,
)
from sidepipe.stages.mitigate.weights import Pruning, Unlearning

KINDS = (
    NoMethod,
    LoweredEmbedding,
    RandomNumbers,
    RandomTokens,
    DroppedWord,
    AttentionScaling,
    Pruning,
    Unlearning,
)
FILES = {path.stem: path for path in (CONF / "mitigate" / "method").glob("*.yaml")}
SINGLE = ("experiment=demo_text", "mitigations=single")


def nodes_of(*overrides: str) -> list[Node]:
    nodes = plan(composed(*overrides)).nodes.values()
    return [node for node in nodes if node.stage.name == "mitigate"]


def method_of(node: Node) -> Method:
    assert isinstance(node.stage, Mitigate)
    return node.stage.method


@pytest.fixture
def planted(tmp_path):
    """Inputs, and a model with no method that replays a training image for the word marigold."""
    inputs, images = artifacts(tmp_path / "planted")
    model: Any = Replaying(images[3])
    settings: Any = {"guidance_scale": 1.0, "num_inference_steps": 3, "seed": 0}
    return inputs, Mitigated(model=model, method=NoMethod(), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_of_file_has_all_settings_of_its_class_with_their_defaults(kind) -> None:
    assert yaml.safe_load(FILES[kind().name].read_text()) == asdict(kind())


def test_every_class_has_a_file_and_every_file_a_class() -> None:
    assert set(FILES) == {kind().name for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_all_forms_of_one_method_are_one_artifact(kind) -> None:
    name = kind().name
    [by_file] = nodes_of(*SINGLE, f"mitigate/method={name}")
    [by_name] = nodes_of(*SINGLE, f"mitigate.method={name}")
    row = f"mitigations.mitigation={{mitigate: {{method: {name}}}}}"
    [of_row] = nodes_of(*SINGLE, f"+{row}")
    assert by_file.key == by_name.key == of_row.key
    assert method_of(by_file) == kind()


def test_the_benchmark_has_a_row_for_each_method_with_its_own_settings() -> None:
    rows = plan(composed("experiment=demo_text", "mitigations=benchmark")).goals("report")[0].inputs
    found = {name: node for name, node in rows.items() if name.startswith("mitigate ")}
    assert {method_of(node).name for node in found.values()} == set(FILES)
    assert len({node.key for node in found.values()}) == len(found)
    for name, node in found.items():
        assert node.settings["method"] == asdict(method_of(node)), name


def test_a_setting_of_one_method_changes_the_keys_of_its_rows_alone() -> None:
    def keys(*more: str) -> dict[str, str]:
        the_plan = plan(composed("experiment=demo_text", "mitigations=compare", *more))
        return {name: node.key for name, node in the_plan.goals("report")[0].inputs.items()}

    own = "mitigations.attention={mitigate: {method: {name: attention, start_scale: 1.5}}}"
    now, before = keys(f"+{own}"), keys()
    assert {name for name in now if now[name] != before[name]} == {"mitigate attention"}


def test_an_embedding_is_led_to_the_median_of_detect_unless_a_target_is_given(planted) -> None:
    inputs, mitigated = planted
    known = _known(inputs)
    built = LoweredEmbedding(lr=0.1).build(mitigated, known, inputs)
    assert built.method == LoweredEmbedding(lr=0.1, target=0.2)  # as the fake detect measured
    assert LoweredEmbedding(target=3.0).build(mitigated, known, inputs) is mitigated


def test_random_words_are_ordinary_ones_and_as_many_as_asked_for(planted) -> None:
    inputs, mitigated = planted
    method = RandomTokens(num_tokens=3)
    built = method.build(replace(mitigated, method=method), _known(inputs), inputs)
    assert "marigold" not in built.words
    assert "seven" in built.words
    asked = requests(["a plain six"], [0], 2)
    e, spent = built.embeddings(asked)
    assert (e[:, :, 0] > 0).sum(1).tolist() == [6, 6]
    assert spent.tolist() == [0, 0]


def test_a_method_without_a_change_gives_the_captions_and_the_network_as_they_are(planted) -> None:
    _, mitigated = planted
    asked = requests(["a bold seven near marigold"], [0], 2)
    e, spent = mitigated.embeddings(asked)
    torch.testing.assert_close(e, mitigated.model.encode(asked.captions))
    assert spent.tolist() == [0, 0]
    with mitigated.network(asked):
        pass


def test_a_new_method_is_one_class(tmp_path, monkeypatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Softer(Method):
        """Embeddings times a factor."""

        name: Literal["softer"] = "softer"
        factor: float = 0.5

        def embeddings(self, mitigated, asked):
            e, spent = super().embeddings(mitigated, asked)
            return e * self.factor, spent + 5

    row = "mitigations.mitigation={mitigate: {method: {name: softer, factor: 0}}}"
    [node] = nodes_of(*SINGLE, f"+{row}")
    assert method_of(node) == Softer(factor=0.0)
    assert node.settings["method"] == {"name": "softer", "factor": 0.0}

    inputs, images = artifacts(tmp_path / "planted")
    replaying = Replaying(images[3])
    monkeypatch.setattr(module, "load_placed_model", lambda folder, precision, runtime: replaying)
    settings = {
        "num_prompts": None,
        "num_generations": 2,
        "copied_share": 0.5,
        "adversary": None,
        "clip": None,
        "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
        "num_inference_steps": 5,
        "guidance_scale": LOUD,
        "precision": "32-true",
        "seed": 0,
    }
    shares = {}
    for factor in (1.0, 0.0):
        folder = tmp_path / str(factor)
        folder.mkdir()
        method = {"name": "softer", "factor": factor}
        fitting = check_field_types("mitigate", Mitigate, {**settings, "method": method})
        Mitigate(**fitting).run(Job(folder, inputs, RUNTIME))
        results = load(folder)
        assert results["method"] == "softer"
        assert results["evaluations_per_image"] == 10 + 5
        shares[factor] = results["memorized"]["memorized"]["prompts"]["share"]
    assert shares == {1.0: 1, 0.0: 0}
