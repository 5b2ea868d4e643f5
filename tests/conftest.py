"""Shared by all tests: one CPU thread a process, and where the real faces may lie."""

from pathlib import Path

import pytest
import torch

# The machines that run the tests are shared; spinning threads cost more than they give.
torch.set_num_threads(1)

FACES = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def faces_root() -> Path:
    """Folder that holds `faces` in CelebA's layout; the test is skipped where it is absent."""
    if not (FACES / "faces").is_dir():
        pytest.skip(f"no real faces under {FACES}")
    return FACES
