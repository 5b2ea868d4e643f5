"""The graph of stages: which there are, what each reads, and their keys.

    data -> dpm -> generate -> label -> classifier -> tune -> extract -> evaluate -> report
             |`-> original ----^  `---> lora ----^                      ^          |
             |`-> descriptor -> reference -------------------------------'          |
             `-> detect -> explain, mitigate ---------------------------------------'

One composed config gives every key, so no path is ever typed. `attacks` are the rows of the
comparison: each is a set of changes laid over the stages' settings; what rows share is made once.
`mitigations` are rows of the same kind, each judged by the stage `mitigate` on the prompts that the
unchanged model was found to have memorized. A stage whose config is null is not there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from sidepipe.base.settings import (
    bind_nested,
    bind_signature,
    check_field_types,
    require,
    require_known,
)
from sidepipe.engine import artifacts
from sidepipe.engine.refusals import require_all
from sidepipe.engine.stage import Runtime, Stage
from sidepipe.tracking import Tracking

STAGES = (
    *("data", "dpm", "generate", "original", "label", "classifier", "lora", "tune", "extract"),
    *("descriptor", "reference", "evaluate", "detect", "explain", "mitigate", "report"),
)
# Of a stage, the settings that are another one's of the same row: whose, and where among its own.
TAKES: dict[str, dict[str, tuple[str, ...]]] = {
    "dpm": {"on_duplicates": ("data", "on_duplicates")},
    "tune": {"attack": ("extract",)},
    "reference": {
        "features": ("evaluate", "features"),
        "false_positive_rates": ("evaluate", "false_positive_rates"),
    },
}
# Of stages that not every attack reads, what makes one read it.
NEEDED_BY = {
    "generate": "evaluate.truth=train, or extract.surrogate=posterior",
    "original": "label.assign=original",
    "label": "extract.surrogate=posterior, classifier or lora",
    "classifier": "extract.surrogate=classifier",
    "lora": "extract.surrogate=lora",
    "tune": "extract.tuned=true, as in attacks=tuned",
    "descriptor": "evaluate=copydet",
    "reference": "evaluate.truth=train",
    "evaluate": "attacks=compare",
    "detect": "detect=prompts, of models with captions, or detect=labels",
    "explain": "explain=tokens",
    "mitigate": "mitigations=compare",
}


@dataclass(frozen=True)
class Node:
    """A stage with its settings and the nodes it reads; its key names its artifact.

    where: what messages call its settings, as `attacks.refined.extract`.
    """

    stage: Stage
    settings: dict[str, Any]
    inputs: dict[str, "Node"] = field(default_factory=dict)
    where: str = ""

    @cached_property
    def key(self) -> str:
        settings = self.stage.key_settings(self.settings)
        input_keys = {name: node.key for name, node in self.inputs.items()}
        return artifacts.key_of(self.stage.name, self.stage.version, settings, input_keys)

    def folder(self, runtime: Runtime) -> Path:
        return runtime.outputs_folder / self.stage.name / self.key

    def upstream(self) -> dict[str, "Node"]:
        """Every node this one needs by key, inputs before their readers, itself last."""
        order: dict[str, Node] = {}
        for node in self.inputs.values():
            order |= node.upstream()
        return {**order, self.key: self}

    def stages_read(self) -> dict[str, Stage]:
        """By name, the stages of all nodes that this one is made from."""
        return {
            node.stage.name: node.stage
            for read in self.inputs.values()
            for node in read.upstream().values()
        }

    def lineage(self) -> dict[str, dict[str, Any]]:
        """By key, the stage and the inputs of everything it is made from, and its own."""
        return {
            node.key: {
                "stage": node.stage.name,
                "inputs": {name: read.key for name, read in node.inputs.items()},
            }
            for node in self.upstream().values()
        }


@dataclass(frozen=True)
class Plan:
    """All nodes of one composed config by key, in an order in which they can run.

    attacks: of each key, the rows of the comparison that need it.
    """

    nodes: dict[str, Node]
    attacks: dict[str, list[str]]
    runtime: Runtime
    tracking: Tracking

    def goals(self, stage: str) -> list[Node]:
        """The nodes that `stage=` asks for; `all` asks for the report."""
        wanted = "report" if stage == "all" else stage
        return [node for node in self.nodes.values() if node.stage.name == wanted]

    def title(self, node: Node) -> str:
        """The stage's name, with the attacks that need it where not all do."""
        name, needed_by = node.stage.name, self.attacks.get(node.key, [])
        of_its_own = name in ("detect", "explain") and needed_by == [name]
        if name == "report" or of_its_own or needed_by == self.attacks["all"]:
            return name
        return f"{name} [{', '.join(row.removeprefix(f'{name} ') for row in needed_by)}]"


