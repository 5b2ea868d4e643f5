"""The evaluations by which two attacks find the same number of different training images, as CSV.

Usage: python docs/results/reach.py MODEL=REFINED,RELAXED,LONG [...] > coverage_reach.csv

Each is a finished outputs/evaluate/<key> of this model: of `refined_cheap`, of `relaxed`, and of
`refined_cheap_10`, which makes the same images as `refined_cheap` and then more.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from coverage import discoveries


def row_of(model: str, refined: Path, relaxed: Path, long: Path) -> dict[str, Any]:
    """When each attack reached the other's number of images; empty where it never does."""
    short, quick, whole = map(discoveries, (refined, relaxed, long))

    def reached(found: list[float], count: int) -> int | None:
        return round(found[count - 1]) if count <= len(found) else None

    return {
        "model": model,
        "found_by_refined": len(short),
        "refined_at": reached(short, len(short)),
        "relaxed_at": reached(quick, len(short)),
        "found_by_relaxed": len(quick),
        "relaxed_end": reached(quick, len(quick)),
        "refined_end": reached(whole, len(quick)),
        "found_by_long": len(whole),
        "share_of_long": f"{100 * len(quick) / len(whole):.1f}",
    }


def main() -> None:
    rows = []
    for argument in sys.argv[1:]:
        model, _, folders = argument.partition("=")
        rows.append(row_of(model, *map(Path, folders.split(","))))
    table = pd.DataFrame(rows)
    ends = dict.fromkeys(("refined_at", "relaxed_at", "relaxed_end", "refined_end"), "Int64")
    table.astype(ends).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
