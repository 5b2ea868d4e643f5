"""Imports point upstream, read from the source itself, imports within functions included."""

import ast
from pathlib import Path

import pytest

import sidepipe
from sidepipe.stages import STAGES

ROOT = Path(sidepipe.__file__).parent
# Each package imports those above it: `ls src/sidepipe` shows all of them.
LAYERS = [
    ["base"],
    ["diffusion", "features", "tracking"],
    ["memorization"],
    ["models"],
    ["engine"],
    ["stages"],
    ["api"],
    ["cli"],
    ["__main__"],
]
# Within these packages modules are layers as well, in this order.
# What stages share lies upstream of the first of them that uses it.
STAGE_PARTS = list(STAGES)
STAGE_PARTS.insert(STAGE_PARTS.index("tune"), "attack")
WITHIN = {"stages": STAGE_PARTS, "cli": ["compare", "main", "sync", "dashboards", "sweep"]}
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
FORBIDDEN = {
    "diffusion": {"pathlib", "os", "hydra", "omegaconf", "lightning"},
    "memorization": {"hydra", "omegaconf", "lightning"},
    "report": {"torch", "lightning"},
}
# Stages read earlier ones through their classes and `load` functions, and through these modules.
SHARED = (
    "attack.attack",
    "attack.guidance",
    "attack.strategies",
    "dpm.exact",
    "dpm.kept",
    "dpm.module",
    "dpm.latent",
    "dpm.pretrained",
    "dpm.pretrained_text",
    "dpm.text",
    "dpm.trained",
    "detect.labels",
    "detect.groups",
    "detect.replays",
    "detect.signals",
    "evaluate.tables",
    "mitigate.adversary",
    "mitigate.judging",
    "data.celeba_files",
    "data.subset",
)
# The list of the stages, which imports nothing, is open to the engine too.
LIST = "stages"
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def imports(path):
    """(module, name) of every import, name "" for a plain `import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                whole = node.module == "sidepipe"
                yield (f"sidepipe.{alias.name}", "") if whole else (node.module, alias.name)


def parts_of(module):
    """The layers of `sidepipe.<module>`: its package, and the part within where there are some."""
    package, _, rest = module.partition(".")
    within = WITHIN.get(package)
    return package, rest.partition(".")[0] if within and rest else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_upstream(path):
    me = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    package, part = parts_of(me)
    assert package in LEVEL, f"say in LAYERS where {package} belongs"
    for module, name in imports(path):
        top, _, inner = module.partition(".")
        for layer in (package, part):
            assert top not in FORBIDDEN.get(layer, ()), f"{layer} does not import {top}"
        if top != "sidepipe" or not inner or inner == LIST:
            continue
        other, of_other = parts_of(inner)
        if other != package:
            assert LEVEL[other] < LEVEL[package], f"{me} lies upstream of {inner}"
        elif part and of_other and part != of_other and of_other != "__init__":
            order = WITHIN[package]
            assert order.index(of_other) < order.index(part), f"{me} lies upstream of {inner}"
            if package == "stages":
                own = inner.removeprefix("stages.")
                assert own in (of_other, f"{of_other}.stage", *SHARED), f"{inner} is private"
                is_open = name.startswith("load") or name[:1].isupper() or own in SHARED
                assert is_open, f"{inner}.{name} is private to {of_other}"


def test_the_list_of_the_stages_imports_nothing():
    assert not list(imports(ROOT / "stages" / "__init__.py"))


def test_the_modules_looked_at_are_those_of_the_package():
    assert {path.relative_to(ROOT).with_suffix("").parts[0] for path in MODULES} <= set(LEVEL)
    packages = {path.name for path in (ROOT / "stages").iterdir() if path.is_dir()}
    assert packages - {"__pycache__"} == set(STAGE_PARTS)


# Who attacks by prompts has captions, and no images.
OF_PROMPTS = {"load_captions", "load_subset"}


@pytest.mark.parametrize(
    "stage", ["generate", "label", "classifier", "lora", "attack", "tune", "extract"]
)
def test_no_stage_of_the_attack_can_reach_the_training_images(stage):
    """Nothing may be tuned on what an attacker does not have; only evaluate compares with it."""
    for path in (ROOT / "stages" / stage).glob("*.py"):
        for module, name in imports(path):
            if path == ROOT / "stages" / "generate" / "prompts.py" and name in OF_PROMPTS:
                continue
            assert not module.startswith("sidepipe.stages.data"), f"{path} reads images of the data"
            assert name != "load_subset", f"{path} reads which images were trained on"
            for seen in ("sidepipe.stages.descriptor", "sidepipe.stages.reference"):
                assert not module.startswith(seen), f"{path} reads what saw the split"


def test_real_labeled_images_come_from_those_the_model_never_saw_through_one_stage_alone():
    """`original` may read images, and no list of the training images; who reads it, is known."""
    of_original = {
        name for path in (ROOT / "stages" / "original").glob("*.py") for _, name in imports(path)
    }
    assert {"load_unseen", "load_identities"} <= of_original
    assert "load_subset" not in of_original
    readers = {
        path.relative_to(ROOT / "stages").parts[0]
        for path in MODULES
        for module, _ in imports(path)
        if module.startswith("sidepipe.stages.original") and path.is_relative_to(ROOT / "stages")
    }
    assert readers == {"label", "original", "evaluate"}
