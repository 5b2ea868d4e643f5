"""The configs: every option composes and mirrors its package; wrong arguments are found at once."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import ConfigCompositionException
from tests.composing import composed, planned

from sidepipe.cli.main import CONF, main
from sidepipe.stages import STAGES

GROUPS = (
    *("data", "diffusion", "autoencoder", "dpm", "generate", "shadow", "original", "label"),
    *("classifier", "lora", "tune", "extract", "descriptor", "reference", "evaluate", "detect"),
    *("explain", "mitigate", "search", "canaries"),
    "mitigations",
)
# What a user must choose, so that options with ??? can be composed.
TRAINED_ON = "dpm.train_partitions=[train]"
PLANTED = ["data=planted", "dpm=words8"]
LATENT = ["data=celeba", "dpm=latent", TRAINED_ON]
TABLE = ["experiment=demo_table"]
MITIGATED = [*PLANTED, "detect=prompts", "mitigate=inference"]
CHOSEN = {
    "data=none": ["data.size=64", "dpm=pretrained", "dpm.path=a/model", "evaluate.truth=none"],
    "data=table": TABLE,
    "dpm=table": TABLE,
    "evaluate=rows": TABLE,
    "classifier=rows": TABLE,
    "data=imagefolder": ["data.source.folder=/images", "dpm=unet64", TRAINED_ON],
    "data=celeba": ["dpm=unet64", TRAINED_ON],
    "data=celeba_hq_fi": ["dpm=unet64", TRAINED_ON],
    "data=cifar10": ["dpm=unet32", TRAINED_ON],
    "dpm=unet32": [TRAINED_ON],
    "dpm=unet64": [TRAINED_ON],
    "dpm=unet128": ["data.size=16", TRAINED_ON],
    "dpm=latent": LATENT,
    "autoencoder=small": LATENT,
    "attacks=latent": LATENT,
    "dpm=pretrained": ["dpm.path=someone/model", TRAINED_ON],
    "dpm=finetuned": ["dpm.path=someone/model", TRAINED_ON],
    "experiment=captions": ["data.source.file=/pairs.csv"],
    "data=captioned": ["data.source.file=/pairs.csv", "dpm=unet64", TRAINED_ON],
    "dpm=words8": ["data=planted"],
    "dpm=words32": ["data=planted", "data.size=32"],
    "dpm=stable_diffusion": ["dpm.path=someone/model", TRAINED_ON],
    "detect=prompts": PLANTED,
    "explain=tokens": [*PLANTED, "detect=prompts"],
    "mitigate=inference": [*PLANTED, "detect=prompts", "mitigations=single"],
    "mitigations=single": MITIGATED,
    "mitigations=compare": MITIGATED,
    "mitigations=prune": MITIGATED,
    "mitigations=benchmark": MITIGATED,
    "mitigations=unlearn": MITIGATED,
    "mitigations=trained": MITIGATED,
    "search=gibbs": [*PLANTED, "detect=prompts"],
    "search=genetic": [*PLANTED, "detect=prompts"],
    "canaries=triggers": [*PLANTED, "data.canaries={}"],
    "canaries=images": ["data.canaries={}"],
    "attacks=none": ["experiment=demo_text"],
    "attacks=conditional": PLANTED,
    "attacks=classes": ["dpm=tiny_classes"],
    "clock=onsets": ["dpm.keep_every_steps=1000"],
    "sweep=attack_finetuned": ["dpm.path=someone/model"],
    "attacks=finetuned": ["dpm=finetuned", "dpm.path=someone/model", TRAINED_ON],
}
# Groups whose default is null: `stage=` then has nothing to make.
ABSENT = {
    "autoencoder": LATENT,
    "clock": ["clock=onsets", "dpm.keep_every_steps=1000"],
    "audit": ["audit=returns"],
    "verdict": ["verdict=shadow"],
    "detect": ["detect=labels"],
    "explain": [*PLANTED, "detect=prompts", "explain=tokens"],
    "mitigate": [*MITIGATED, "mitigations=single"],
    "search": [*PLANTED, "detect=prompts", "search=gibbs"],
    "canaries": ["data.canaries={}", "canaries=images"],
}


# Options that need files of others' weights, and those that others begin with.
NEEDS_WEIGHTS = {
    ("evaluate", "cosine"),
    ("detect", "stable_diffusion"),
    ("autoencoder", "pretrained"),
}
BASES = {("dpm", "base"), ("dpm", "image_base"), ("dpm", "text_base"), ("search", "base")}
BASES |= {("classifier", "base"), ("canaries", "base")}
# Without a model there are only images of a folder: tests/stages/extract/test_images.py.
OTHER_IMAGES = {("dpm", "none"), ("extract", "images")}


def _yaml_files() -> list[Path]:
    return sorted(CONF.glob("*/*.yaml"))


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in _targets(value)]
    return []


@pytest.mark.parametrize("path", _yaml_files(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_targets_of_a_group_lie_in_the_package_of_that_name(path: Path) -> None:
    for target in _targets(yaml.safe_load(path.read_text())):
        if target.startswith("sidepipe."):
            package = (
                path.parent.name if path.parent.name == "features" else f"stages.{path.parent.name}"
            )
            network = path.parent.name == "dpm" and target.startswith("sidepipe.models.")
            assert network or target.startswith(f"sidepipe.{package}.")


@pytest.mark.parametrize(
    "path",
    sorted([*CONF.glob("experiment/*.yaml"), *CONF.glob("sweep/*.yaml")]),
    ids=lambda p: f"{p.parent.name}/{p.stem}",
)
def test_experiments_and_sweeps_are_global_and_hold_overrides_only(path: Path) -> None:
    assert path.read_text().startswith("# @package _global_")
    assert _targets(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    "option",
    [
        f"{group}={path.stem}"
        for group in GROUPS
        for path in sorted((CONF / group).glob("*.yaml"))
        if (group, path.stem) not in NEEDS_WEIGHTS | BASES | OTHER_IMAGES
    ],
)
def test_every_option_makes_a_plan(option: str) -> None:
    assert planned(option, *CHOSEN.get(option, [])).nodes


@pytest.mark.parametrize(
    "name", ["demo", "demo_text", "smoke", "faces16", "faces32", "faces64_latent", "cifar10"]
)
def test_experiments_without_foreign_weights_make_a_plan(name: str) -> None:
    assert planned(f"experiment={name}").nodes


def _rows(path: Path) -> list[str]:
    """Rows of a file of attacks, those of its defaults first."""
    written = yaml.safe_load(path.read_text())
    files = [path.parent / f"{name}.yaml" for name in written.pop("defaults", ["_self_"])[:-1]]
    return [*(row for file in files for row in _rows(file)), *written]


@pytest.mark.parametrize("path", sorted(CONF.glob("attacks/*.yaml")), ids=lambda p: p.stem)
def test_attacks_make_a_plan_with_a_row_each(path: Path) -> None:
    option = f"attacks={path.stem}"
    the_plan = planned(option, *CHOSEN.get(option, []))
    report = the_plan.goals("report")[0]
    rows = [row for row, node in report.inputs.items() if node.stage.name == "evaluate"]
    assert rows == list(dict.fromkeys(_rows(path)))


def test_every_mitigation_is_judged_on_the_prompts_that_the_unchanged_model_memorized() -> None:
    the_plan = planned("experiment=demo_text", "mitigations=trained")
    rows = the_plan.goals("report")[0].inputs
    unchanged = the_plan.goals("detect")[0]
    mitigated = {row: node for row, node in rows.items() if node.stage.name == "mitigate"}
    assert list(mitigated) == [
        f"mitigate {row}" for row in _rows(CONF / "mitigations/trained.yaml")
    ]
    assert {node.inputs["detect"].key for node in mitigated.values()} == {unchanged.key}
    models = {row: node.inputs["dpm"].key for row, node in mitigated.items()}
    trained_anew = {row for row, key in models.items() if key != unchanged.inputs["dpm"].key}
    assert trained_anew == {"mitigate filter", "mitigate deduplicated"}


@pytest.mark.parametrize("name", ["demo_text", "captions"])
def test_one_model_is_trained_unless_mitigations_in_training_are_wanted(name: str) -> None:
    options = [f"experiment={name}", *CHOSEN.get(f"experiment={name}", [])]
    assert len(planned(*options).goals("dpm")) == 1
    assert len(planned(*options, "mitigations=trained").goals("dpm")) == 3


def test_rows_that_train_different_models_are_refused_before_the_first_stage() -> None:
    rows = ["attacks=checkpoint", "+attacks.b={dpm: {lr: 0.01}, extract: {surrogate: none}}"]
    with pytest.raises(
        ValueError, match=r"rows of a report must be of one model, got .*'refined'.*'b'"
    ):
        planned(*rows)
    assert len(planned(*rows, "stage=evaluate").goals("evaluate")) == 3


def test_a_config_that_asks_for_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="not all empty"):
        planned("attacks=none")


def test_what_a_stage_reads_must_be_there() -> None:
    with pytest.raises(ValueError, match="detect must be set, for explain reads it"):
        planned(*PLANTED, "explain=tokens")
    with pytest.raises(ValueError, match="mitigate must be set, for mitigations reads it"):
        planned(*PLANTED, "detect=prompts", "mitigations=compare")


@pytest.mark.parametrize("path", sorted(CONF.glob("sweep/*.yaml")), ids=lambda p: p.stem)
def test_sweeps_make_a_plan_and_say_what_they_vary(path: Path) -> None:
    hydra = yaml.safe_load(path.read_text())["hydra"]
    assert hydra["mode"] == "MULTIRUN"
    assert hydra["sweeper"]["params"]
    option = f"sweep={path.stem}"
    assert planned(option, *CHOSEN.get(option, [])).nodes


@pytest.mark.parametrize("name", ["celeba_25000", "celeba_hq_fi"])
def test_experiments_with_sscd_ask_for_its_file_and_hash(name: str, tmp_path: Path) -> None:
    weights = tmp_path / "sscd.pt"
    weights.write_bytes(b"not loaded here")
    chosen = [f"label.features.path={weights}", f"evaluate.features.path={weights}"]
    with pytest.raises(ValueError, match="sha256"):
        planned(f"experiment={name}", *chosen)


@pytest.mark.parametrize("name", ["celeba_25000", "celeba_hq_fi"])
def test_experiments_with_sscd_tell_near_duplicates_by_it_everywhere(name: str) -> None:
    cfg = composed(f"experiment={name}", "label.features.path=weights.pt")
    for stage in ("label", "tune", "extract"):
        near_duplicates = cfg[stage].near_duplicates
        assert near_duplicates.features == cfg.label.features
        assert near_duplicates.features.path == "weights.pt"
        assert near_duplicates.threshold == cfg.evaluate.bands.high[0]


def test_one_setting_says_what_near_duplicates_are() -> None:
    cfg = composed("near_duplicates.threshold=0.05", "features@near_duplicates.features=pixels")
    for stage in ("label", "tune", "extract"):
        assert cfg[stage].near_duplicates == cfg.near_duplicates
        assert cfg[stage].near_duplicates.threshold == 0.05
    assert cfg.evaluate.bands.high[1] == cfg.evaluate.bands.mid[0] == 0.05
    mitigated = composed(*MITIGATED, "mitigations=trained", "near_duplicates.threshold=0.05")
    assert mitigated.mitigations.deduplicated.dpm.deduplicate.threshold == 0.05


@pytest.mark.parametrize("given", ["explain=null", "+detect=null"])
def test_null_for_a_choice_of_files_is_refused_with_what_to_say_instead(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sidepipe", "stage=status", given])
    group = given.strip("+").removesuffix("=null")
    with pytest.raises(SystemExit, match=rf"{group} must be one of .*, got null; ~{group} "):
        main()


@pytest.mark.parametrize("stage", STAGES)
def test_a_setting_that_a_stage_does_not_have_is_refused_with_its_name(stage: str) -> None:
    with pytest.raises(ValueError, match=rf"{stage}\.sede is not a setting of"):
        planned(*ABSENT.get(stage, []), f"+{stage}.sede=1")


@pytest.mark.parametrize("stage", STAGES)
def test_a_key_that_no_config_has_is_refused_by_hydra(stage: str) -> None:
    with pytest.raises(ConfigCompositionException, match="sede"):
        composed(*ABSENT.get(stage, []), f"{stage}.sede=1")


def test_an_argument_of_an_inner_object_is_refused_with_the_closest_known_one() -> None:
    with pytest.raises(ValueError, match=r"layers_per_blok .*did you mean 'layers_per_block'"):
        planned("+dpm.unet.layers_per_blok=2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("label.num_clusters=5000", r"label.num_clusters must be <= generate.num_images = 4000"),
        ("label.assign=repeats", r"label.min_cluster_size must be >= 2 where label.assign is 'rep"),
        ("label.num_clusters=1", r"label.num_clusters must be >= 2, got 1"),
        (
            "extract.guidance.t_min=700 extract.guidance.t_max=300",
            r"guidance.t_max must be >= extract.guidance.t_min = 700, got 300",
        ),
        ("extract.guidance.guidance_scale=-1", r"guidance.guidance_scale must be >= 0, got -1"),
        ("extract.surrogate=clasifier", r"extract.surrogate.*did you mean 'classifier'"),
        ("extract.guidance.targets=cohesion", r"guidance.targets.*did you mean 'top_cohesion'"),
        ("extract.guidance.max_guidance_norm=0", r"max_guidance_norm must be > 0 or null, got 0.0"),
        (
            "extract/surrogate=posterior extract.surrogate.neighbors=0",
            r"extract.surrogate.neighbors must be >= 1 or null",
        ),
        ("extract.surrogate.guide_through=pred_x0", r"guide_through.*did you mean 'pred_x_0'"),
        (
            "+extract.surrogate.neighbors=5",
            r"^extract.surrogate.neighbors is not a setting of extract.surrogate=classifier, which "
            r"has extract.surrogate.guide_through; extract.surrogate=posterior has it$",
        ),
        (
            "extract/surrogate=none +extract.surrogate.sed=5",
            r"^extract.surrogate.sed is not a setting of extract.surrogate=none, which has none$",
        ),
        ("label.assign=classes", r"label.assign does not accept 'classes'; .*known: all, members"),
        (
            "extract.guidance.t_min=1000",
            r"guidance.t_min must be < diffusion.num_train_timesteps = 1000",
        ),
        ("generate.num_images=many", r"generate.num_images must be a whole number, got 'many'"),
        ("generate.num_inference_steps=2000", r"<= diffusion.num_train_timesteps = 1000, got 2000"),
        ("generate.eta=1.5", r"generate.eta must be in \[0, 1\], got 1.5"),
        ("data.size=9", r"data.size must be divisible by 2.*got 9; change data.size"),
        ("dpm.max_steps=100", r"dpm.ema_start_step must be < dpm.max_steps = 100"),
        ("dpm.batch_size=63 runtime.devices=2", r"dpm.batch_size must be divisible by the number"),
        ("classifier.validation_fraction=0", r"classifier.validation_fraction must be in \(0, 0.5"),
        ("evaluate.bands.mid=[0.2,0.1]", r"evaluate.bands.mid must be \[low, high\) with low < hi"),
        ("features@evaluate.features=pixels", r"evaluate.bands.high must be the closest band"),
        ("features@label.features=pixels_l2", r"label.features must be an encoder of unit vectors"),
        ("descriptor.fraction=1", r"descriptor.fraction must be in \(0, 1\), got 1"),
        ("descriptor.batch_size=7", r"descriptor.batch_size must be >= 4 and divisible by 2"),
        ("data.on_bad_file=ignore", r"data.on_bad_file.*known: error, skip"),
        ("runtime.accelerator=tpu9", r"runtime.accelerator does not accept 'tpu9'"),
        ("+attacks.mine.extrat.seed=1", r"attacks.mine.*'extrat'.*did you mean 'extract'"),
        ("+attacks.mine.extract.sed=1", r"attacks.mine.extract.sed is not a setting.*'seed'"),
    ],
)
def test_a_wrong_value_is_refused_at_start_up(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(*override.split())


def test_what_the_user_must_choose_is_asked_for() -> None:
    with pytest.raises(Exception, match=r"data.source.folder"):
        planned("data=imagefolder", "dpm=unet64")


def _without_defaults(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings that a file of a group sets, and the files of the group that it begins with."""
    written = yaml.safe_load(path.read_text()) or {}
    names = [name for name in written.pop("defaults", []) if isinstance(name, str)]
    bases = [path.with_name(f"{name}.yaml") for name in names if name[0] not in "_/"]
    return written, bases


