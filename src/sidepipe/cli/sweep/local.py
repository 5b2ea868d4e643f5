"""Running a sweep here, one artifact after another, without any cluster."""

import logging

from sidepipe.cli.sweep.grid import Sweep
from sidepipe.cli.sweep.states import about
from sidepipe.engine import pipeline
from sidepipe.engine.integrity import is_done

log = logging.getLogger(__name__)


def run(sweep: Sweep) -> None:
    """Makes every missing artifact whose inputs are there; one that fails stops only its readers.

    A signal to stop ends the run, as of a single config.
    """
    left = [task for task in sweep.tasks.values() if not task.is_done]
    for done, task in enumerate(left):
        inputs = [node.folder(task.plan.runtime) for node in task.node.inputs.values()]
        if not all(map(is_done, inputs)):
            continue  # its input failed, which was logged
        log.info("%d of %d: %s", done + 1, len(left), about(task, sweep))
        task.plan.runtime.limit_threads()
        try:
            pipeline.make(task.node, task.plan)
        except Exception as error:  # whatever a stage raises, the others are still wanted
            log.error("%s failed: %s", about(task, sweep), error)
