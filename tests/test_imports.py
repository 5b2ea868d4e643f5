"""Help, status and refusals import nothing heavy; a count of modules, for seconds vary."""

import subprocess
import sys

import pytest

HEAVY = {
    *("torch", "lightning", "diffusers", "transformers", "sklearn", "pandas", "matplotlib"),
    *("faiss", "scipy", "wandb", "torchmetrics", "peft", "jinja2"),
}
# Runs the command line as the `sidepipe` script does, and names the heavy modules it imported.
PROBE = """
import atexit, sys
atexit.register(lambda: print("heavy:", *sorted({heavy!r} & sys.modules.keys()), flush=True))
from sidepipe.{module} import main
main()
"""


def probed(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY, module=module), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def heavy(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The heavy modules that a probed command imported."""
    first, *modules = done.stdout.splitlines()[-1].split()
    assert first == "heavy:", done.stderr
    return modules


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "Powered by Hydra"),
        (["stage=status", "experiment=demo"], 0, "missing"),
        (["+label.num_cluster=5"], 1, "label.num_cluster is not a setting"),
        (["generate.num_images=many"], 1, "generate.num_images must be a whole number"),
        (["stage=evalute"], 1, "did you mean 'evaluate'"),
        (["extract.surrogate=clasifier"], 1, "did you mean 'classifier'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_status_and_refusals_import_nothing_heavy(arguments, code, says, tmp_path):
    outputs = [] if arguments == ["--help"] else [f"runtime.outputs={tmp_path}"]
    done = probed("cli.main", *arguments, *outputs)
    assert says in done.stdout + done.stderr
    assert done.returncode == code
    assert heavy(done) == []


def test_the_refusal_of_a_model_imports_nothing_heavy(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    done = probed("cli.main", "stage=status", "dpm=pretrained", f"dpm.path={tmp_path}")
    assert "KolorsPipeline (SDXL" in done.stderr
    assert heavy(done) == []


def test_the_status_of_a_sweep_imports_nothing_heavy(tmp_path):
    done = probed("cli.sweep.command", "status", "attack_demo", f"runtime.outputs={tmp_path}")
    assert "missing" in done.stdout
    assert heavy(done) == []


@pytest.mark.slow
def test_a_part_that_cannot_be_built_is_refused_before_anything_runs(tmp_path):
    """What takes long to import is checked for all stages that are missing, before the first."""
    outputs = tmp_path / "outputs"
    done = probed("cli.main", "+evaluate.features.size=2", f"runtime.outputs={outputs}")
    assert "evaluate.features.size is not a setting of" in done.stdout + done.stderr
    assert done.returncode == 1
    assert not list(outputs.glob("data/*"))
