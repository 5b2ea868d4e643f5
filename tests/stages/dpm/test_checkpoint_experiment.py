"""`experiment=checkpoint`: one's own checkpoint in one line, with nothing to delete."""

import numpy as np
import pytest
from PIL import Image
from tests.composing import composed
from tests.models.tiny_pipelines import of_images, schedule

from sidepipe.engine import pipeline
from sidepipe.engine.plan import plan
from sidepipe.stages.report.stage import load_table


@pytest.fixture
def given(tmp_path):
    """The settings that a user chooses."""
    scheduler = schedule(num_train_timesteps=1000)
    of_images(tmp_path / "checkpoint", scheduler, in_channels=3, out_channels=3)
    rng = np.random.default_rng(0)
    for partition, count in (("train", 24), ("heldout", 40)):
        (folder := tmp_path / "images" / partition).mkdir(parents=True)
        for i, image in enumerate(rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)):
            Image.fromarray(image).save(folder / f"{i}.png")
    return [
        "experiment=checkpoint",
        f"dpm.path={tmp_path}/checkpoint",
        f"data.source.folder={tmp_path}/images",
        "data.size=8",
        f"runtime.outputs={tmp_path}/outputs",
    ]


def test_it_trains_nothing_and_has_two_rows(given):
    titles = [
        plan_.title(node) for plan_ in [plan(composed(*given))] for node in plan_.nodes.values()
    ]
    assert {title.split()[0] for title in titles} == {
        *("data", "dpm", "generate", "reference", "extract", "evaluate", "report")
    }
    assert {t for t in titles if t.startswith("extract")} == {
        "extract [unconditional]",
        "extract [refined]",
    }


def test_it_runs(given):
    small = ["generate.num_images=20", "generate.num_inference_steps=2", "extract.num_images=20"]
    small += ["extract.num_inference_steps=2", "runtime.compile=false", "runtime.accelerator=cpu"]
    the_plan = plan(composed(*given, *small))
    pipeline.run(the_plan, "all")
    [report] = [node for node in the_plan.nodes.values() if node.stage.name == "report"]
    text = load_table(report.folder(the_plan.runtime))
    assert "unconditional" in text
    assert "refined" in text
