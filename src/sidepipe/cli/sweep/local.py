"""Making the artifacts of a sweep in this process, one after another."""

import logging
from collections.abc import Iterable, Iterator

from sidepipe.cli.sweep.grid import Sweep
from sidepipe.cli.sweep.states import about
from sidepipe.engine import pipeline
from sidepipe.engine.graph import Node, Plan
from sidepipe.engine.integrity import is_done
from sidepipe.engine.plan import check_parts

log = logging.getLogger(__name__)


def run(sweep: Sweep) -> None:
    """Makes the missing artifacts; a failed one stops only the stages that read it.

    A signal to stop ends the run.
    """
    left = [task for task in sweep.tasks.values() if not task.is_done]

    def announced() -> Iterator[tuple[Node, Plan, str]]:
        for done, task in enumerate(left):
            log.info("%d of %d: %s", done + 1, len(left), about(task, sweep))
            yield task.node, task.plan, about(task, sweep)

    make_each(announced())


def make_each(tasks: Iterable[tuple[Node, Plan, str]]) -> set[str]:
    """Makes artifacts, each given with its plan and its name for the log; returns failed keys.

    A failed one is logged and stops only those that read it.
    """
    failed = set()
    for node, plan, name in tasks:
        missing = [n for n in node.inputs.values() if not is_done(n.folder(plan.runtime))]
        if missing:
            log.error("%s: blocked by %s %s", name, missing[0].stage.name, missing[0].key)
            failed.add(node.key)
            continue
        try:
            check_parts([node], plan.runtime)
            plan.runtime.limit_threads()
            pipeline.make(node, plan)
        except Exception as error:  # the others still run
            log.error("%s failed: %s", name, error)
            failed.add(node.key)
    return failed
