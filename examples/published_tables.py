"""Published and corrected measures of generated tables, for generators whose copies are known.

Rows of a real table are divided into training rows, held-out rows, and as many others, of which the
generators are made. Without arguments the tables are those of scikit-learn; with the folder of the
public files (docs/tables.md) also these:

    python examples/published_tables.py --folder datasets/tables --out docs/results/data
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import sidepipe
from sidepipe.base.table_encoding import Encoding
from sidepipe.base.table_kinds import schema_of
from sidepipe.base.tables import Schema, conform
from sidepipe.features.search import nearest
from sidepipe.stages.data.tables import Table

EMBEDDED, PUBLIC = ("diabetes", "breast_cancer"), ("magic", "shoppers", "adult")
MOST_ROWS = 4000
COPIED = 0.1  # of the rows of a generator that copies
LOOSE = 0.01  # a false positive rate in addition to the default
NOISE = 0.01  # of the standard deviation of a column, in near copies


def parts(name: str, folder: str) -> tuple[list[pd.DataFrame], Schema]:
    """Training, held-out and other rows of a table, each a third of it or `MOST_ROWS`."""
    source = Table(name, None, None, folder, None, {})
    frames, target, kinds = source.frames()
    schema = schema_of(frames, target=target, kinds=kinds)
    rows = conform(name, frames["train"], schema)
    size = min(MOST_ROWS, len(rows) // 3)
    order = np.random.default_rng(0).permutation(len(rows))
    some = [rows.iloc[order[i * size : (i + 1) * size]] for i in range(3)]
    return [one.reset_index(drop=True) for one in some], schema


def marginals(train: pd.DataFrame, rng: np.random.Generator) -> Any:
    """Each column of the training rows in a random order of its own."""
    return train.apply(lambda column: column.to_numpy()[rng.permutation(len(train))])


def with_copies(others: pd.DataFrame, train: pd.DataFrame, schema: Schema, rng: Any) -> Any:
    """Other real rows, and in place of a tenth of them copies and near copies of training rows."""
    count = int(COPIED * len(others))
    exact, near = others.copy(), others.copy()
    exact.iloc[:count] = train.iloc[:count].to_numpy()
    near.iloc[:count] = train.iloc[:count].to_numpy()
    for column in schema.columns:
        if column.kind == "numeric":
            values = near[column.name].to_numpy(copy=True)
            moved = values[:count] + NOISE * train[column.name].std() * rng.normal(size=count)
            values[:count] = np.round(moved, column.decimals or 6)
            near[column.name] = values
    return exact, near


def interpolated(train: pd.DataFrame, schema: Schema, rng: np.random.Generator) -> pd.DataFrame:
    """Rows between a training row and its nearest other one, as SMOTE makes them.

    Categories and missing values are those of the first row.
    """
    vectors = Encoding.fit(train, schema).encode(train)
    other = train.iloc[nearest(vectors, vectors, "l2", k=2)[1][:, 1]].reset_index(drop=True)
    made, share = train.copy(), rng.random(len(train))
    for column in schema.columns:
        if column.kind == "numeric":
            first, second = train[column.name], other[column.name].fillna(train[column.name])
            made[column.name] = np.round(first + share * (second - first), column.decimals or 6)
    return made


def generators(rows: list[pd.DataFrame], schema: Schema) -> dict[str, pd.DataFrame]:
    train, _, others = rows
    rng = np.random.default_rng(1)
    exact, near = with_copies(others, train, schema, rng)
    return {
        "real rows": others,
        "shuffled columns": marginals(train, rng),
        "10 % copies": exact,
        "10 % near copies": near,
        "interpolated": interpolated(train, schema, rng),
    }


def measured(name: str, folder: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the tables of published and of corrected measures, in percent."""
    rows, schema = parts(name, folder)
    kinds = {c.name: list(c.categories) if c.kind == "ordinal" else c.kind for c in schema.columns}
    published, corrected = [], []
    for method, generated in generators(rows, schema).items():
        given: Any = {"train": rows[0], "heldout": rows[1], "kinds": kinds, "on_unseen": "keep"}
        result: Any = sidepipe.compare(generated, **given)
        loose = sidepipe.compare(generated, false_positive_rate=LOOSE, **given)
        key = {"data": name, "method": method, "train_rows": len(rows[0])}
        one, other = result.ratio, result.scaled_ratio
        shares = {
            "ratio": one.generated.share,
            "ratio_heldout": one.heldout.share,
            "mem_auc": one.area.share,
            "mem_auc_heldout": one.heldout_area.share,
            "scaled_ratio": other.generated.share,
            "scaled_ratio_heldout": other.heldout.share,
        }
        published.append(key | {n: f"{100 * share:.1f}" for n, share in shares.items()})
        excess, closer = result.excess, result.closer
        numbers = {
            "hits": str(result.hits),
            "heldout_hits": f"{result.heldout_hits:.0f}",
            "excess": f"{100 * excess.share:.2f}",
            "excess_low": f"{100 * excess.interval[0]:.2f}",
            "excess_high": f"{100 * excess.interval[1]:.2f}",
            "hits_at_1_percent": str(loose.hits),
            "heldout_hits_at_1_percent": f"{loose.heldout_hits:.0f}",
            "exact": str(result.exact),
            "exact_heldout": f"{result.exact_heldout:.0f}",
            "closer": f"{100 * closer.share:.1f}",
            "closer_low": f"{100 * closer.interval[0]:.1f}",
            "closer_high": f"{100 * closer.interval[1]:.1f}",
        }
        rate = f"{100 * result.false_positive_rate:.2f}"
        corrected.append(key | {"false_positives": rate} | numbers)
    return published, corrected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="where the public files lie")
    parser.add_argument("--out", type=Path, help="a folder for two CSV files; default: the screen")
    arguments = parser.parse_args()
    names = [*EMBEDDED, *(PUBLIC if arguments.folder else ())]
    found: list[tuple[list[Any], list[Any]]] = [measured(n, arguments.folder or "") for n in names]
    for i, name in enumerate(("tables_published", "tables_corrected")):
        rows = [row for part in found for row in part[i]]
        target = sys.stdout if arguments.out is None else arguments.out / f"{name}.csv"
        pd.DataFrame(rows).to_csv(target, index=False)


if __name__ == "__main__":
    main()
