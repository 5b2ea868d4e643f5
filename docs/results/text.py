"""Searches, benchmark and canaries of models with captions, from artifacts, as CSV.

Usage: python docs/results/text.py search NAME:SEED=SEARCH [...] > docs/results/data/text_search.csv
       python docs/results/text.py benchmark ROW:SEED=MITIGATE [...] > .../text_benchmark.csv
       python docs/results/text.py canaries SEED=CANARIES[,SEARCH] [...] > .../text_canaries.csv

SEARCH, MITIGATE and CANARIES are finished folders outputs/<stage>/<key>; `sidepipe stage=status`
lists the keys. After the canaries of a model follows a search on it, where there was one.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sidepipe.stages.canaries.stage import load as load_canaries
from sidepipe.stages.canaries.stage import load_table
from sidepipe.stages.mitigate.stage import load as load_mitigate
from sidepipe.stages.report.canaries import found_rows
from sidepipe.stages.search.stage import load as load_search

Row = dict[str, Any]
PROMPTS = (1, 2, 5, 10, 20, 40)  # of a search, after which its curve is shown


def search_rows(name: str, folder: Path) -> list[Row]:
    """The curve of a search, and those of random prompts and of training captions."""
    label, _, seed = name.partition(":")
    rows = []
    for source, of in load_search(folder)["sources"].items():
        last = of["prompts"]
        for count in (*(n for n in PROMPTS if n < last), last):
            evaluations, different, recall = of["curve"][count - 1]
            row = {"search": label if source == "search" else source, "prompts": count}
            row |= {"seed": seed, "memorized": of["memorized"] if count == last else ""}
            row["different"] = different
            row["recall"] = "" if recall is None else f"{100 * recall:.1f}"
            rows.append({**row, "evaluations": evaluations})
    return rows


def benchmark_rows(name: str, folder: Path) -> list[Row]:
    """The row of one method: means over images."""
    results = load_mitigate(folder)
    ours, theirs = (results["by_image"][group] for group in ("memorized", "other"))
    quality, loss = results["quality"], results["heldout_loss"]
    row = {
        "method": name.partition(":")[0],
        "seed": name.partition(":")[2],
        "memorized_images": ours["still"]["of"],
        **_percent("still", ours["still"]),
        **_percent("recovered", ours.get("recovered")),
        **_percent("control", theirs.get("recovered")),
        **_of_unused(results),
        "gamma": f"{ours['gamma']['mean']:.3f}",
        "alignment": f"{ours['alignment']['mean']:.3f}",
        "alignment_other": f"{theirs['alignment']['mean']:.3f}",
        "kid": "" if quality is None else f"{quality:.4f}",
        "loss_heldout": "" if loss is None else f"{loss['mean']:.4f}",
        "evaluations_per_image": f"{results['evaluations_per_image']:.1f}",
    }
    return [row]


def _of_unused(results: Mapping[str, Any]) -> Row:
    """Shares of memorized prompts that a method which uses half of them did not use."""
    part, again = "memorized_heldout", results["adversary"] or {}
    shares = {"still_unused": results["memorized"].get(part, {}).get("prompts")}
    shares["recovered_unused"] = again.get(part, {}).get("after", {}).get("prompts")
    return {n: "" if of is None else f"{100 * of['share']:.1f}" for n, of in shares.items()}


def canary_rows(seed: str, folders: str) -> list[Row]:
    """A row per number of repeats; controls have 0."""
    folder, _, search = folders.partition(",")
    table = load_table(Path(folder))
    found = found_rows(Path(search)) if search else None
    rows = []
    for of in load_canaries(Path(folder))["by_repeats"]:
        own = table.loc[table["repeats"] == of["repeats"]]
        extracted = of["extracted"]
        row = {"repeats": of["repeats"], "seed": seed, "canaries": extracted["of"]}
        row |= _percent("extracted", {**extracted, "mean": extracted["share"]})
        row["exposure_median"] = f"{own['exposure'].median():.1f}"
        row["found_by_search"] = "" if found is None else len(found.intersection(own.index))
        rows.append(row)
    return rows


def _percent(name: str, of: Mapping[str, Any] | None) -> Row:
    """A share with its 95 % interval, in percent; empty where it was not measured."""
    values = [None] * 3 if of is None or of["mean"] is None else [of["mean"], *of["interval"]]
    names = (name, f"{name}_low", f"{name}_high")
    texts = ["" if value is None else f"{100 * value:.1f}" for value in values]
    return dict(zip(names, texts, strict=True))


def table_of(kind: str, named: Sequence[str]) -> pd.DataFrame:
    """The CSV file of one kind, of artifacts as on the command line.

    Searches on one model share random prompts and captions. Raises ValueError where these differ.
    """
    read: Any = {"search": search_rows, "benchmark": benchmark_rows, "canaries": canary_rows}[kind]
    parts = [each.partition("=") for each in named]
    given = ((name, folder if kind == "canaries" else Path(folder)) for name, _, folder in parts)
    rows = pd.DataFrame([row for name, folder in given for row in read(name, folder)])
    rows = rows.drop_duplicates()
    key = [name for name in ("search", "prompts", "method", "repeats", "seed") if name in rows]
    if (twice := rows.loc[rows.duplicated(key), key]).size:
        raise ValueError(f"two artifacts have {twice.iloc[0].to_dict()}, with other numbers")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("search", "benchmark", "canaries"))
    parser.add_argument("artifacts", nargs="+")
    arguments = parser.parse_args()
    table_of(arguments.kind, arguments.artifacts).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