def plan(cfg: DictConfig, made: dict[str, Node] | None = None) -> Plan:
    """Builds and checks every stage's settings; nothing is read but small config files.

    What takes seconds to import is left to `check_parts`, which follows before anything runs.
    made: nodes of earlier plans, which a sweep's points share; those of this one are added.
    Raises ValueError for a wrong name, type, range or combination in ANY stage, so that a typo in
    evaluate does not surface after days of training.
    """
    made = {} if made is None else made
    for name, reads in (("explain", "detect"), ("mitigate", "detect"), ("mitigations", "mitigate")):
        there = cfg.get(name) is None or cfg.get(reads) is not None
        require(there, reads, f"set, for {name} reads it", None, f"choose {reads}=...")
    require_all(cfg)
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    runtime = _build(Runtime, "runtime", plain["runtime"])
    tracking = _build(Tracking, "tracking", plain["tracking"])
    wanted = _goals(plain, runtime, made)
    remedy = "attacks=compare, or detect=prompts"
    require(bool(wanted), "attacks, detect and mitigations", "not all empty", {}, remedy)
    nodes: dict[str, Node] = {}
    attacks: dict[str, list[str]] = {"all": list(wanted)}
    for name, goal in wanted.items():
        # A stage that this attack does not read (the classifier, of plain samples) is left out.
        for key, node in goal.upstream().items():
            nodes.setdefault(key, node)
            attacks.setdefault(key, []).append(name)
    report = _node("report", "report", plain["report"], wanted, tuple(wanted), runtime)
    return Plan({**nodes, report.key: report}, attacks, runtime, tracking)


def _goals(plain: Mapping[str, Any], runtime: Runtime, made: dict[str, Node]) -> dict[str, Node]:
    """What the report reads: evaluate of each attack, detect, explain, mitigate of each row."""
    chain = partial(_chain, plain, runtime=runtime, made=made)
    attacks = {
        row: chain("attacks", row, changes)["evaluate"]
        for row, changes in _rows(plain, "attacks").items()
    }
    found = chain("", "", {}, goals=("detect", "explain"))
    found = {name: found[name] for name in ("detect", "explain") if name in found}
    # Judged on what the unchanged model memorized, whatever a row changes.
    fixed = {name: node for name, node in found.items() if name == "detect"}
    mitigated: dict[str, Node] = {}
    for row, changes in _rows(plain, "mitigations").items():
        own = chain("mitigations", row, changes, goals=("mitigate",), fixed=fixed)
        mitigated[f"mitigate {row}"] = own["mitigate"]
    return {**attacks, **found, **mitigated}


def _rows(plain: Mapping[str, Any], group: str) -> dict[str, dict[str, Any]]:
    """Of each row of `attacks` or `mitigations` its changes; none where the group is null.

    Raises ValueError unless these are settings by stage, or null for none.
    """
    rows: dict[str, dict[str, Any]] = {}
    rule = "changes by stage, as {extract: {guidance_scale: 5}}, or null for none"
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
    goals: Sequence[str] | None = None,
    fixed: Mapping[str, Node] = {},
) -> dict[str, Node]:
    """One row's nodes, from data to mitigate: its changes laid over the config.

    made: nodes already there, by settings and predecessors; they are checked once. goals: the
    stages asked for, of the others only those that they are made from are there; None for all.
    fixed: nodes that the row takes as they are of the unchanged config.
    """
    chain: dict[str, Node] = {}
    known = [name for name in STAGES[:-1] if plain.get(name) is not None and name not in fixed]
    for name in changes:
        require_known(f"{group}.{row}", name, known)
    laid = {name: _laid_over(plain[name], changes.get(name) or {}) for name in known}
    where = {name: f"{group}.{row}.{name}" if name in changes else name for name in known}
    _take(laid, where, plain)
    needed = set(laid) if goals is None else _needed(laid, where, goals)
    for name in STAGES[:-1]:
        if name in fixed:
            chain[name] = fixed[name]
        if name not in needed:
            continue
        settings = laid[name]
        same = json.dumps([name, settings, [id(node) for node in chain.values()]])
        if same not in made:
            for owner in {owner for owner, *_ in TAKES.get(name, {}).values()}:
                # What is wrong with a setting is said of the stage whose it is.
                _stage(owner, where[owner], laid[owner])
            made[same] = _node(name, where[name], settings, chain, None, runtime)
        chain[name] = made[same]
    return chain


