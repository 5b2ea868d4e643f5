"""`VENV=`: make uses the active environment, such as conda's, and installs nothing in it.

conda itself is not needed here: an active environment is a folder of programs that comes first in
PATH, and a plain venv is one.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tests.composing import composed

ROOT = Path(__file__).parents[1]
TARGETS = re.findall(r"^([a-z-]+)[a-z -]*: \$\(INSTALLED", (ROOT / "Makefile").read_text(), re.M)
PROGRAM = "#!{python}\nimport sys\nfrom sidepipe.cli.{module} import main\nmain()\n"


@pytest.fixture
def active(tmp_path: Path) -> dict[str, str]:
    """The variables of a shell in which a venv with sidepipe is active; the Makefile is there."""
    place = tmp_path / "environment"
    venv.create(place, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(
        f"{ROOT / 'src'}\n" + "\n".join(p for p in sys.path if "site-packages" in p)
    )
    for name, module in {"sidepipe": "main", "sidepipe-sweep": "sweep.command"}.items():
        program = place / "bin" / name
        program.write_text(PROGRAM.format(python=place / "bin" / "python", module=module))
        program.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "HOME") if name in os.environ}
    return {**kept, "PATH": f"{place / 'bin'}:/usr/bin:/bin", "VENV": ""}


def make(folder: Path, shell: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("make") or "make", *words]
    return subprocess.run(
        command, cwd=folder, env=shell, capture_output=True, text=True, check=False
    )


def test_there_are_targets_to_check() -> None:
    assert {"setup", "sweep", "status", "sync", "dashboard", "test", "run"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_makes_a_venv_or_installs_anything(tmp_path, active, target) -> None:
    done = make(tmp_path, active, "-n", target, "SWEEP=attack_demo")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\bpip\b", done.stdout)
    assert "-m venv" not in done.stdout
    assert ".venv" not in done.stdout
    if target != "setup":
        assert f"{tmp_path}/environment/bin/" in done.stdout


def test_a_venv_is_made_with_the_pinned_versions_unless_it_is_empty(tmp_path, active) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    shell = {name: value for name, value in active.items() if name != "VENV"}
    done = make(tmp_path, shell, "-n", "sweep", "SWEEP=attack_demo")
    assert "-m venv .venv" in done.stdout
    assert "pip install" in done.stdout
    assert ".venv/bin/sidepipe-sweep run attack_demo" in done.stdout


@pytest.mark.parametrize("target", ["sweep", "cancel", "report"])
def test_a_missing_name_of_a_sweep_is_an_error_before_any_installation(tmp_path, active, target):
    shell = {name: value for name, value in active.items() if name != "VENV"}
    done = make(tmp_path, shell, "-n", target)
    assert done.returncode != 0
    assert f"SWEEP must be set, for example make {target} SWEEP=subset_size" in done.stderr
    assert done.stdout == ""


def test_an_active_environment_without_sidepipe_is_named_with_the_remedy(tmp_path, active) -> None:
    (tmp_path / "environment" / "bin" / "sidepipe").unlink()
    done = make(tmp_path, active, "sweep", "SWEEP=attack_demo")
    assert done.returncode != 0
    assert f"{tmp_path}/environment/bin has no sidepipe; remedy: conda env create" in done.stdout


@pytest.mark.slow
def test_a_sweep_is_planned_by_the_active_environment(tmp_path, active) -> None:
    given = f"ARGS=experiment=smoke attacks=compare runtime.outputs={tmp_path / 'outputs'}"
    done = make(tmp_path, active, "sweep", "SWEEP=attack_demo", "LAUNCHER=local", "DRY=1", given)
    assert done.returncode == 0, done.stderr
    assert "sweep attack_demo: 3 points, seed=0,1,2" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_make_attacks_gives_the_folder_of_faces_to_each_sweep_that_reads_one() -> None:
    pattern = re.search(r'grep -qE "(.+)" conf/sweep', (ROOT / "Makefile").read_text())[1]
    for sweep in sorted((ROOT / "conf" / "sweep").glob("attack_*.yaml")):
        source = composed(f"sweep={sweep.stem}").data.source
        assert ("folder" in source) == bool(re.search(pattern, sweep.read_text())), sweep.stem
