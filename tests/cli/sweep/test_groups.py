"""Artifacts that share a job: cheap ones of the same points, by estimated time."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sidepipe.cli.sweep.groups import Group, grouped
from sidepipe.cli.sweep.resources import Slurm

Graph = Mapping[str, tuple[Sequence[str], float, str]]

# A model of each size, its images, and two attacks on each: inputs, seconds, and the points.
GRID: Graph = {
    "data": ([], 5, "abcd"),
    "dpm1": (["data"], 30, "ab"),
    "dpm2": (["data"], 30, "cd"),
    "generate1": (["dpm1"], 10, "ab"),
    "generate2": (["dpm2"], 10, "cd"),
    "extract-a": (["dpm1", "generate1"], 10, "a"),
    "extract-b": (["dpm1", "generate1"], 10, "b"),
    "extract-c": (["dpm2", "generate2"], 10, "c"),
    "extract-d": (["dpm2", "generate2"], 10, "d"),
    "evaluate-a": (["data", "extract-a"], 5, "a"),
    "evaluate-b": (["data", "extract-b"], 5, "b"),
    "evaluate-c": (["data", "extract-c"], 5, "c"),
    "evaluate-d": (["data", "extract-d"], 5, "d"),
}


def groups_of(
    graph: Graph, limit: float, waiting: Mapping[str, str] = {}, slurms: Mapping[str, Slurm] = {}
) -> list[Group]:
    nodes: dict[str, Any] = {}
    for key, (inputs, _, _) in graph.items():
        nodes[key] = SimpleNamespace(key=key, inputs={name: nodes.get(name) for name in inputs})
        for name in set(inputs) - nodes.keys():
            nodes[key].inputs[name] = SimpleNamespace(key=name)
    tasks: Any = [
        SimpleNamespace(node=nodes[key], points=tuple(points))
        for key, (_, _, points) in graph.items()
    ]
    seconds = {key: graph[key][1] for key in graph}
    own = {key: slurms.get(key, Slurm()) for key in graph}
    return grouped(tasks, own, seconds, waiting, limit)


def names(groups: Sequence[Group]) -> list[list[str]]:
    return [[task.node.key for task in group.tasks] for group in groups]


def check(groups: Sequence[Group], graph: Graph, waiting: Mapping[str, str] = {}) -> None:
    """Each task is in one group, after its inputs, which earlier groups or waiting jobs make."""
    made: dict[str, int | str] = dict(waiting)
    before: list[set[int | str]] = []  # all that ends before each group begins
    for place, group in enumerate(groups):
        earlier = [each for each in group.after if isinstance(each, int)]
        assert all(each < place for each in earlier)
        before.append(set(group.after).union(*(before[each] for each in earlier)))
        for task in group.tasks:
            assert task.node.key not in made
            assert all(made[key] in before[place] | {place} for key in graph[task.node.key][0])
            made[task.node.key] = place
    assert made.keys() == graph.keys() | waiting.keys()


@pytest.mark.parametrize("limit", [0, 1, 10, 12, 35, 60, 80, 150, 1000])
def test_every_artifact_is_in_one_job_after_its_inputs(limit: float) -> None:
    groups = groups_of(GRID, limit)
    check(groups, GRID)
    for group in groups:
        assert sum(group.seconds[1:]) <= limit
    if limit == 0:
        assert [len(group.tasks) for group in groups] == [1] * len(GRID)


def test_a_small_grid_is_one_job() -> None:
    (group,) = groups_of(GRID, 1000)
    assert group.after == frozenset()
    assert group.read == frozenset()


def test_points_of_a_slow_model_do_not_hold_those_of_a_fast_one() -> None:
    slow = {**GRID, "dpm2": (["data"], 5000, "cd")}
    groups = groups_of(slow, 100)
    check(groups, slow)
    points = [*("extract-a", "evaluate-a"), *("extract-b", "evaluate-b")]
    fast = names(groups).index(["dpm1", "generate1", *points])
    held = next(place for place, group in enumerate(names(groups)) if "dpm2" in group)
    assert groups[fast].after == groups[held].after == frozenset({0})
    # The model that takes long begins its job, and its points follow in the same one.
    assert names(groups)[held] == [
        *("dpm2", "generate2", "extract-c", "evaluate-c", "extract-d", "evaluate-d"),
    ]
    assert names(groups)[0] == ["data"]
    assert groups[0].read == {"data"}


def test_long_attacks_of_one_point_run_side_by_side() -> None:
    rows: Graph = {
        "dpm": ([], 500, "a"),
        **{f"extract{i}": (["dpm"], 500, "a") for i in range(3)},
        **{f"evaluate{i}": ([f"extract{i}"], 5, "a") for i in range(3)},
        "report": ([f"evaluate{i}" for i in range(3)], 2, "a"),
    }
    groups = groups_of(rows, 60)
    check(groups, rows)
    assert names(groups)[1:4] == [[f"extract{i}", f"evaluate{i}"] for i in range(3)]
    assert groups[4].after == {1, 2, 3}


def test_many_points_are_cut_into_jobs_of_about_the_time() -> None:
    many: Graph = {
        "data": ([], 5, "0123456789"),
        **{f"dpm{i}": (["data"], 30, str(i)) for i in range(10)},
        **{f"report{i}": ([f"dpm{i}"], 10, str(i)) for i in range(10)},
    }
    groups = groups_of(many, 120)
    check(groups, many)
    assert [len(group.tasks) for group in groups] == [1, 6, 6, 6, 2]
    assert [group.after for group in groups[1:]] == [frozenset({0})] * 4


def test_artifacts_of_other_resources_have_their_own_job() -> None:
    gpu, large = Slurm(gres="gpu:1"), Slurm(mem="64G")
    slurms = {key: gpu for key in GRID if key.startswith(("dpm", "generate", "extract"))}
    groups = groups_of(GRID, 1000, slurms={**slurms, "evaluate-a": large})
    check(groups, GRID)
    assert names(groups)[0] == ["data"], "it needs no accelerator"
    assert names(groups)[-1] == ["evaluate-a"]
    assert {group.slurm.gres for group in groups[1:-1]} == {"gpu:1"}, "cheap work may have one"


def test_a_job_waits_for_active_jobs_of_other_sweeps() -> None:
    rest = {key: value for key, value in GRID.items() if key not in ("data", "dpm1")}
    waiting = {"data": "77", "dpm1": "78"}
    groups = groups_of(rest, 40, waiting)
    check(groups, rest, waiting)
    of = {task.node.key: group for group in groups for task in group.tasks}
    assert of["dpm2"].after == {"77"}
    assert of["generate1"].after >= {"78"}