def _take(
    laid: dict[str, dict[str, Any]], where: Mapping[str, str], plain: Mapping[str, Any]
) -> None:
    """Gives each stage in TAKES what it takes of others: as this row has it, not as `plain`."""
    for name in [name for name in TAKES if name in laid]:
        for setting, (owner, *path) in TAKES[name].items():
            if owner not in laid:
                laid.pop(name, None)  # nor is it there without what it takes
                break
            unchanged, own = _within(plain[owner], path), _within(laid[owner], path)
            asked, rule = laid[name].get(setting, unchanged), f"as {'.'.join((owner, *path))}"
            require(asked == unchanged, f"{where[name]}.{setting}", rule, asked, "set that instead")
            laid[name] = {**laid[name], setting: own}


def _within(settings: Any, path: Sequence[str]) -> Any:
    for name in path:
        settings = settings[name]
    return settings


def _needed(
    settings: Mapping[str, dict[str, Any]], where: Mapping[str, str], goals: Sequence[str]
) -> set[str]:
    """The stages of `settings` that `goals` are made from, and these."""
    needed, left = set(), [name for name in goals if name in settings]
    while left:
        name = left.pop()
        if name not in needed and name in settings:
            needed.add(name)
            left += _stage(name, where[name], settings[name]).inputs()
    return needed


def _laid_over(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _laid_over(merged[name], value) if both else value
    return merged


def _node(
    name: str,
    where: str,
    settings: dict[str, Any],
    available: Mapping[str, Node],
    inputs: tuple[str, ...] | None,
    runtime: Runtime,
) -> Node:
    """The checked node of stage `name`; inputs None asks the stage which it reads."""
    stage = _stage(name, where, settings)
    reads = stage.inputs() if inputs is None else inputs
    for read in reads:
        require(read in available, read, f"set, for {where} reads it", None, f"choose {read}=...")
    upstream = {n: available[n] for n in reads}
    node = Node(stage, settings, upstream, where)
    try:
        stage.check(node.stages_read(), runtime)
    except TypeError as error:  # a part's setting, whose type its class alone decides
        said = f"{where}, or a stage that it reads, has a value of the wrong type: {error}"
        raise ValueError(said) from error
    return node


def check_parts(nodes: Iterable[Node], runtime: Runtime) -> None:
    """Checks what the settings of `nodes` describe: networks, schedules, encoders, sources.

    For nodes that are about to be made, before the first of them runs. Raises ValueError or an
    OSError where an argument is unknown, a part cannot be built, or parts do not fit each other.
    """
    for node in nodes:
        taken = TAKES.get(node.stage.name, {})
        for name, value in node.settings.items():
            own = f"{node.where or node.stage.name}.{name}"
            bind_nested(".".join(taken[name]) if name in taken else own, value)
        node.stage.check_parts(node.stages_read(), runtime)


def _stage(name: str, where: str, settings: Mapping[str, Any]) -> Stage:
    target = settings.get("_target_")
    require(
        target is not None, f"{name}._target_", "the stage's class", target, f"choose {name}=..."
    )
    own = {k: v for k, v in settings.items() if k != "_target_"}
    return _build(get_class(str(target)), where, own)


def _build(kind: Any, where: str, settings: Mapping[str, Any]) -> Any:
    bind_signature(where, f"{kind.__module__}.{kind.__qualname__}", settings)
    fitting = check_field_types(where, kind, settings)
    try:
        return kind(**fitting)
    except TypeError as error:  # of what is within a list or a mapping
        raise ValueError(f"{where} has a value of the wrong type: {error}") from error


def needed(the_plan: Plan, stage: str) -> dict[str, Node]:
    """The nodes by key that `stage=` asks for with all they are made from, in running order.

    Raises ValueError where no attack needs that stage.
    """
    goals = the_plan.goals(stage)
    if not goals:
        raise ValueError(
            f"none of the attacks {the_plan.attacks['all']} needs the stage {stage!r}; remedy: "
            f"{NEEDED_BY.get(stage, 'choose another stage')}"
        )
    order: dict[str, Node] = {}
    for goal in goals:
        order |= goal.upstream()
    return order
