"""What `extract.covered` estimates without truth, and what more starts showed, as CSV.

Usage: python docs/results/estimates.py ATTACK:SEED=EVALUATE [...] > coverage_estimates.csv

EVALUATE is a finished outputs/evaluate/<key>. The first starts of its attack give an estimate, and
the others its truth: the share of them whose last image is a near duplicate of a known one, and the
share of their hits that is on training images already hit.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from sidepipe.engine.artifacts import Artifact
from sidepipe.features.near import NearDuplicates
from sidepipe.features.search import nearest
from sidepipe.stages.extract.covered import estimate
from sidepipe.stages.extract.stage import load, load_per_start

STARTS = (250, 500, 1000, 2000, 4000)
FEATURES = {"_target_": "sidepipe.features.encoders.PixelsL2"}
NEAR = NearDuplicates(features=FEATURES, threshold=0.075)  # near_duplicates of conf/config.yaml


def rows_of(name: str, folder: Path) -> list[dict[str, object]]:
    """A row per number of starts that leaves at least as many for the truth."""
    extract = Artifact(folder).inputs["extract"].folder
    each, images = load_per_start(extract), load(extract)
    last = images[each - 1 :: each]
    features = NEAR.encoder.encode(last)
    table = pd.read_csv(folder / "nearest.csv").sort_values("index")
    hit, group = table["hit"].to_numpy().astype(bool), table["train_group"].to_numpy()
    in_all, found = int(estimate(last, NEAR, "cpu")["groups"]), []
    for count in (n for n in STARTS if 2 * n <= len(last)):
        guess, end = estimate(last[:count], NEAR, "cpu"), count * each
        gamma = nearest(features[count:], features[:count], "l2")[0][:, 0]
        known = np.unique(group[:end][hit[:end]])
        row = {
            "attack": name.partition(":")[0],
            "seed": name.partition(":")[2],
            "known_starts": count,
            "coverage_estimated": f"{100 * guess['coverage']:.1f}",
            "coverage_true": f"{100 * (gamma <= NEAR.threshold).mean():.1f}",
            "hits_known": f"{100 * np.isin(group[end:][hit[end:]], known).mean():.1f}",
            "groups": guess["groups"],
            "groups_estimated": round(guess["groups"] + guess["unseen"]),
            "groups_in_all": in_all,
            "of_starts": len(last),
            "different": len(known),
            "different_in_all": len(np.unique(group[hit])),
        }
        found.append(row)
    return found


def main() -> None:
    named = [argument.partition("=") for argument in sys.argv[1:]]
    rows = [row for name, _, folder in named for row in rows_of(name, Path(folder))]
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
