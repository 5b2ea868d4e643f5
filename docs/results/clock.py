"""The onsets of memorization and every look of trainings, as CSV.

Usage: python docs/results/clock.py onsets SEED=CLOCK [...] > clock_onsets.csv
       python docs/results/clock.py curves CLOCK [...] > clock_curves.csv

CLOCK is a finished outputs/clock/<key>; `sidepipe stage=status` lists the keys.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

COLUMNS = {
    "step": "train_steps",
    "loss_train": "loss_train",
    "loss_heldout": "loss_heldout",
    "plain_hits": "plain_hits",
    "plain_heldout_hits": "plain_heldout_hits",
    "refined_hits": "refined_hits",
    "refined_heldout_hits": "refined_heldout_hits",
    "refined_different": "different",
    "refined_different_heldout": "different_heldout",
}


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def onsets_of(seed: str, folder: Path) -> dict[str, Any]:
    """The row of one training; an onset that was not reached is empty."""
    results = results_of(folder)
    onsets = {f"onset_{name}": step for name, step in results["onsets"].items()}
    return {"train_images": results["num_train_images"], "model": f"seed {seed}", **onsets}


def curves_of(folder: Path) -> pd.DataFrame:
    """A row per look of one training."""
    table = pd.read_csv(folder / "clock.csv")
    table["loss_heldout"] = table["loss_train"] + table["loss_gap"]
    table = table[list(COLUMNS)].rename(columns=COLUMNS)
    table.insert(0, "train_images", results_of(folder)["num_train_images"])
    for name in ("loss_train", "loss_heldout"):
        table[name] = table[name].map("{:.4f}".format)
    for name in ("plain_heldout_hits", "refined_heldout_hits"):
        table[name] = table[name].map("{:.2f}".format)
    return table


def main() -> None:
    kind, *artifacts = sys.argv[1:]
    if kind == "onsets":
        named = [argument.partition("=") for argument in artifacts]
        table = pd.DataFrame([onsets_of(seed, Path(folder)) for seed, _, folder in named])
        table = table.astype({name: "Int64" for name in table if name.startswith("onset_")})
    elif kind == "curves":
        table = pd.concat([curves_of(Path(folder)) for folder in artifacts])
    else:
        sys.exit(__doc__)
    table.to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
