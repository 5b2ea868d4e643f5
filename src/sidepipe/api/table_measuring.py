"""The numbers of `compare` for tables, from rows that are read and checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from sidepipe.api.control import warn, warn_of_swapped
from sidepipe.api.result import Estimate
from sidepipe.api.table_ratios import Published, published
from sidepipe.api.table_result import TableResult
from sidepipe.api.tables import Tables
from sidepipe.base.settings import require
from sidepipe.base.table_encoding import Encoding
from sidepipe.features.encoders import Rows
from sidepipe.features.search import nearest
from sidepipe.memorization import tables as m
from sidepipe.memorization.collapse import collapse, exact_copies, with_copies
from sidepipe.memorization.comparison import Comparison
from sidepipe.memorization.comparison import compare as search
from sidepipe.memorization.excess import excess
from sidepipe.memorization.real import (
    Encoded,
    RealImages,
    checked_rates,
    near_duplicates,
    other_kind,
    real_images,
)
from sidepipe.memorization.results import counted
from sidepipe.memorization.thresholds import MIN_UNSEEN, allowed, usable_rates

log = logging.getLogger("sidepipe.api.tables")  # whose lines the command shows

SEED = 0
CHANCE = 0.025  # of one row; as much as a 95 % interval leaves below it
SEVERAL = 2  # times as many held-out copies of training rows as training rows that repeat others


def measured(tables: Tables, *, false_positive_rate: float, on_duplicates: str) -> TableResult:
    """The result of `sidepipe.compare` on rows of one schema."""
    said: list[str] = []
    for text in tables.warnings:
        warn(text, said)
    rows = dict(tables.rows)
    rows["heldout"] = _control(rows, on_duplicates, said)
    real_rows = pd.concat([rows["train"], rows["heldout"]], ignore_index=True)
    encoding = Encoding.fit(real_rows, tables.schema)
    vectors = {name: _vectors(encoding, some) for name, some in rows.items()}
    log.info("threshold of a hit: the training row nearest to each held-out row")
    real = _real(vectors)
    rate = _rate(real, false_positive_rate, said)
    if text := other_kind(near_duplicates(real, "l2"), "row"):
        warn(text, said)
    log.info("hits and exact copies: the real rows nearest to each generated row")
    c = search(vectors["generated"], None, real, "l2", counts_only=True)
    # By chance a row is in training or held out: rows that are generated again are one draw.
    c = replace(c, draws=np.unique(c.queries, axis=0, return_inverse=True)[1].ravel())
    counts, _ = counted(c, [rate])
    return _result(c, counts, vectors, tables, rows, said)


def _vectors(encoding: Encoding, rows: pd.DataFrame) -> np.ndarray:
    images = encoding.encode(rows)[:, None, None, :]
    return Rows().encode(images, device=torch.device("cpu"))


def _control(rows: Mapping[str, pd.DataFrame], on_duplicates: str, said: list[str]) -> pd.DataFrame:
    """The held-out rows that stay; ValueError where `on_duplicates` forbids copies."""
    train, heldout = rows["train"], rows["heldout"]
    copies = _equal(heldout, train)
    if not copies.any():
        return heldout
    number, within = int(copies.sum()), float(train.duplicated(keep=False).mean())
    text = (
        f"{number:,} of {len(heldout):,} held-out rows are equal to a training row, and "
        f"{100 * within:.3g} % of the training rows are equal to another training row"
    )
    if on_duplicates == "error":
        raise ValueError(
            f"heldout must hold no copies of train: {text}; remedy: on_duplicates='keep' where "
            "different records are equal by chance, and 'drop' where they are the same records"
        )
    rule, remedy = "rows that are not all in train", "pass other rows"
    require(number < len(heldout), "heldout", rule, f"{number:,} copies of train", remedy)
    if on_duplicates == "drop":
        warn(f"{text}; they are left out", said)
        left = heldout.loc[~copies].reset_index(drop=True)
        name = f"the number of held-out rows that on_duplicates='drop' leaves of {len(heldout)}"
        require(len(left) >= MIN_UNSEEN, name, f">= {MIN_UNSEEN}", len(left), remedy)
        return left
    shared = copies.mean() > max(SEVERAL * within, 1 / len(heldout))
    ask = ": are they the same records? Then on_duplicates='drop' is right" if shared else ""
    warn(f"{text}{ask}", said)
    return heldout


def _equal(some: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
    """Which rows of `some` are equal to one of `others`, missing values included."""
    both = pd.concat([some, others], ignore_index=True)
    number = both.groupby(list(both.columns), dropna=False, sort=False).ngroup().to_numpy()
    return np.isin(number[: len(some)], number[len(some) :])


def _real(vectors: Mapping[str, np.ndarray]) -> RealImages:
    """The real rows; held-out ones in random order, for files may be sorted."""
    num_train, heldout = len(vectors["train"]), vectors["heldout"]
    order = np.random.default_rng(SEED).permutation(len(heldout))
    train = Encoded(np.arange(num_train), vectors["train"])
    unseen = Encoded(num_train + order, heldout[order])
    return real_images(train, unseen, "l2", counts_only=True)


def _rate(real: RealImages, asked: float, said: list[str]) -> float:
    """The false positive rate that the held-out rows allow, which ties at 0 raise."""
    count = len(real.real_gamma)
    (rate,) = usable_rates([asked], count)
    if rate != asked:
        rates = f"{100 * asked:.3g} %; used: {100 * rate:.3g} %"
        warn(f"{count} held-out rows are too few for a false positive rate of {rates}", said)
    copies = int((real.real_gamma == 0).sum())
    if copies > allowed(count, rate):
        rate = copies / count
        warn(
            f"{100 * rate:.3g} % of the held-out rows are equal to a training row: an exact copy "
            f"is a hit at a false positive rate of {100 * rate:.3g} %, in place of "
            f"{100 * asked:.3g} %, and is by itself no evidence",
            said,
        )
    (rate,) = checked_rates(real, [rate], "l2", lambda row: f"row {row + 1}")
    return rate


def _result(
    c: Comparison,
    counts: dict[str, Any],
    vectors: Mapping[str, np.ndarray],
    tables: Tables,
    rows: Mapping[str, pd.DataFrame],
    said: list[str],
) -> TableResult:
    log.info("published ratios of distances")
    at, ratios = counts["calibrated"][0], published(rows, tables.schema, SEED)
    exact, exact_heldout, exact_excess = _exact(c)
    counts = {**_about(c, vectors, exact_excess.interval[0] > 0), **counts}
    if c.scale == 1:  # held-out hits of a smaller set are scaled to an upper bound
        warn_of_swapped(at["excess"]["interval"], "there are more held-out hits than hits", said)
    if counts["collapse"]:
        warn(f"the model {counts['collapse']['said']}", said)
    log.info("share closer to training rows than to held-out rows")
    scores = m.closer_to_train(c.queries, vectors["train"], vectors["heldout"], SEED)
    to_heldout, heldout = (x[:, 0] for x in nearest(c.queries, vectors["heldout"], "l2"))
    closest = np.where(c.train.gamma <= to_heldout, c.train.index, len(c.train.rows) + heldout)
    num_real = len(vectors["train"]) + len(vectors["heldout"])
    closer = Estimate(float(scores.mean()), m.share_interval(scores, closest, num_real))
    return TableResult(
        **_hits(c, counts),
        warnings=tuple(said),
        exact=exact,
        exact_heldout=exact_heldout,
        exact_excess=exact_excess,
        closer=closer,
        ratio=ratios.ratios["published"],
        scaled_ratio=ratios.ratios["scaled"],
        rows=_listed(c, heldout, to_heldout, scores, ratios, at["threshold"]),
        _inputs={name: tables.summary(name) for name in rows},
        _real=rows,
    )


def _hits(c: Comparison, counts: dict[str, Any]) -> dict[str, Any]:
    """The attributes that images have, too."""
    at = counts["calibrated"][0]
    excess_of = Estimate(at["excess"]["share"], tuple(at["excess"]["interval"]))
    return {
        "num_images": len(c.queries),
        "hits": at["train"]["count"],
        "heldout_hits": at["heldout"]["scaled"],
        "excess": None if counts["collapse"] else excess_of,
        "unique": at["train"]["unique"],
        "pairs": (),
        "threshold": at["threshold"],
        "false_positive_rate": at["false_positive_rate"],
        "true_rate_interval": tuple(at["true_rate_interval"]),
        "metric": "l2",
        "features": Rows.transform,
        "hit": c.train.gamma <= at["threshold"],
        "_counts": counts,
        "_hits": (),
    }


def _about(c: Comparison, vectors: Mapping[str, np.ndarray], finding: bool) -> dict[str, Any]:
    """The counts that the report reads. finding: whether the excess of exact copies is one.

    One row again and again is one draw, whose interval contains 0; the share of held-out rows that
    are equal to a training row is then its false positive rate.
    """
    alike, by_chance = _collapse(vectors, finding), float((c.real_gamma == 0).mean())
    finding = finding or (alike is not None and by_chance <= CHANCE)
    real = np.concatenate([vectors["train"], vectors["heldout"]])
    of_images = (some[:, None, None, :] for some in (vectors["generated"], real))
    return {
        "truth": "train",
        "metric": "l2",
        "transform": Rows.transform,
        "num_images": len(c.queries),
        "num_generated": len(np.unique(c.queries, axis=0)),
        "num_groups": None,
        **with_copies(alike, exact_copies(c, *of_images) if finding else {}),
    }


def _exact(c: Comparison) -> tuple[int, float, Estimate]:
    """Exact copies of training rows and of as many held-out rows, and their excess."""
    exact, heldout = c.train.gamma <= 0, c.heldout_hits(lambda gamma: gamma <= 0)
    return int(exact.sum()), len(exact) * heldout.scaled, Estimate(*excess(exact, heldout))


def _collapse(vectors: Mapping[str, np.ndarray], finding: bool) -> dict[str, Any] | None:
    """How nearly all generated rows are equal; None where those of training are, too."""

    def alike(rows: np.ndarray) -> dict[str, Any] | None:
        sizes = np.sort(np.unique(rows, axis=0, return_counts=True)[1])[::-1]
        return collapse(rows[:, None, None, :], sizes, "row")

    found = alike(vectors["generated"])
    return None if finding or alike(vectors["train"]) else found


def _listed(
    c: Comparison,
    heldout: np.ndarray,
    to_heldout: np.ndarray,
    scores: np.ndarray,
    ratios: Published,
    threshold: float,
) -> pd.DataFrame:
    """A line per generated row; rows are numbered from 1, below the header of their file.

    heldout, to_heldout: the nearest held-out row to each, and its distance.
    """
    listed = pd.DataFrame(
        {
            "row": np.arange(1, len(c.queries) + 1),
            "hit": c.train.gamma <= threshold,
            "exact": c.train.gamma <= 0,
            "train_row": c.train.rows[c.train.index] + 1,
            "distance": c.train.gamma,
            "heldout_row": heldout + 1,
            "heldout_distance": to_heldout,
            "closer_to_train": scores,
        }
    )
    for name, values in (("ratio", ratios.published), ("scaled_ratio", ratios.scaled)):
        listed[name] = pd.Series(values, index=ratios.rows)
    return listed
