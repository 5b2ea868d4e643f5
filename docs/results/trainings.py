"""Hits of trainings against memorization, before and after refinement, and held-out loss, as CSV.

Usage: python docs/results/trainings.py METHOD:SEED=PLAIN,REFINED [...] > training_mitigations.csv

PLAIN and REFINED are finished outputs/evaluate/<key> of one model; `sidepipe stage=status`
lists the keys.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from sidepipe.engine.artifacts import Artifact


def model_of(evaluate: Path) -> Path:
    model = Artifact(evaluate).ancestor("dpm")
    assert model is not None
    return model.folder


def row_of(name: str, plain: Path, refined: Path) -> dict[str, Any]:
    """The row of one model; its losses are those of the last step, with averaged weights."""
    models = {model_of(folder) for folder in (plain, refined)}
    if len(models) != 1:
        sys.exit(f"{name}: {plain.name} and {refined.name} are of different models")
    last = pd.read_csv(models.pop() / "metrics.csv").groupby("metric").last()
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
    row["excess"] = f"{100 * first['excess']['share']:.2f}"
    for end, value in zip(("low", "high"), first["excess"]["interval"], strict=True):
        row[f"excess_{end}"] = f"{100 * value:.2f}"
    return row


def main() -> None:
    rows = []
    for argument in sys.argv[1:]:
        name, _, folders = argument.partition("=")
        plain, refined = map(Path, folders.split(","))
        rows.append(row_of(name, plain, refined))
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
