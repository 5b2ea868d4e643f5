"""Shared by all tests: one CPU thread per process, libraries as quiet as on the command line."""

from pathlib import Path
from typing import Any

import sidepipe  # noqa: F401, before torch, as it says how torch's threads wait

# isort: split
import pytest
import torch

from sidepipe.engine.logs import quiet_libraries

# The machines that run the tests are shared; spinning threads cost more than they give.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before any fixture: pytest forgets after each test which warnings are ignored."""
    quiet_libraries()


# Their tests train, start processes or draw whole pages: `make test-fast` skips them.
SLOW = {
    "base/test_interruption.py",
    "base/test_openmp.py",
    "cli/sweep/test_command.py",
    "cli/sweep/test_estimates.py",
    "cli/sweep/test_grid.py",
    "cli/sweep/test_jobs.py",
    "cli/sweep/test_states.py",
    "engine/test_ranks.py",
    "engine/test_refusals.py",
    "engine/test_thread_callback.py",
    "features/test_approximate.py",
    "features/test_image_duplicates.py",
    "memorization/test_blind.py",
    "memorization/test_planted.py",
    "models/test_adapters.py",
    "models/test_latents.py",
    "models/test_speed.py",
    "stages/classifier/test_stage.py",
    "stages/descriptor/test_stage.py",
    "stages/detect",
    "stages/dpm/test_text.py",
    "stages/dpm/test_trained.py",
    "stages/extract/test_lora.py",
    "stages/generate/test_prompts.py",
    "stages/lora/test_stage.py",
    "stages/mitigate/test_stage.py",
    "stages/report",
    "test_api.py",
    "test_duplicated_split.py",
    "test_imports.py",
    "test_results_pages.py",
}
TESTS = Path(__file__).parent
# The files of these folders share fixtures that take long to make.
TOGETHER = ("tests/stages/lora/", "tests/stages/report/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but one process runs all files of a folder of `TOGETHER`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folders = [folder for folder in TOGETHER if nodeid.startswith(folder)]
            return folders[0] if folders else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(TESTS)
        if SLOW & {place.as_posix() for place in (path, *path.parents)}:
            item.add_marker(pytest.mark.slow)
