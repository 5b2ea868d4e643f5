"""The published ratio of distances of generated rows, next to that of held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sidepipe.api.result import Estimate
from sidepipe.api.table_result import Ratio
from sidepipe.base.tables import Schema, parsed
from sidepipe.memorization import tables as m
from sidepipe.memorization.excess import Z, difference, wilson

MOST_RATIOS = 2000  # rows of each kind whose ratios are computed: each takes all training rows


@dataclass(frozen=True)
class Published:
    """Ratios of a sample of generated rows, whose places are `rows`, and of held-out rows."""

    rows: np.ndarray
    published: np.ndarray
    scaled: np.ndarray
    ratios: dict[str, Ratio]


def published(rows: Mapping[str, pd.DataFrame], schema: Schema, seed: int) -> Published:
    means = _means(rows["train"], schema)
    plain = {name: _plain(some, schema, means) for name, some in rows.items()}
    rng = np.random.default_rng(seed)
    sample = {
        name: np.sort(rng.permutation(len(plain[name]))[:MOST_RATIOS])
        for name in ("generated", "heldout")
    }
    measures = {"published": m.published_ratios, "scaled": m.global_ratios}
    found = {
        measure: {n: of(plain[n].part(some), plain["train"]) for n, some in sample.items()}
        for measure, of in measures.items()
    }
    ratios = {n: _ratio(one["generated"], one["heldout"]) for n, one in found.items()}
    own = {name: one["generated"] for name, one in found.items()}
    return Published(sample["generated"], own["published"], own["scaled"], ratios)


def _ratio(generated: np.ndarray, heldout: np.ndarray) -> Ratio:
    one, other = _share(generated), _share(heldout)
    area, heldout_area = _area(generated), _area(heldout)
    return Ratio(
        generated=one,
        heldout=other,
        excess=_difference(one, other),
        area=area,
        heldout_area=heldout_area,
        area_excess=_difference(area, heldout_area),
    )


def _share(ratios: np.ndarray) -> Estimate:
    share = float(m.memorized(ratios).mean())
    return Estimate(share, wilson(share, len(ratios)))


def _difference(one: Estimate, other: Estimate) -> Estimate:
    return Estimate(*difference(one.share, one.interval, other.share, other.interval))


def _area(ratios: np.ndarray) -> Estimate:
    """Mem-AUC and its 95 % interval, that of a mean."""
    area, half = m.mem_auc(ratios), Z * float(ratios.std()) / len(ratios) ** 0.5
    return Estimate(area, (max(0.0, area - half), min(1.0, area + half)))


def _numbers(rows: pd.DataFrame, schema: Schema) -> dict[str, np.ndarray]:
    """The numeric columns and the ordinal ones of numbers, by name."""
    found: dict[str, np.ndarray] = {}
    for column in schema.columns:
        if column.kind == "numeric":
            found[column.name] = rows[column.name].to_numpy()
        elif column.kind == "ordinal" and not np.isnan(parsed(column.categories)).any():
            found[column.name] = parsed(rows[column.name])
    return found


def _means(train: pd.DataFrame, schema: Schema) -> dict[str, float]:
    return {
        name: float(np.nanmean(values)) if not np.isnan(values).all() else 0.0
        for name, values in _numbers(train, schema).items()
    }


def _plain(rows: pd.DataFrame, schema: Schema, means: Mapping[str, float]) -> m.Plain:
    """Rows for the published measure; a missing number is the mean of training, as in TabSyn."""
    numbers = _numbers(rows, schema)
    columns = [np.where(np.isnan(v), means[n], v) for n, v in numbers.items()]
    codes = [
        pd.Categorical(rows[c.name], list(c.categories)).codes.astype(np.int64)
        for c in schema.columns
        if c.name not in numbers
    ]
    none = np.empty((len(rows), 0))
    numeric = np.stack(columns, axis=1) if columns else none
    return m.Plain(numeric, np.stack(codes, axis=1) if codes else none.astype(np.int64))
