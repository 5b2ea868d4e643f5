"""Imports point upstream, read from the source itself, imports within functions included."""

import ast
from pathlib import Path

import pytest

import sidepipe

ROOT = Path(sidepipe.__file__).parent
STAGES = [
    *("data", "dpm", "generate", "original", "label", "classifier", "lora", "tune", "extract"),
    *("descriptor", "reference", "evaluate", "detect", "explain", "mitigate", "report"),
]
LAYERS = [
    {"files"},
    {"settings", "artifacts", "shards", "parts", "records", "images", "interruption"}
    | {"image_files", "image_pixels", "openmp"},
    {"ranks", "logs", "refusals", "integrity", "attempts", "celeba_files", "pretrained"},
    {"threads", "weights", "schedules"},
    {"stage", "progress", "tracking", "speed", "checkpoints", "shard_writer"},
    {"diffusion", "features", "thread_callback"},
    {"text"},
    {"sampling", "training"},
    {"trained"},
    *({stage} for stage in STAGES),
    {"dashboards"},
    {"graph"},
    {"pipeline"},
    {"status"},
    {"__main__"},
    {"sweep"},
]
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
FORBIDDEN = {
    "diffusion": {"pathlib", "os", "hydra", "omegaconf", "lightning"},
    "report": {"torch", "lightning"},
}
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_upstream(path):
    me = path.relative_to(ROOT).with_suffix("").parts[0]
    assert me in LEVEL, f"say in LAYERS where {me} belongs"
    for module, name in imports(path):
        package, _, inner = module.partition(".")
        assert package not in FORBIDDEN.get(me, ()), f"{me} knows nothing of {package}"
        other = inner.partition(".")[0]
        if package != "sidepipe" or other == me:
            continue
        assert LEVEL[other] < LEVEL[me], f"{me} lies upstream of {other}"
        if me in STAGES and other in STAGES:
            # Of an earlier stage: how to read its artifact, and its class, to check its settings.
            others = ("dpm.text", "detect.labels", "extract.surrogates")
            of_it = (other, f"{other}.stage", *others)
            assert inner in of_it, f"{module} is {other}'s own business"
            assert name.startswith("load") or name[:1].isupper(), f"{module}.{name} is not for {me}"


def test_the_modules_looked_at_are_those_of_the_package():
    assert {"diffusion", "data", "pipeline", "__main__"} <= {
        path.relative_to(ROOT).with_suffix("").parts[0] for path in MODULES
    }


# Who attacks by prompts has captions, and no images.
OF_PROMPTS = {"load_captions", "load_subset"}


@pytest.mark.parametrize("stage", ["generate", "label", "classifier", "lora", "tune", "extract"])
def test_no_stage_of_the_attack_can_reach_the_training_images(stage):
    """Nothing may be tuned on what an attacker does not have; only evaluate compares with it."""
    for path in (ROOT / stage).glob("*.py"):
        for module, name in imports(path):
            if path == ROOT / "generate" / "prompts.py" and name in OF_PROMPTS:
                continue
            assert not module.startswith("sidepipe.data"), f"{path} reads images of the data"
            assert name != "load_subset", f"{path} reads which images were trained on"
            for seen in ("sidepipe.descriptor", "sidepipe.reference"):
                assert not module.startswith(seen), f"{path} reads what saw the split"


def test_real_labeled_images_come_from_those_the_model_never_saw_through_one_stage_alone():
    """`original` may read images, and no list of the training images; who reads it, is known."""
    of_original = {name for path in (ROOT / "original").glob("*.py") for _, name in imports(path)}
    assert {"load_unseen", "load_identities"} <= of_original
    assert "load_subset" not in of_original
    readers = {
        path.relative_to(ROOT).parts[0]
        for path in MODULES
        for module, _ in imports(path)
        if module.startswith("sidepipe.original")
    }
    assert readers == {"label", "original", "evaluate"}
