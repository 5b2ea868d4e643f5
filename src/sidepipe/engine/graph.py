"""Stages, their settings and their inputs as a graph: each node's key names its artifact.

    data -> dpm -> generate -> label -> classifier -> tune -> extract -> evaluate -> report
             |`-> original ----^  `---> lora ----^                      ^          |
             |`-> descriptor -> reference -------------------------------'          |
             `-> detect -> explain, mitigate, search -------------------------------'

With `dpm=latent` a node `autoencoder` stands between data and dpm.
`plan` builds all nodes from one composed config, so that users type no paths.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from sidepipe import stages
from sidepipe.base.settings import require
from sidepipe.engine import artifacts
from sidepipe.engine.stage import Runtime, Stage
from sidepipe.tracking import Tracking


def stage_class(name: str) -> type[Stage]:
    """The class with the facts of the stage `name`, one of `STAGES`."""
    return get_class(stages.STAGES[name])


@dataclass(frozen=True)
class Node:
    """A stage with its settings and input nodes; its key names its artifact.

    where: the name of its settings in messages, such as `attacks.refined.extract`.
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
        """All nodes that this one needs, and itself, by key, inputs before their readers."""
        order: dict[str, Node] = {}
        for node in self.inputs.values():
            order |= node.upstream()
        return {**order, self.key: self}

    def stages_read(self) -> dict[str, Stage]:
        """The stages of all nodes that this one is made from, by name."""
        return {
            node.stage.name: node.stage
            for read in self.inputs.values()
            for node in read.upstream().values()
        }

    def lineage(self) -> dict[str, dict[str, Any]]:
        """The stage and the inputs of all nodes that it is made from, and its own, by key."""
        return {
            node.key: {
                "stage": node.stage.name,
                "inputs": {name: read.key for name, read in node.inputs.items()},
            }
            for node in self.upstream().values()
        }


@dataclass(frozen=True)
class Plan:
    """All nodes of one composed config by key, in running order.

    attacks: the rows of the comparison that need each key. checked: the keys of the nodes whose
    data the pipeline has checked, so that a warning of the check is logged once.
    """

    nodes: dict[str, Node]
    attacks: dict[str, list[str]]
    runtime: Runtime
    tracking: Tracking
    checked: set[str] = field(default_factory=set)

    def goals(self, stage: str) -> list[Node]:
        """The nodes that `stage=` selects; `all` selects the last stage, the report."""
        wanted = list(stages.STAGES)[-1] if stage == "all" else stage
        return [node for node in self.nodes.values() if node.stage.name == wanted]

    def title(self, node: Node) -> str:
        """The name of the stage, with the rows that need it unless all do."""
        name, needed_by = node.stage.name, self.attacks.get(node.key, [])
        once = node.stage.reported and node.stage.rows is None
        if needed_by in ([], self.attacks["all"]) or (once and needed_by == [name]):
            return name
        return f"{name} [{', '.join(row.removeprefix(f'{name} ') for row in needed_by)}]"

    def needed(self, stage: str) -> dict[str, Node]:
        """The nodes that `stage=` selects and all upstream of them, by key, in running order.

        Raises ValueError where no row needs the stage.
        """
        goals = self.goals(stage)
        if not goals:
            raise ValueError(
                f"none of the attacks {self.attacks['all']} needs the stage {stage!r}; remedy: "
                f"{stage_class(stage).needed_by or 'choose another stage'}"
            )
        order: dict[str, Node] = {}
        for goal in goals:
            order |= goal.upstream()
        return order


def require_one_model(goals: Mapping[str, Node]) -> None:
    """Raises ValueError where rows of a report train different models; mitigations may.

    goals: the nodes that the report reads, by row.
    """
    models: dict[str, list[str]] = {}
    for name, goal in goals.items():
        if goal.stage.name != "mitigate":
            dpms = [key for key, node in goal.upstream().items() if node.stage.name == "dpm"]
            for key in dpms[-1:]:
                models.setdefault(key, []).append(name)
    rows = list(models.values())
    remedy = (
        "vary dpm in a sweep, as in conf/sweep/training_mitigations.yaml, or set stage=evaluate"
    )
    require(len(rows) <= 1, "the rows of a report", "of one model", rows, remedy)
