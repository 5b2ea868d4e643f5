"""How many different training images each attack finds by its network evaluations, as CSV.

Usage: python docs/results/coverage.py ATTACK:SEED=EVALUATE [...] --at 9000 18000 > CSV

EVALUATE is a finished outputs/evaluate/<key>; `sidepipe stage=status` lists the keys. --at: numbers
of evaluations below the attack's own. ratio_hits: hits by the published rule, nearest / second
nearest different training image < 1 / 3.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd


def row_of(name: str, folder: Path, at: Sequence[int]) -> dict[str, Any]:
    """The row of one attack."""
    results = json.loads((folder / "results.json").read_text())
    first, found = results["calibrated"][0], results["rarefaction"]
    starts, cost = results["num_images"], results["cost"]["network_evaluations"]
    table = pd.read_csv(folder / "nearest.csv")
    start, hit = table["index"] // results["per_start"], table["hit"] == 1
    by = {n: table.loc[hit & (start < starts * n / cost), "train_group"].nunique() for n in at}
    end, (low, high) = found["num_images"].index(starts), first["excess"]["interval"]
    return {
        "attack": name.partition(":")[0],
        "seed": name.partition(":")[2],
        "starts": starts,
        "hits": first["train"]["count"],
        "heldout_hits": round(first["heldout"]["scaled"], 3),
        "excess": f"{100 * first['excess']['share']:.2f}",
        "excess_low": f"{100 * low:.2f}",
        "excess_high": f"{100 * high:.2f}",
        **{f"different_{n}": count for n, count in by.items()},
        "different": first["train"]["unique"],
        "different_low": round(found["low"][end]),
        "different_high": round(found["high"][end]),
        "different_heldout": round(first["heldout"]["unique"], 2),
        "ratio_hits": results["rules"]["ratio"]["train"]["count"],
        "evaluations": cost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", type=int, nargs="+", required=True)
    parser.add_argument("attacks", nargs="+")
    arguments = parser.parse_args()
    named = [each.partition("=") for each in arguments.attacks]
    rows = [row_of(name, Path(folder), arguments.at) for name, _, folder in named]
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
