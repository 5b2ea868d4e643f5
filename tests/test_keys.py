"""Keys: they name what an artifact is, and nothing else.

`UPDATE=1 python -m pytest tests/test_keys.py` writes tests/demo_keys.json again, where a key of the
demo is meant to change.
"""

import json
import os
import re
from functools import cache
from pathlib import Path

import pytest
from tests.composing import composed

from sidepipe.cli.main import CONF
from sidepipe.engine.artifacts import key_of
from sidepipe.engine.plan import plan

DEMO_KEYS = Path(__file__).with_name("demo_keys.json")
ROWS = ("unconditional", "classifier", "posterior")


@cache
def keys(*overrides: str) -> dict[str, str]:
    """Key of every node of the demo by its title."""
    the_plan = plan(composed("experiment=demo", *overrides))
    return {the_plan.title(node): key for key, node in the_plan.nodes.items()}


def changed(*overrides: str) -> set[str]:
    """Stages of which some artifact's key differs from the demo's."""
    now, before = keys(*overrides), keys()
    return {title.split()[0] for title in now if now[title] != before.get(title)}


@pytest.mark.parametrize(
    "override",
    [
        "runtime.outputs=/elsewhere",
        "runtime.data_root=/elsewhere",
        "runtime.sampling_batch_size=7",
        "runtime.devices=2",
        "runtime.num_threads=3",
        "runtime.compile=false",
        "tracking=offline",
        "stage=evaluate",
    ],
)
def test_runtime_and_tracking_never_enter_a_key(override: str) -> None:
    assert changed(override) == set()


def test_the_seed_enters_every_random_stage() -> None:
    assert changed("seed=1") >= {"dpm", "generate", "label", "classifier", "extract"}


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("extract.guidance.guidance_scale=2", {"extract", "evaluate", "report"}),
        ("evaluate.gallery_pairs=10", {"evaluate", "report"}),
        ("report.title=mine", {"report"}),
        ("classifier.lr=0.01", {"classifier", "extract", "evaluate", "report"}),
        ("label.seed=5", {"label", "classifier", "extract", "evaluate", "report"}),
    ],
)
def test_a_setting_changes_its_stage_and_what_reads_it_alone(
    override: str, stages: set[str]
) -> None:
    assert changed(override) == stages


def test_plain_samples_do_not_change_with_guidance() -> None:
    now, before = keys("extract.guidance.guidance_scale=2", "extract.guidance.t_min=5"), keys()
    assert now["extract [unconditional]"] == before["extract [unconditional]"]
    assert now["extract [classifier]"] != before["extract [classifier]"]


def test_a_descriptor_is_made_only_for_an_evaluation_that_asks_for_it() -> None:
    assert "descriptor" not in keys()
    assert changed("descriptor.seed=5") == set()
    asked = ("evaluate=cosine", "features@evaluate.features=copydet")
    here, other = keys(*asked), keys(*asked, "descriptor.seed=5")
    assert {name.split()[0] for name in here if here[name] != other[name]} == {
        *("descriptor", "reference", "evaluate", "report")
    }


def test_rows_share_what_they_have_in_common() -> None:
    titles = keys()
    assert {"data", "dpm", "generate"} <= set(titles)
    assert {f"extract [{row}]" for row in ROWS} <= set(titles)
    assert "classifier [classifier]" in titles


def test_every_baseline_is_an_attack_of_its_own_and_shares_what_it_can() -> None:
    the_plan = plan(composed("attacks=baselines"))
    titles = {the_plan.title(node) for node in the_plan.nodes.values()}
    for row in the_plan.attacks["all"]:
        assert f"extract [{row}]" in titles
    assert {t for t in titles if t.startswith("classifier")} == {
        "classifier [carlini_cond, carlini_cond_x0]",
        "classifier [original_labels]",
        "classifier [random_labels]",
        "classifier [side]",
    }
    assert len([t for t in titles if t.startswith("label")]) == 3


def test_whole_numbers_are_one_setting_in_either_spelling() -> None:
    assert (
        changed("extract.guidance.guidance_scale=1")
        == changed("extract.guidance.guidance_scale=1.0")
        == set()
    )


def test_no_attack_s_images_depend_on_data_but_through_the_model() -> None:
    the_plan = plan(composed("attacks=comparison"))
    for node in the_plan.nodes.values():
        if node.stage.name in ("generate", "label", "classifier", "extract"):
            assert "data" not in node.inputs
    # But for who has labeled images of his own, which the model never saw.
    [title] = [the_plan.title(n) for n in the_plan.nodes.values() if n.stage.name == "original"]
    assert title == "original [original_labels]"


def test_what_is_not_used_is_no_part_of_a_key() -> None:
    for override in (
        "extract.stop_rounds=false",
        "original.fraction=0.1",
    ):
        assert changed(override) == set()
    single = "attacks=single"  # of the demo's attacks one aims at near duplicates
    now, before = keys(single, "near_duplicates.threshold=0.05"), keys(single)
    assert {title for title in now if now[title] != before[title]} == {"evaluate", "report"}
    assert changed("extract.sampler=dpm_solver_pp") == {"extract", "evaluate", "report"}
    assert changed("generate.sampler=dpm_solver_pp") >= {"generate", "label", "extract"}


def test_the_keys_of_the_demo_are_as_they_were() -> None:
    """An edited default or another meaning of the code must not change a key unseen."""
    if os.environ.get("UPDATE"):
        DEMO_KEYS.write_text(json.dumps(keys(), indent=2) + "\n")
    assert keys() == json.loads(DEMO_KEYS.read_text())


def test_a_class_that_moves_to_another_module_keeps_its_key() -> None:
    def key(target: str) -> str:
        settings = {"_target_": target, "inner": [{"_target_": target, "size": 8}]}
        return key_of("dpm", 1, settings, {})

    assert key("sidepipe.stages.dpm.trained.TrainDPM") == key("sidepipe.dpm.TrainDPM")
    assert key("sidepipe.dpm.TrainDPM") != key("sidepipe.dpm.PretrainedDPM")
    assert key("diffusers.UNet2DModel") != key("other.UNet2DModel")


def test_no_two_classes_of_the_configs_have_one_name() -> None:
    """Else two different artifacts could have one key."""
    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    targets = {t for text in texts for t in re.findall(r"_target_: (sidepipe\.\S+)", text)}
    names = [target.rpartition(".")[2] for target in targets]
    assert len(names) > 20
    assert len(names) == len(set(names))
