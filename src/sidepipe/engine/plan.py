"""Building the nodes of the graph from one composed config, with checks of all settings.

`attacks` are the rows of the comparison: each is a set of changes to the settings of stages; rows
share equal nodes. `mitigations` are rows of the same kind for the stage `mitigate`, which takes the
memorized prompts of the unchanged model. Each stage declares whether it runs per row or once. A
stage whose config is null does not exist.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from sidepipe import stages
from sidepipe.base.settings import (
    bind_nested,
    bind_signature,
    check_field_types,
    require,
    require_known,
    written_out,
)
from sidepipe.engine.graph import Node, Plan, require_one_model, stage_class
from sidepipe.engine.refusals import choice_of, require_all, require_own
from sidepipe.engine.stage import Runtime, Stage
from sidepipe.tracking import Tracking

log = logging.getLogger(__name__)


def plan(cfg: DictConfig, made: dict[str, Node] | None = None) -> Plan:
    """Builds and checks the settings of all stages; reads only small config files.

    `check_parts`, which runs before the first stage, has the checks whose imports take seconds.
    made: nodes of earlier plans, which the points of a sweep share; this plan adds its own. Raises
    ValueError for a wrong name, type, range or combination in ANY stage, so that a typo in evaluate
    is an error before days of training. With `stage=dpm`, settings of a stage after it that do not
    fit others are a warning.
    """
    _require_present(cfg)
    require_all(cfg)
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return plan_of(plain, {} if made is None else made)


def plan_of(plain: Mapping[str, Any], made: dict[str, Node]) -> Plan:
    """`plan` of a config as plain mappings, all of whose required settings have values."""
    runtime = _build(Runtime, "runtime", plain["runtime"], "runtime")
    tracking = _build(Tracking, "tracking", plain["tracking"], "tracking")
    later: dict[str, None] = {}
    wanted = _goals(plain, runtime, made, later)
    remedy = "attacks=compare, or detect=prompts"
    require(bool(wanted), "attacks, detect and mitigations", "not all empty", {}, remedy)
    nodes: dict[str, Node] = {}
    attacks: dict[str, list[str]] = {"all": list(wanted)}
    for name, goal in wanted.items():
        # Only the stages that the attack reads: no classifier for the unconditional baseline.
        for key, node in goal.upstream().items():
            if key not in nodes:
                _check(node, node.stage.check_needed, plain["stage"], later)
            nodes.setdefault(key, node)
            attacks.setdefault(key, []).append(name)
    for fault in later:
        log.warning("%s does not need this, but later stages do: %s", plain["stage"], fault)
    last = list(stages.STAGES)[-1]
    if plain["stage"] in ("all", "status", last):
        require_one_model(wanted)
    report = Node(_stage(last, last, plain[last]), plain[last], wanted, last)
    return Plan({**nodes, report.key: report}, attacks, runtime, tracking)


def _require_present(cfg: DictConfig) -> None:
    """Raises ValueError where a config refers to a stage that is null, as explain to detect."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    # The first stage of a group of rows is needed by them; later ones add to what it finds.
    first = {stage_class(name).rows: name for name in reversed(stages.STAGES)}
    reads = [(group, name) for group, name in first.items() if group is not None and raw.get(group)]
    for reader, settings in raw.items():
        reads += [(reader, name) for name in re.findall(r"\$\{(\w+)", str(settings))]
    for reader, name in reads:
        there = name not in stages.STAGES or raw.get(name) is not None
        require(there, name, f"set, for {reader} reads it", None, f"choose {name}=...")


def _goals(
    plain: Mapping[str, Any], runtime: Runtime, made: dict[str, Node], later: dict[str, None]
) -> dict[str, Node]:
    """The nodes that the report reads: by row of a group, or by the stage's name.

    later: gets the faults of stages after the one that runs, each once.
    """
    chain = partial(_chain, plain, runtime=runtime, made=made, later=later)
    rows_of = {name: stage_class(name).rows for name in stages.STAGES if stage_class(name).reported}
    once = [name for name, group in rows_of.items() if group is None]
    # These stages run once, for the unchanged config, also where mitigations read them.
    unchanged = chain("", "", {}, goals=once)
    fixed = {name: unchanged[name] for name in once if name in unchanged}
    found: dict[str, Node] = {}
    for name, group in rows_of.items():
        if group is None:
            found |= {name: fixed[name]} if name in fixed else {}
            continue
        if plain.get(name) is None:
            continue
        compared = stage_class(name).compared
        goals = None if compared else [name]
        for row, changes in _rows(plain, group).items():
            made_of = chain(group, row, changes, goals=goals, fixed=fixed)
            found[row if compared else f"{name} {row}"] = made_of[name]
    return found


def _rows(plain: Mapping[str, Any], group: str) -> dict[str, dict[str, Any]]:
    """The changes of each row of `attacks` or `mitigations`; none where the group is null.

    Raises ValueError unless these are settings by stage, or null for none.
    """
    rows: dict[str, dict[str, Any]] = {}
    rule = "changes by stage, as {extract: {refine: fixed_point}}, or null for none"
    for row, changes in (plain.get(group) or {}).items():
        require(isinstance(changes, Mapping | None), f"{group}.{row}", rule, changes)
        rows[row] = dict(changes or {})
        for stage, own in rows[row].items():
            fits = isinstance(own, Mapping | None)
            require(fits, f"{group}.{row}.{stage}", "a mapping of its settings", own)
    return rows


