"""Hits of trainings against memorization, before and after refinement, and held-out loss, as CSV.

Usage: python docs/results/trainings.py METHOD:SEED=PLAIN,REFINED [...] > training_mitigations.csv

PLAIN and REFINED are finished outputs/evaluate/<key> of one model; `sidepipe stage=status`
lists the keys.

A model that was trained on moved images may return these: moved_hits counts refined images that hit
a training image as it is, mirrored, or shifted by a pixel. The control has the same copies of
held-out images, but mirror images, which `sidepipe.compare` takes for repeats.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import sidepipe
from sidepipe.diffusion.mitigation import shifted
from sidepipe.engine.artifacts import Artifact
from sidepipe.stages.extract.stage import load


def model_of(evaluate: Path) -> Path:
    model = Artifact(evaluate).ancestor("dpm")
    assert model is not None
    return model.folder


def moved(images: np.ndarray) -> np.ndarray:
    """The images, their mirror images, and the images shifted by a pixel in eight directions."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    copies = [pixels, pixels.flip(3)]
    for by in itertools.product((-1, 0, 1), repeat=2):
        if by != (0, 0):
            down, right = (torch.full((len(images),), each) for each in by)
            copies.append(shifted(pixels, down, right))
    return torch.cat(copies).permute(0, 2, 3, 1).numpy()


def moved_hits(model: Path, evaluate: Path) -> dict[str, Any]:
    """Refined images that hit a training image or a moved copy of one, with the control."""
    train, heldout = (moved(images) for images in sidepipe.load_split(model))
    images = load(Artifact(evaluate).inputs["extract"].folder)
    found = sidepipe.compare(images, train=train, heldout=heldout, false_positive_rate=0.001)
    return {"moved_hits": found.hits, "moved_heldout_hits": f"{found.heldout_hits:.2f}"}


def row_of(name: str, plain: Path, refined: Path) -> dict[str, Any]:
    """The row of one model; its losses are those of the last step, with averaged weights."""
    model = model_of(plain)
    if model != model_of(refined):
        sys.exit(f"{name}: {plain.name} and {refined.name} are of different models")
    last = pd.read_csv(model / "metrics.csv").groupby("metric").last()
    row = {
        "method": name.partition(":")[0],
        "seed": name.partition(":")[2],
        "train_steps": int(last.loc["val/loss_train", "step"]),
        "loss_train": f"{last.loc['val/loss_train', 'value']:.4f}",
        "loss_heldout": f"{last.loc['val/loss_heldout', 'value']:.4f}",
    }
    for attack, folder in (("plain", plain), ("refined", refined)):
        first = json.loads((folder / "results.json").read_text())["calibrated"][0]
        row[f"{attack}_hits"] = first["train"]["count"]
        row[f"{attack}_heldout_hits"] = f"{first['heldout']['scaled']:.2f}"
    row["different"] = first["train"]["unique"]
    row["different_heldout"] = f"{first['heldout']['unique']:.2f}"
    return row | moved_hits(model, refined)


def main() -> None:
    rows = []
    for argument in sys.argv[1:]:
        name, _, folders = argument.partition("=")
        plain, refined = map(Path, folders.split(","))
        rows.append(row_of(name, plain, refined))
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
