"""Is the audit's probability of extraction right? Numbers expected and found by attacks.

For every audit below `outputs` with an attack of at least 8,000 refined images on the same model:
1,000 images of the attack calibrate the probabilities, the others are the attacker's, three times
with other images for calibration. One row per sample and kind of image, then one per bin of the
probabilities of training images.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sidepipe.features.pairs import distance
from sidepipe.memorization.extraction import extraction, log_scores, reliability

SAMPLED, STARTS, LEAST = 1000, (0, 3000, 6000), 8000


def manifests(outputs: Path, stage: str) -> dict[Path, dict[str, Any]]:
    paths = sorted(outputs.glob(f"{stage}/*/manifest.json"))
    return {path.parent: json.loads(path.read_text()) for path in paths}


def hits(nearest: pd.DataFrame, table: pd.DataFrame, results: dict[str, Any]) -> np.ndarray:
    """Hits of some images of the attack on each audited image; the metric is l2."""
    near = nearest["heldout_gamma"] <= results["threshold"]
    both = [nearest.loc[nearest["hit"] == 1, "train_index"], nearest.loc[near, "heldout_index"]]
    counts = pd.concat(both).value_counts()
    return table["index"].map(counts).fillna(0).to_numpy(np.int64)


def scores_of(table: pd.DataFrame, threshold: float) -> np.ndarray:
    arrivals = [table[name] for name in table if name.startswith("arrivals_")]
    gamma = distance(table["gamma"].to_numpy(), "l2")
    return log_scores(gamma, threshold, np.array(arrivals, np.float64))


def judged(audit: Path, evaluate: Path) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Rows of expected and found numbers, and the bins of all samples."""
    table = pd.read_csv(audit / "audit.csv")
    results = json.loads((audit / "results.json").read_text())
    nearest = pd.read_csv(evaluate / "nearest.csv")
    numbers, is_train = np.arange(len(nearest)), (table["kind"] == "train").to_numpy()
    rows, bins = [], []
    for first in STARTS:
        own = (numbers >= first) & (numbers < first + SAMPLED)
        sample, later = (hits(nearest[some], table, results) for some in (own, ~own))
        scores = scores_of(table, results["threshold"])
        of = extraction(scores, sample, SAMPLED, int((~own).sum()))
        for kind, some in (("training", is_train), ("held-out", ~is_train)):
            expected, (low, high) = of.expected(some)
            row = {"image_kind": kind, "sample_hits": sample[some].sum()}
            row |= {"expected": round(expected, 1), "expected_low": round(low)}
            rows.append(row | {"expected_high": round(high), "found": (later[some] > 0).sum()})
        bins += reliability(of.probability[is_train], later[is_train] > 0)
    return rows, pd.DataFrame(bins).groupby(["low", "high"], as_index=False).sum()


def summed(bins: pd.DataFrame) -> pd.DataFrame:
    """The bins of all models of a size together."""
    found = bins.groupby(["train_images", "low", "high"], as_index=False).sum(numeric_only=True)
    names = [f"{low:g} to {high:g}" for low, high in zip(found["low"], found["high"], strict=True)]
    table = found[["train_images"]].assign(bin=names, audited=found["images"])
    return table.assign(expected=found["expected"].round(1), found=found["found"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path, nargs="+", default=[Path("outputs")])
    parser.add_argument("--csv", type=Path, help="folder for both tables as CSV files")
    arguments = parser.parse_args()
    rows, bins = [], []
    for outputs in arguments.outputs:
        attacks = manifests(outputs, "evaluate")
        for audit, made in manifests(outputs, "audit").items():
            dpm = json.loads(
                (outputs / "dpm" / made["inputs"]["dpm"] / "manifest.json").read_text()
            )
            about = {"train_images": dpm["summary"]["num_train_images"]}
            about["model"] = f"seed {made['settings']['seed']}"
            same = [
                path
                for path, of in attacks.items()
                if of["inputs"]["reference"] == made["inputs"]["reference"]
                and json.loads((path / "results.json").read_text())["num_images"] >= LEAST
            ]
            for evaluate in same[:1]:
                own, of_bins = judged(audit, evaluate)
                rows += [about | row for row in own]
                bins.append(of_bins.assign(**about))
    if not rows:
        print(f"no audit with an attack of {LEAST:,} images below {arguments.outputs}")
        return
    tables = {
        "extraction_digits": pd.DataFrame(rows).sort_values(
            ["train_images", "model", "image_kind"], ascending=[True, True, False], kind="stable"
        ),
        "extraction_bins_digits": summed(pd.concat(bins)),
    }
    for name, table in tables.items():
        print(table.to_string(index=False))
        if arguments.csv:
            table.to_csv(arguments.csv / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
