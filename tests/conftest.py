"""Shared by all tests: one CPU thread a process, and libraries as quiet as the command line's."""

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
