"""Every documented command composes: a shell splits it, and Hydra accepts its overrides."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sidepipe.cli.main import CONF, with_choices
from sidepipe.cli.sweep.grid import _axes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
COMMANDS = ("sidepipe", "sidepipe-sweep", "make")
# The targets of make whose ARGS are settings.
SETTINGS = ("sweep", "status", "report", "cancel", "run", "demo", "demo-text", "attacks")
# `features` alone is a setting of `sidepipe compare`, which takes no configs.
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "features")
# The choice that brings the settings which begin like this.
BRINGS = {
    "runtime.slurm": ["runtime=slurm"],
    "data.source.folder": ["data=imagefolder"],
    "dpm.adapter": ["dpm=pretrained"],
    "audit.": ["audit=returns"],
    "extract.refine.": ["extract/refine=fixed_point"],
    "report.pictures": ["report=audit"],
    "detect.": ["detect=prompts"],
    "search.": ["detect=prompts", "search=gibbs"],
    "explain.": ["detect=prompts", "explain=tokens"],
    "mitigate.": ["detect=prompts", "mitigate=inference", "mitigations=compare"],
}
# A value for the reader to choose, or a word in its place.
OPEN = re.compile(r"[^=]*=(\.\.\.|<\w+>)|\.\.\.|[A-Z]+")


def commands(text: str) -> list[str]:
    """The commands in the code of a page: lines of blocks, and what stands between backticks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"(?:^    .*\n)+", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    lines = [line.strip() for b in blocks for line in b.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for line in lines if re.match(rf"({'|'.join(COMMANDS)}) ", line)]


def overrides(text: str) -> list[list[str]]:
    """The settings of a page that stand alone, as `generate.eta=1`; `a=b c` are two choices."""
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    setting = rf"'?[+~]{{0,2}}({'|'.join([*GROUPS, 'stage', 'seed'])})[\w./@]*=.+"
    found = []
    for words in (shlex.split(each) for each in inline if re.fullmatch(setting, each)):
        key = words[0].partition("=")[0]
        if len(words) > 1 and not any("=" in word for word in words[1:]):
            found += [[words[0]], *([f"{key}={choice}"] for choice in words[1:])]
        else:
            found.append(words)
    return [words for words in found if not any(map(OPEN.fullmatch, words))]


@cache
def composed(*given: str) -> None:
    """Composes a config; each once, for pages repeat commands."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        compose("config", with_choices(given), return_hydra_config=True)


def swept(name: str, given: list[str]) -> None:
    """Composes the first point of a sweep."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        fixed, axes = _axes(name, given)
        first = [str(values[0].input_line) for values in axes.values()]
        compose("config", [f"sweep={name}", *fixed, *first])


def check(command: str) -> None:
    """Composes the settings of a command."""
    program, *words = shlex.split(command.replace("--cfg job", ""), comments=True)
    words = [word for word in words if not OPEN.fullmatch(word)]
    options = [word for word in words if word.startswith("-")]
    words = [word for word in words if word not in options]
    if program == "make":
        named = dict(word.split("=", 1) for word in words if "=" in word)
        given, sweep = shlex.split(named.get("ARGS", "")), named.get("SWEEP")
        if not any(word in SETTINGS for word in words):
            return
        if sweep:
            launcher = "local" if named.get("LAUNCHER") == "local" else "slurm"
            swept(sweep, [f"runtime={launcher}", *given])
        else:
            composed(*given)
    elif program == "sidepipe-sweep":
        swept(words[1], words[2:])
    elif words[:1] != ["compare"]:
        first = re.compile(r"(=\w+),.*")  # of an axis of a multirun
        composed(*(first.sub(r"\1", word) if "-m" in options else word for word in words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_composes(page: Path) -> None:
    wrong = {}
    for command in commands(page.read_text()):
        try:
            check(command)
        except Exception as error:
            wrong[command] = str(error)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_quotes_composes(page: Path) -> None:
    wrong = {}
    for words in overrides(page.read_text()):
        own = words[0].lstrip("+~")
        brought = [
            choice for key, found in BRINGS.items() if own.startswith(key) for choice in found
        ]
        try:
            composed(*brought, *words)
        except Exception as error:
            wrong[words[0]] = str(error)
    assert not wrong


@pytest.mark.parametrize(
    "command",
    [
        "sidepipe dpm.num_train_image=5",
        "sidepipe runtime=slurm runtime.slurm.sbatch=[--qos=long]",
        "sidepipe-sweep run subset_sizes",
        "make sweep SWEEP=subset_size ARGS='runtime.slurm.stages.evaluate.mem=64G'",
        "make sweep SWEEP=attack_demo ARGS='label.num_cluster=5,6'",
    ],
)
def test_a_command_with_a_wrong_name_or_wrong_quotes_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r"Could not|Error parsing|no viable|must be one of"):
        check(command)


def test_commands_are_found_in_blocks_in_the_text_and_over_several_lines() -> None:
    page = "Run `sidepipe a=1`.\n```sh\nmake sweep \\\n    SWEEP=b\nls\n```\n\n    sidepipe c=2\n"
    found = sorted(" ".join(command.split()) for command in commands(page))
    assert found == ["make sweep SWEEP=b", "sidepipe a=1", "sidepipe c=2"]
