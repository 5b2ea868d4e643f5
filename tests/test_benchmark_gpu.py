"""The benchmark for an accelerator, on a machine without one: its commands can be planned."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.composing import composed

from sidepipe.engine.plan import plan

GPU = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "gpu.py"))


@pytest.mark.parametrize("refine", [[], GPU["REFINE"]])
def test_its_run_can_be_planned_with_the_images_and_evaluations_that_it_counts(refine):
    nodes = plan(composed(*GPU["RUN"], *refine)).nodes.values()
    stages: dict[str, Any] = {node.stage.name: node.stage for node in nodes}
    extract = stages["extract"]
    assert extract.num_images == GPU["IMAGES"]
    steps = GPU["SAMPLING_STEPS"] + (GPU["REFINEMENT_STEPS"] if refine else 0)
    assert extract.evaluations == steps
    assert (stages["dpm"].max_steps, stages["dpm"].batch_size) == (GPU["TRAINING_STEPS"], 128)


def test_it_takes_less_than_ten_minutes():
    minutes = GPU["MINUTES"]
    assert 3 * minutes["the 64-pixel run"] + minutes["sampling.py"] + minutes["training.py"] < 10


def test_without_an_accelerator_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    GPU["main"]()
    assert capsys.readouterr().out == "no accelerator at hand: nothing was measured on one\n"
