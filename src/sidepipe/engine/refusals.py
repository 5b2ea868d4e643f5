"""Errors of Hydra and OmegaConf in one line: the setting, the rule, and the remedy."""

import dataclasses
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from sidepipe import stages
from sidepipe.base.settings import did_you_mean

# The meaning of `path`, and an example, by the class of an encoder.
WEIGHTS = {
    "SSCD": ("the file that its authors publish", "/my/sscd_disc_mixup.torchscript.pt"),
    "DINOv2": ("a folder, or a hub id", "facebook/dinov2-small"),
    "CLIP": ("a folder, or a hub id", "openai/clip-vit-base-patch32"),
}

# The beginning of Hydra's message for an unknown setting.
COULD_NOT = re.compile(r"Could not (?:override|append to config|delete from config)[^']*'(\S+?)'")


def require_all(cfg: DictConfig) -> None:
    """Raises ValueError for required settings without a value: their meaning and an example."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    chosen = _choices()
    missing = [_required(name, parent, chosen) for name, parent in _without_value(raw, "")]
    if missing:
        raise ValueError("; ".join(missing))


def _choices() -> dict[str, Any]:
    """The chosen file of each config group; {} where the command line composed no config."""
    return dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}


def choice_of(group: str) -> str:
    """The choice of a stage for messages, as `dpm=tiny`."""
    choice = _choices().get(group)
    return f"{group}={choice}" if choice else f"the stage {group}"


def require_own(stage: str, kind: Any, settings: Iterable[str]) -> None:
    """Raises ValueError where an experiment or a sweep sets what the stage's class does not have.

    kind: the class, a dataclass of its settings.
    """
    chosen = _choices()
    files = [f"{group}={chosen[group]}" for group in ("experiment", "sweep") if chosen.get(group)]
    given = HydraConfig.get().overrides.task if files else []
    typed = {each.lstrip("+~").partition("=")[0] for each in given}
    known = {field.name for field in dataclasses.fields(kind)}
    foreign = [f"{stage}.{name}" for name in settings if name not in known]
    foreign = [name for name in foreign if name not in typed]
    if files and foreign:
        raise ValueError(
            f"{' or '.join(files)} sets {', '.join(foreign)}, which {choice_of(stage)} does not "
            f"have; remedy: {' '.join(f'~{name}' for name in foreign)}"
        )


def _without_value(config: Mapping[str, Any], where: str) -> Iterable[tuple[str, Mapping]]:
    """The name of each setting without a value, and the mapping that contains it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _without_value(value, f"{where}{key}.")
        elif value == "???":
            yield f"{where}{key}", config


def _required(name: str, parent: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    from sidepipe.engine.graph import stage_class

    group, _, setting = name.partition(".")
    kind = str(parent.get("_target_")).rpartition(".")[2]
    known = stage_class(group).required if group in stages.STAGES else {}
    by = f" by {group}={choice}" if (choice := chosen.get(group)) else ""
    meaning, example = known.get(setting) or WEIGHTS.get(kind) or ("it has no default", "...")
    return f"{name} is required{by}: {meaning}; for example {name}={example}"


def in_one_line(error: Exception, conf: Path, overrides: Iterable[str]) -> str:
    """The error in one line. conf: the folder of the configs; overrides: of the command line."""
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice} is no choice; {did_you_mean(choice, error.options or [])}"
    text = " ".join(str(error).split())
    if found := re.search(r"An item is already at '(\S+)'", text):
        return f"{found[1]} is set already; remedy: {found[1]}=... in place of +{found[1]}=..."
    if (found := COULD_NOT.match(text)) and "@" not in found[1]:
        name = found[1].partition("=")[0]
        if (closest := _unknown(name, conf, overrides)) is not None:
            return closest
    if found := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.", text):
        name, values = found[1], found[2]
        quoted = shlex.quote(f'{name}="{values}"')
        a_list = shlex.quote(f"{name}=[{values}]")
        return (
            f"{name} has several values, {values}; remedy: -m to run one after another, {a_list} "
            f"for a list, {quoted} for text with a comma"
        )
    name = getattr(error, "full_key", None)
    return f"{name}: {text.partition(' full_key:')[0]}" if name else text


def _unreadable(override: str) -> str:
    name, equals, value = override.partition("=")
    if not equals:
        return f"cannot read {override!r}; write a setting as name=value, such as stage=status"
    text = value.replace('"', '\\"')
    return (
        f"cannot read {override!r}; put a value with any of = , ( ) # [ ] ', with a letter beyond "
        "ASCII or with a leading ~ in double quotes, and the whole in single quotes: "
        + shlex.quote(f'{name}="{text}"')
    )


def _unknown(name: str, conf: Path, overrides: Iterable[str]) -> str | None:
    """The error for an unknown setting, with the closest one; None where the setting exists."""
    from sidepipe.engine.graph import stage_class

    cfg = _composed(conf, overrides)
    known: Any = cfg
    path: list[str] = []
    for part in name.lstrip("+~").replace("/", ".").split("."):
        path.append(part)
        if not isinstance(known, DictConfig):
            return f"{'.'.join(path[:-1])} has no settings, so there is no {name}"
        if part not in known:
            rows = {stage_class(stage).rows for stage in stages.STAGES}
            if len(path) == 1 and (part in stages.STAGES or part in rows):
                files = sorted(file.stem for file in conf.joinpath(part).glob("*.yaml"))
                return f"{part} is off; add {' or '.join(f'{part}={file}' for file in files)}"
            names = [str(key) for key in known if not str(key).startswith("_")]
            groups = [p.name for p in conf.iterdir() if p.is_dir()] if len(path) == 1 else []
            if len(path) == 1 and (own := [s for s in stages.STAGES if part in (cfg.get(s) or {})]):
                full = ", ".join(f"{stage}.{part}" for stage in own)
                return f"{part} is not a setting; did you mean {full}?"
            hint = did_you_mean(part, sorted({*names, *groups} - {"hydra", part}))
            row = f"; +{name}={{...}} adds a row" if path[0] in rows else ""
            of = ""
            if conf.joinpath(*path[:-1]).is_dir() and "name" in known:  # a strategy
                of = f" of {'.'.join(path[:-1])}={known['name']}"
            return f"{'.'.join(path)} is not a setting{of}; {hint}{row}"
        known = known._get_node(part)
        source = str(known._value()).strip("${}") if known._is_interpolation() else ""
        if source and isinstance(OmegaConf.select(cfg, source), DictConfig):
            here = ".".join(path)
            return f"{here} is that of {source}; set {name.replace(here, source, 1)} instead"
    return None


def _composed(conf: Path, overrides: Iterable[str]) -> DictConfig:
    """The config composed from the readable overrides that choose config files."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = [each for each in overrides if (conf / each.lstrip("+").partition("=")[0]).is_dir()]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        try:
            return compose("config", choices)
        except Exception:  # a wrong choice has its own error
            return compose("config")