def _chain(
    plain: Mapping[str, Any],
    group: str,
    row: str,
    changes: Mapping[str, Any],
    *,
    runtime: Runtime,
    made: dict[str, Node],
    later: dict[str, None],
    goals: Sequence[str] | None,
    fixed: Mapping[str, Node] = {},
) -> dict[str, Node]:
    """The nodes of `goals` and all upstream of them, for the changes of one row.

    goals: None for all stages. made: existing nodes by settings and inputs, each checked once.
    fixed: nodes that the row does not change. later: as in `_goals`.
    """
    before_last = list(stages.STAGES)[:-1]
    known = [name for name in before_last if plain.get(name) is not None and name not in fixed]
    for name in changes:
        require_known(f"{group}.{row}", name, known)
    laid = {name: _laid_over(plain[name], changes.get(name) or {}) for name in known}
    where = {name: f"{group}.{row}.{name}" if name in changes else name for name in known}
    _take(laid, where, plain)

    @cache
    def built(name: str) -> Stage:
        # The owner of a setting is built before a stage that takes it, and reports a wrong value.
        for source in stage_class(name).takes.values():
            built(source.partition(".")[0])
        return _stage(name, where[name], laid[name])

    needed = set(laid) if goals is None else _needed(built, laid, goals)
    chain: dict[str, Node] = {}
    for name in before_last:
        if name in fixed:
            chain[name] = fixed[name]
        if name not in needed:
            continue
        same = json.dumps([name, laid[name], [id(node) for node in chain.values()]])
        if same not in made:
            node = _node(built(name), where[name], laid[name], chain)
            made[same] = _check(node, node.stage.check, plain["stage"], later, runtime)
        chain[name] = made[same]
    return chain


def _take(
    laid: dict[str, dict[str, Any]], where: Mapping[str, str], plain: Mapping[str, Any]
) -> None:
    """Sets the settings that a stage `takes` from others to their values in this row."""
    for name in list(laid):
        for setting, source in stage_class(name).takes.items():
            owner, *path = source.split(".")
            if owner not in laid:
                laid.pop(name, None)  # a stage without the owner of a setting does not exist
                break
            unchanged, own = _within(plain[owner], path), _within(laid[owner], path)
            asked = laid[name].get(setting, unchanged)
            setting_there = f"{where[name]}.{setting}"
            require(asked == unchanged, setting_there, f"as {source}", asked, "set that instead")
            laid[name] = {**laid[name], setting: own}


def _within(settings: Any, path: Sequence[str]) -> Any:
    for name in path:
        settings = settings[name]
    return settings


def _needed(built: Callable[[str], Stage], known: Iterable[str], goals: Sequence[str]) -> set[str]:
    """The stages among `known` that `goals` are made from, and the goals."""
    needed, left = set(), list(goals)
    while left:
        name = left.pop()
        if name not in needed and name in known:
            needed.add(name)
            left += built(name).inputs()
    return needed


def _laid_over(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in changes.items():
        own = merged.get(name)
        own = {"name": own} if isinstance(own, str) else own  # a strategy by its name alone
        merged[name] = value
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            # The settings of one strategy are not those of another.
            same = value.get("name", own.get("name")) == own.get("name")
            merged[name] = _laid_over(own, value) if same else value
    return merged


def _node(
    stage: Stage, where: str, settings: dict[str, Any], available: Mapping[str, Node]
) -> Node:
    for read in stage.inputs():
        require(read in available, read, f"set, for {where} reads it", None, f"choose {read}=...")
    inputs = {read: available[read] for read in stage.inputs()}
    return Node(stage, written_out(settings, stage), inputs, where)


def _check(
    node: Node, check: Callable[..., None], goal: str, later: dict[str, None], *more: Runtime
) -> Node:
    """Checks the settings of `node` against those of the stages that it reads.

    goal: the `stage` of the command. The faults of stages after it are moved into `later`.
    """
    order = list(stages.STAGES)
    try:
        try:
            check(node.stages_read(), *more)
        except TypeError as error:  # from the class of a part
            which = f"{node.where}, or a stage that it reads"
            raise ValueError(f"{which}, has a value of the wrong type: {error}") from error
    except (ValueError, OSError) as error:
        if goal not in order or order.index(node.stage.name) <= order.index(goal):
            raise
        later[str(error)] = None
    return node


def check_parts(nodes: Iterable[Node], runtime: Runtime) -> None:
    """Checks parts of `nodes` before the first one runs: networks, schedules, encoders, sources.

    Raises ValueError or an OSError where an argument is unknown, a part cannot be built, or parts
    do not fit each other.
    """
    for node in nodes:
        for name, value in node.settings.items():
            own = f"{node.where or node.stage.name}.{name}"
            bind_nested(node.stage.takes.get(name, own), value)
        node.stage.check_parts(node.stages_read(), runtime)


def _stage(name: str, where: str, settings: Mapping[str, Any]) -> Stage:
    target = settings.get("_target_")
    require(
        target is not None, f"{name}._target_", "the stage's class", target, f"choose {name}=..."
    )
    own, kind = {k: v for k, v in settings.items() if k != "_target_"}, get_class(str(target))
    require_own(name, kind, own)
    return _build(kind, where, own, choice_of(name))


def _build(kind: Any, where: str, settings: Mapping[str, Any], owner: str) -> Any:
    bind_signature(where, f"{kind.__module__}.{kind.__qualname__}", settings, owner=owner)
    fitting = check_field_types(where, kind, settings)
    try:
        return kind(**fitting)
    except TypeError as error:  # from a value within a list or a mapping
        raise ValueError(f"{where} has a value of the wrong type: {error}") from error
