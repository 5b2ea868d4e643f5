"""The clock of a training in closed form, whose model memorizes from a known step on."""

import numpy as np
import pandas as pd
import pytest
from tests.composing import planned
from tests.memory import ALPHAS, Memory
from tests.tiny import RUNTIME

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.engine.stage import Job
from sidepipe.memorization.clock import level_of
from sidepipe.stages.clock import stage as module
from sidepipe.stages.clock.stage import Clock, in_words, load
from sidepipe.stages.reference.stage import Reference

L2 = {"_target_": "sidepipe.features.encoders.PixelsL2"}
SETTINGS = {
    "features": L2,
    "false_positive_rates": [0.05],
    "num_images": 60,
    "num_inference_steps": 4,
    "refine_steps": 3,
    "refine_t": 10,
    "loss_images": 30,
    "loss_draws": 3,
    "precision": "32-true",
    "seed": 0,
}
NUM_TRAIN, NUM_UNSEEN = 20, 40
STEPS = (10, 20, 40, 80)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Until step 20 the model is near all real images, from step 40 on near training images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_TRAIN + NUM_UNSEEN, 6, 6, 1)).astype(np.uint8)
    train, unseen = np.split(rng.permutation(len(images)), [NUM_TRAIN])
    noise = rng.normal(0, 1, (3, 6, 6, 1)) * np.array([4, 6, 9]).reshape(3, 1, 1, 1)
    images[unseen[-3:]] = (images[train[-3:]] + noise).clip(0, 255).astype(np.uint8)
    folders = {name: tmp_path / name for name in ("data", "dpm", "reference")}
    for folder in folders.values():
        folder.mkdir()
    for step in STEPS:
        (folders["dpm"] / f"checkpoints/step_{step:07d}").mkdir(parents=True)
    np.save(folders["data"] / "images.npy", images)
    rows = "".join(f"{i},NA,train,\n" for i in range(len(images)))
    (folders["data"] / "ids.csv").write_text(f"index,id,partition,identity\n{rows}")
    np.save(folders["dpm"] / "subset.npy", train)
    np.save(folders["dpm"] / "heldout.npy", unseen)

    def model(folder, precision, part):
        step = int(part.removeprefix("checkpoints/step_"))
        known = images[train] if step >= 40 else images
        return Denoiser(Memory(known), ALPHAS, "sample", (1, 6, 6))

    monkeypatch.setattr(module, "load_denoiser", model)
    reference = Reference(features=L2, false_positive_rates=[0.05])
    reference.run(Job(folders["reference"], folders, RUNTIME))
    return folders


def run(inputs, folder):
    folder.mkdir(exist_ok=True)
    return Clock(**SETTINGS).run(Job(folder, inputs, RUNTIME))


def test_all_measures_find_the_step_at_which_the_model_starts_to_memorize(inputs, tmp_path):
    summary = run(inputs, tmp_path / "clock")
    assert summary == load(tmp_path / "clock")
    assert summary["onsets"] == {"loss": 40, "plain": 40, "refined": 40}
    assert (summary["looks"], summary["level"]) == (4, level_of(4))
    assert summary["evaluations"] == {"loss": (20 + 30) * 3, "plain": 60 * 4, "refined": 60 * 7}
    table = pd.read_csv(tmp_path / "clock/clock.csv").set_index("step")
    assert table.index.tolist() == list(STEPS)
    assert (table["refined_images"] == 60).all()
    assert table.loc[40, "refined_hits"] > 50
    assert table.loc[40, "refined_different_heldout"] <= 3  # those that are like training images
    assert table.loc[10, "refined_different_heldout"] > table.loc[10, "refined_different"] / 2
    assert table.loc[40, "loss_gap"] > table.loc[10, "loss_gap"]


def test_a_killed_clock_measures_the_missing_checkpoints_alone(inputs, tmp_path, monkeypatch):
    whole = run(inputs, tmp_path / "whole")
    measured, one, asked = [], Clock._at, []

    def failing(self, job, part, *args):
        asked.append(part)
        if len(asked) == 3:
            raise KeyError("the machine broke down")
        measured.append(part)
        return one(self, job, part, *args)

    monkeypatch.setattr(Clock, "_at", failing)
    with pytest.raises(KeyError, match="broke down"):
        run(inputs, tmp_path / "broken")
    assert run(inputs, tmp_path / "broken") == whole
    assert len(measured) == len(set(measured)) == 4
    tables = [(tmp_path / name / "clock.csv").read_bytes() for name in ("whole", "broken")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("loss", "plain", "refined", "told"),
    [
        (
            *(1600, None, 800),
            "Memorization of 1,024 training images sets in at step 1,600 by the loss gap and at "
            "step 800 by refinement, and is not found by plain sampling",
        ),
        (
            *(None, None, 800),
            "Memorization of 1,024 training images sets in at step 800 by refinement, and is not "
            "found by the loss gap or plain sampling",
        ),
        (
            *(1600, 1600, 800),
            "Memorization of 1,024 training images sets in at step 1,600 by the loss gap, at step "
            "1,600 by plain sampling and at step 800 by refinement",
        ),
        (
            *(None, None, None),
            "No memorization of 1,024 training images was found by the loss gap, plain sampling or "
            "refinement",
        ),
    ],
)
def test_the_onsets_in_words(loss, plain, refined, told):
    onsets = {"loss": loss, "plain": plain, "refined": refined}
    results = {"num_train_images": 1024, "looks": 12, "last_step": 9050, "onsets": onsets}
    assert in_words(results) == f"{told} (12 looks up to step 9,050)."


def test_a_training_without_kept_checkpoints_is_refused():
    with pytest.raises(
        ValueError, match=r"dpm\.keep_every_steps must be set, got None; clock=onsets"
    ):
        planned("clock=onsets")
