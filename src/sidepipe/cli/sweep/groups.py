"""Which artifacts share a Slurm job: cheap ones with their neighbors, by estimated time.

A job takes about 10 s to start and to import torch, which is longer than many stages take.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from sidepipe.cli.sweep.grid import Task
from sidepipe.cli.sweep.resources import Slurm

# A group by its number, or a job of an earlier submission by its id.
Home = int | str


@dataclass
class Group:
    """Tasks that one job makes in this order; seconds: the estimated time of each.

    after: the jobs that it waits for: places of groups in the list, ids of earlier jobs. read: the
    keys of its tasks that other groups read.
    """

    tasks: list[Task]
    slurm: Slurm
    seconds: list[float]
    after: frozenset[Home] = frozenset()
    read: frozenset[str] = frozenset()

    def cheap(self, limit: float) -> float:
        """The time of its tasks, without one that takes longer than `limit` alone."""
        return sum(each for each in self.seconds if each <= limit)


def grouped(
    tasks: Sequence[Task],
    slurms: Mapping[str, Slurm],
    seconds: Mapping[str, float],
    waiting: Mapping[str, str],
    limit: float,
) -> list[Group]:
    """The groups of `tasks`, which are in running order, each after the groups that it reads.

    slurms, seconds: the resources and the estimated time of each task by key. waiting: the jobs
    that already make artifacts, by key. limit: the seconds of a group; a longer task is the first
    of its group. A task joins the group of its input where the same points need both; groups that
    wait for the same ones join; and a group joins the one that it waits for where no other waits
    for that.
    """
    home: dict[str, Home] = dict(waiting)
    groups = _chains(tasks, slurms, seconds, home, limit)
    while _join_siblings(groups, home, limit) or _join_children(groups, home, limit):
        pass
    after = _waits(groups, home)
    inner = {index: [each for each in reads if each in groups] for index, reads in after.items()}
    order = [groups[index] for index in TopologicalSorter(inner).static_order()]
    place = {id(group): at for at, group in enumerate(order)}
    for index, group in groups.items():
        group.after = frozenset(
            place[id(groups[each])] if isinstance(each, int) else each for each in after[index]
        )
        inputs = {read.key for task in group.tasks for read in task.node.inputs.values()}
        for key in inputs & home.keys():
            if isinstance(maker := home[key], int) and maker != index:
                groups[maker].read |= {key}
    return order


def _chains(
    tasks: Sequence[Task],
    slurms: Mapping[str, Slurm],
    seconds: Mapping[str, float],
    home: dict[str, Home],
    limit: float,
) -> dict[int, Group]:
    """Groups by number, of tasks that the same points need, each after its inputs; fills `home`."""
    groups: dict[int, Group] = {}
    earlier: dict[Home, frozenset[Home]] = {}  # the groups that must end before a group begins
    for task in tasks:
        key = task.node.key
        reads = frozenset(home[n.key] for n in task.node.inputs.values() if n.key in home)
        fitting = [
            index
            for index in reads
            if isinstance(index, int)
            and 0 < seconds[key] <= limit - groups[index].cheap(limit)
            and groups[index].tasks[0].points == task.points
            and groups[index].slurm.covers(slurms[key])
            and reads - {index} <= earlier[index]
        ]
        if fitting:
            index = max(fitting)
            groups[index].tasks.append(task)
            groups[index].seconds.append(seconds[key])
        else:
            index = len(groups)
            groups[index] = Group([task], slurms[key], [seconds[key]])
            earlier[index] = reads.union(*(earlier.get(each, frozenset()) for each in reads))
        home[key] = index
    return groups


def _join_siblings(groups: dict[int, Group], home: dict[str, Home], limit: float) -> bool:
    """Joins short groups that wait for the same ones; returns whether any were joined."""
    alike: dict[tuple[frozenset[Home], str], list[int]] = defaultdict(list)
    for index, reads in _waits(groups, home).items():
        if sum(groups[index].seconds) <= limit:
            alike[reads, str(groups[index].slurm)].append(index)
    before = len(groups)
    for first, *others in alike.values():
        for index in others:
            if sum(groups[first].seconds) + sum(groups[index].seconds) <= limit:
                _join(first, index, groups, home)
            else:
                first = index
    return len(groups) < before


def _join_children(groups: dict[int, Group], home: dict[str, Home], limit: float) -> bool:
    """Joins short groups to the only ones that they wait for; returns whether any were joined."""
    after = _waits(groups, home)
    readers = Counter(each for reads in after.values() for each in reads)
    joined: set[Home] = set()
    for index, reads in after.items():
        [first, *others] = reads or [None]
        if not isinstance(first, int) or others or readers[first] > 1 or {first, index} & joined:
            continue
        parent, child = groups[first], groups[index]
        fits = sum(child.seconds) <= limit - parent.cheap(limit)
        if fits and parent.slurm.covers(child.slurm):
            _join(first, index, groups, home)
            joined |= {first, index}
    return bool(joined)


def _join(first: int, index: int, groups: dict[int, Group], home: dict[str, Home]) -> None:
    """Appends the tasks of group `index` to those of group `first`."""
    other = groups.pop(index)
    groups[first].tasks += other.tasks
    groups[first].seconds += other.seconds
    home |= {task.node.key: first for task in other.tasks}


def _waits(groups: Mapping[int, Group], home: Mapping[str, Home]) -> dict[int, frozenset[Home]]:
    """The groups and jobs that each group waits for, without those that these wait for."""
    earlier: dict[Home, frozenset[Home]] = {}
    waits: dict[int, frozenset[Home]] = {}
    for index in sorted(groups):  # a group only waits for groups of lower numbers
        inputs = (read.key for task in groups[index].tasks for read in task.node.inputs.values())
        reads = frozenset(home[key] for key in inputs if key in home) - {index}
        before = frozenset().union(*(earlier.get(each, frozenset()) for each in reads))
        earlier[index], waits[index] = reads | before, reads - before
    return waits
