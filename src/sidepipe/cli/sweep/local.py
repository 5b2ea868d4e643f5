"""Running a sweep on this machine, one artifact after another."""

import logging

from sidepipe.cli.sweep.grid import Sweep
from sidepipe.cli.sweep.states import about
from sidepipe.engine import pipeline
from sidepipe.engine.integrity import is_done

log = logging.getLogger(__name__)


def run(sweep: Sweep) -> None:
    """Makes the missing artifacts; a failed one stops only the stages that read it.

    A signal to stop ends the run.
    """
    left = [task for task in sweep.tasks.values() if not task.is_done]
    for done, task in enumerate(left):
        inputs = [node.folder(task.plan.runtime) for node in task.node.inputs.values()]
        if not all(map(is_done, inputs)):
            continue  # an input failed and was logged
        log.info("%d of %d: %s", done + 1, len(left), about(task, sweep))
        task.plan.runtime.limit_threads()
        try:
            pipeline.make(task.node, task.plan)
        except Exception as error:  # the other stages still run
            log.error("%s failed: %s", about(task, sweep), error)
