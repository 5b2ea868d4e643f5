"""A short spin must be in the environment before torch loads its OpenMP library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidepipe.base.openmp import SHORT_SPIN

NAMES = [*SHORT_SPIN, "OMP_WAIT_POLICY"]


def said(code, *arguments, **variables):
    """What Python prints, with none of `NAMES` in its environment but `variables`."""
    plain = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", code, *arguments]
    environment, root = {**plain, **variables}, Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


AS_TORCH_LOADS = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, *rest):
        if name == "torch":
            print({name: os.environ.get(name) for name in sys.argv[2:]}, flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
import torch
"""


@pytest.mark.parametrize(
    "module",
    [
        *("sidepipe.cli.main", "sidepipe.cli.sweep.command", "sidepipe.cli.sync"),
        *("sidepipe.cli.dashboards.overview", "sidepipe.engine.stage", "tests.conftest"),
        *("benchmarks.sampling", "benchmarks.search", "benchmarks.threads", "benchmarks.training"),
    ],
)
def test_whatever_loads_torch_has_set_a_short_spin_before(module):
    assert said(AS_TORCH_LOADS, module, *NAMES).stdout == f"{ {**SHORT_SPIN, NAMES[-1]: None} }\n"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"GOMP_SPINCOUNT": "300000"}, {**SHORT_SPIN, "GOMP_SPINCOUNT": "300000"}),
        ({"KMP_BLOCKTIME": "200"}, {**SHORT_SPIN, "KMP_BLOCKTIME": "200"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "7"}, None),
    ],
)
def test_what_the_user_set_is_kept(given, found):
    expected = {name: (given if found is None else found).get(name) for name in NAMES}
    assert said(AS_TORCH_LOADS, "sidepipe", *NAMES, **given).stdout == f"{expected}\n"


def test_libgomp_takes_it():
    """Not only the environment: the library itself shows its settings as torch loads it."""
    shown = said("import sidepipe, torch", OMP_DISPLAY_ENV="VERBOSE").stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("torch is built with another OpenMP library")
    assert f"GOMP_SPINCOUNT = '{SHORT_SPIN['GOMP_SPINCOUNT']}'" in shown


IN_A_SPAWNED_PROCESS = """
import multiprocessing, os
import sidepipe

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(os.getenv, ["GOMP_SPINCOUNT"]))
"""


@pytest.mark.parametrize(("given", "found"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5")])
def test_spawned_processes_have_it(given, found):
    assert said(IN_A_SPAWNED_PROCESS, **given).stdout == f"{found}\n"
