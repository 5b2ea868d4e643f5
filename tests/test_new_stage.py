"""One class, one config file and one line in STAGES add a stage: nothing else is touched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from sidepipe import stages
from sidepipe.cli.main import CONF
from sidepipe.cli.sweep.grid import sweep_of
from sidepipe.cli.sweep.resources import Slurm
from sidepipe.cli.sweep.states import look
from sidepipe.cli.sweep.states import table as sweep_table
from sidepipe.engine import pipeline, status
from sidepipe.engine.graph import Plan
from sidepipe.engine.measures import measured, run_config
from sidepipe.engine.plan import plan
from sidepipe.engine.stage import Job, Stage
from sidepipe.stages.data.stage import load

CONFIG = """
_target_: tests.test_new_stage.Brightness
num_bins: 4
"""


@dataclass(frozen=True, kw_only=True)
class Brightness(Stage):
    """A histogram of the pixels of the data."""

    name: ClassVar[str] = "brightness"
    reported: ClassVar[bool] = True
    accelerated: ClassVar[bool] = False
    num_bins: int

    def inputs(self) -> tuple[str, ...]:
        return ("data",)

    def run(self, job: Job) -> dict[str, Any]:
        counts, _ = np.histogram(load(job.inputs["data"]), bins=self.num_bins, range=(0, 256))
        np.save(job.folder / "counts.npy", counts)
        return {"num_pixels": int(counts.sum())}

    @classmethod
    def curves(cls, folder: Path) -> dict[str, list[dict[str, float]]]:
        counts = np.load(folder / "counts.npy")
        return {
            "brightness/bin": [{"brightness/bin": i, "pixels": n} for i, n in enumerate(counts)]
        }


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The overrides of a smoke run that has the stage."""
    added = {"brightness": "tests.test_new_stage.Brightness"}
    (*others, last) = stages.STAGES.items()
    monkeypatch.setattr(stages, "STAGES", {**dict(others), **added, last[0]: last[1]})
    (tmp_path / "conf" / "brightness").mkdir(parents=True)
    (tmp_path / "conf" / "brightness" / "pixels.yaml").write_text(CONFIG)

    return [
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]",
        *("experiment=smoke", "+brightness=pixels"),
        f"runtime.outputs={tmp_path / 'outputs'}",
    ]


def planned(overrides: list[str]) -> Plan:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return plan(compose("config", overrides=overrides))


def test_it_has_a_node_that_reads_its_inputs_and_that_the_report_reads(overrides) -> None:
    the_plan = planned(overrides)
    (node,) = the_plan.goals("brightness")
    assert (node.stage.name, list(node.inputs)) == ("brightness", ["data"])
    (report,) = the_plan.goals("report")
    assert report.inputs["brightness"].key == node.key
    (other,) = planned([*overrides, "brightness.num_bins=8"]).goals("brightness")
    assert other.key != node.key


def test_a_wrong_setting_of_it_is_refused_by_name(overrides) -> None:
    with pytest.raises(ValueError, match=r"brightness.num_bin .*did you mean 'num_bins'"):
        planned([*overrides, "+brightness.num_bin=8"])


def test_it_runs_and_shows_its_state_and_its_result(overrides) -> None:
    the_plan = planned(overrides)
    assert [line for line in status.table(the_plan).splitlines() if "brightness" in line]
    (node,) = pipeline.run(the_plan, "brightness")
    (line,) = [ln for ln in status.table(the_plan).splitlines() if ln.startswith("brightness")]
    assert "done" in line
    assert '"num_pixels": ' in pipeline.show(node, the_plan)


def test_tracking_gets_its_config_numbers_and_curves(overrides) -> None:
    the_plan = planned(overrides)
    (node,) = pipeline.run(the_plan, "brightness")
    folder = node.folder(the_plan.runtime)
    config = run_config(folder, [], None)
    assert config["brightness"]["num_bins"] == 4
    assert config["inputs"] == {"data": f"data-{node.inputs['data'].key}"}
    pixels = load(node.inputs["data"].folder(the_plan.runtime)).size
    content = measured(Brightness, folder, None, images=False)
    assert content.summary["brightness/num_pixels"] == pixels
    assert sum(row["pixels"] for row in content.curves["brightness/bin"]) == pixels


def test_a_sweep_has_it_and_its_jobs_ask_for_what_it_can_use(overrides) -> None:
    sweep = sweep_of("attack_demo", [o for o in overrides if o != "experiment=smoke"])
    tasks = [task for task in sweep.tasks.values() if task.node.stage.name == "brightness"]
    assert len(tasks) == 1  # all points have the same data
    assert len(sweep.points) == len(tasks[0].points) > 1
    assert "brightness" in sweep_table(sweep, look(sweep))
    asked = Slurm(gres="gpu:1", nodes=2).of("brightness")
    assert (asked.gres, asked.nodes) == (None, 1)
