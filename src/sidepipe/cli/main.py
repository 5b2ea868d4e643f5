"""The command line: `sidepipe`, `sidepipe stage=evaluate`, `sidepipe compare ...`, and help."""

import difflib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sidepipe.engine.refusals import in_one_line

# The configs are at the top level of a checkout, and within the package of a wheel.
_CHECKOUT = Path(__file__).resolve().parents[3] / "conf"
CONF = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).resolve().parents[1] / "conf"

# Resolvers for configs, mostly for conf/hydra/launcher/slurm.yaml.
RESOLVERS = {
    "first_given": lambda *values: next(value for value in values if value is not None),
    "given": lambda settings: {k: v for k, v in settings.items() if v is not None},
    "lines": "\n".join,
    "expanded": os.path.expanduser,  # of a folder
}
for _name, _resolver in RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)

log = logging.getLogger("sidepipe")

# Errors for the user: one line, no traceback.
FAULTS = (ValueError, OSError, RuntimeError, ImportError, HydraException, OmegaConfBaseException)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _hydra_main(cfg: DictConfig) -> None:
    # Not at the top of the module, so that help and tab completion do not import torch.
    from sidepipe.engine import ranks

    with ranks.leading() as leads:
        if leads:
            _run(cfg)


def _run(cfg: DictConfig) -> None:
    """Runs the stages of the command line; exits with 1 if one fails."""
    from sidepipe.engine.logs import quiet_libraries

    quiet_libraries()  # before the import of faiss and others, which log
    from sidepipe.engine import pipeline, status
    from sidepipe.engine.plan import plan

    name_runs(cfg, HydraConfig.get().runtime.choices)
    try:
        the_plan = plan(cfg)
        if cfg.stage == "status":
            shown = [status.table(the_plan)]
        else:
            goals = pipeline.run(the_plan, cfg.stage)
            shown = [pipeline.show(node, the_plan) for node in goals]
    except FAULTS as error:
        if cfg.debug:
            raise
        of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
        log.error("%s", in_one_line(error, CONF, sys.argv[1:]) if of_hydra else error)
        log.debug("traceback", exc_info=True)
        sys.exit(1)
    print("\n".join([*_of_multirun(), *shown]))


def name_runs(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """Gives W&B runs the sweep as their group and the experiment as a tag, where these are null.

    choices: the chosen file of each config group.
    """
    if cfg.tracking.group is None:
        cfg.tracking.group = choices.get("sweep")
    if cfg.tracking.tags is None and choices.get("experiment"):
        cfg.tracking.tags = [choices["experiment"]]


def _of_multirun() -> list[str]:
    """The heading of a table in a multirun: its overrides."""
    chosen = HydraConfig.get() if HydraConfig.initialized() else None
    if chosen is None or chosen.mode != RunMode.MULTIRUN:
        return []
    return ["", f"{' '.join(chosen.overrides.task)}:"]


def options(group: str) -> list[str]:
    """The files of a folder of `CONF`, by name."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def refuse_null_groups(arguments: Sequence[str]) -> None:
    """Exits with 1 at `explain=null` and `label=5`, for which Hydra prints a traceback."""
    for argument in arguments:
        group, _, choice = argument.lstrip("+").partition("=")
        is_value = re.fullmatch(r"null|true|false|[-+.\d]+", choice)
        if is_value and group and (CONF / group).is_dir():
            remedy = f"~{group} to leave out what the configs choose"
            sys.exit(f"{group} must be one of {', '.join(options(group))}, got {choice}; {remedy}")


def refuse_words(arguments: Sequence[str]) -> None:
    """Exits with 1 where the first argument is neither a setting nor a command."""
    from sidepipe.stages import STAGES

    word = arguments[0] if arguments else "stage="
    if re.match(r"[-~+]", word) or "=" in word:
        return
    words = {"compare": "sidepipe compare", "help": "sidepipe --help"}
    words |= {name: f"sidepipe stage={name}" for name in ("status", *STAGES)}
    close = difflib.get_close_matches(word, words, n=1)
    hint = f"did you mean {words[close[0]]}? " if close else ""
    remedy = "sidepipe compare GENERATED train=FOLDER heldout=FOLDER compares images"
    sys.exit(f"{word} is neither a command nor a setting, as name=value; {hint}remedy: {remedy}")


def _compare() -> None:
    """Runs `sidepipe compare`; exits with 1 and one line where it fails."""
    from sidepipe.cli import compare

    try:
        compare.main(sys.argv[2:], CONF)
    except FAULTS as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def with_choices(arguments: Sequence[str]) -> list[str]:
    """`extract.surrogate=posterior` as `extract/surrogate=posterior`, which brings its settings."""
    chosen = []
    for argument in arguments:
        setting, _, choice = argument.partition("=")
        group = setting.replace(".", "/")
        is_file = "." in setting and choice in options(group)
        chosen.append(f"{group}={choice}" if is_file else argument)
    return chosen


def main() -> None:
    """Entry point of the `sidepipe` command."""
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        print(f"sidepipe {version('sidepipe')}")
        return
    if sys.argv[1:2] == ["compare"]:
        _compare()
        return
    refuse_words(sys.argv[1:])
    refuse_null_groups(sys.argv[1:])
    sys.argv[1:] = with_choices(sys.argv[1:])
    # Without it, Hugging Face libraries report usage when they download a model.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Hydra raises errors instead of printing them with a part of a traceback.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        _hydra_main()
        sys.stdout.flush()
    except (HydraException, OmegaConfBaseException) as error:  # of composing the config
        if "debug=true" in sys.argv:
            raise
        sys.exit(in_one_line(error, CONF, sys.argv[1:]))
    except BrokenPipeError:  # the reader closed the pipe, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except OSError as error:
        if error.filename is None:  # standard output, as on a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(f"standard output cannot be written: {error}")
        # Hydra creates the folder of a multirun.
        sys.exit(f"runtime.outputs must be a folder or a new name within one: {error}")
    except KeyboardInterrupt:  # before `ranks.leading` handles signals
        sys.exit(130)