def _settings(node: Any, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Values by path; an object of another library counts as one value, which its docs explain."""
    target = node.get("_target_", "sidepipe.") if isinstance(node, dict) else ""
    if not node or not target.startswith("sidepipe."):
        return {above: node}
    inner = (_settings(value, (*above, name)) for name, value in node.items() if name[0] != "_")
    return {path: value for found in inner for path, value in found.items()}


def _inherited(path: Path) -> dict[tuple[str, ...], Any]:
    written, bases = _without_defaults(path)
    return {k: v for base in bases for k, v in _inherited(base).items()} | _settings(written)


def _commented(path: Path) -> set[str]:
    """Names with a comment on their line, or on the line above it."""
    found, above = set(), ""
    for line in path.read_text().splitlines():
        name = re.match(r" *(\w+):", line)
        if name and ("#" in line or above.startswith("#")):
            found.add(name[1])
        above = line.lstrip()
    return found


OF_STAGES = [path for group in GROUPS[:-1] for path in sorted((CONF / group).rglob("*.yaml"))]


@pytest.mark.parametrize("group", [*GROUPS[:-1], "audit", "report", "runtime", "tracking"])
def test_every_setting_is_explained_unless_it_takes_the_value_of_another(group) -> None:
    files = sorted((CONF / group).rglob("*.yaml"))
    explained = set().union(*map(_commented, files))
    settings = {k: v for file in files for k, v in _settings(_without_defaults(file)[0]).items()}
    unexplained = [
        ".".join((group, *path))
        for path, value in settings.items()
        if path and not str(value).startswith("${") and not explained & set(path)
    ]
    assert not unexplained


@pytest.mark.parametrize("path", OF_STAGES, ids=lambda path: str(path.relative_to(CONF)))
def test_no_file_repeats_a_value_of_the_file_that_it_begins_with(path: Path) -> None:
    written, bases = _without_defaults(path)
    inherited = {k: v for base in bases for k, v in _inherited(base).items()}
    repeated = [k for k, v in _settings(written).items() if k and inherited.get(k, ...) == v]
    assert not repeated
