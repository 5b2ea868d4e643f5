"""How many different training images each attack finds by its network evaluations, as CSV.

Usage: python docs/results/coverage.py ATTACK:SEED=EVALUATE [...] --at 9000 18000 > CSV

EVALUATE is a finished outputs/evaluate/<key>; `sidepipe stage=status` lists the keys.

different_N: found by the first N evaluations (--at).
ratio_hits: hits by the published rule, nearest / second nearest different training image < 1 / 3.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd


def discoveries(folder: Path) -> list[float]:
    """The evaluations by which each different training image was found, in order."""
    results = json.loads((folder / "results.json").read_text())
    table = pd.read_csv(folder / "nearest.csv")
    table["start"] = table["index"] // results["per_start"]
    first = table[table["hit"] == 1].groupby("train_group")["start"].min()
    each = results["cost"]["network_evaluations"] / results["num_images"]
    return sorted(each * (start + 1) for start in first)


def row_of(name: str, folder: Path, at: Sequence[int]) -> dict[str, Any]:
    """The row of one attack."""
    results = json.loads((folder / "results.json").read_text())
    first, found = results["calibrated"][0], results["rarefaction"]
    starts, when = results["num_images"], discoveries(folder)
    by = {f"different_{n}": sum(each <= n for each in when) for n in at}
    end, (low, high) = found["num_images"].index(starts), first["excess"]["interval"]
    attack, _, seed = name.partition(":")
    return {
        "attack": attack,
        "seed": seed,
        "starts": starts,
        "hits": first["train"]["count"],
        "heldout_hits": round(first["heldout"]["scaled"], 3),
        "excess": f"{100 * first['excess']['share']:.2f}",
        "excess_low": f"{100 * low:.2f}",
        "excess_high": f"{100 * high:.2f}",
        **by,
        "different": first["train"]["unique"],
        "different_low": round(found["low"][end]),
        "different_high": round(found["high"][end]),
        "different_heldout": round(first["heldout"]["unique"], 2),
        "ratio_hits": results["rules"]["ratio"]["train"]["count"],
        "evaluations": results["cost"]["network_evaluations"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="+")
    parser.add_argument("--at", type=int, nargs="+", default=[])
    arguments = parser.parse_args()
    named = [each.partition("=") for each in arguments.attacks]
    rows = [row_of(name, Path(folder), arguments.at) for name, _, folder in named]
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
