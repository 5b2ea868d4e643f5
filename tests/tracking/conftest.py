"""Shared by the tests of tracking: an environment that is as before, and processes that talk."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.tracking.wandb_server import KEY, WandbServer, wandb_server

NAMES = ("MODE", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR", "ERROR_REPORTING", "API_KEY", "BASE_URL")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was, afterwards; and nothing said beforehand."""
    for name in NAMES:
        monkeypatch.setenv(f"WANDB_{name}", "")  # so that its absence is restored
        monkeypatch.delenv(f"WANDB_{name}")


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    with wandb_server() as running:
        yield running


def python(server: WandbServer, home: Path, code: str, *arguments: Any) -> Any:
    """What `code` prints as JSON, run by another process whose W&B is the server.

    arguments: its `sys.argv[1:]`. wandb keeps its server for the life of a process.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(home)}
    environment |= {"WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
