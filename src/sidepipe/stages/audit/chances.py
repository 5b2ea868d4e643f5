"""The probability that each audited image is extracted, from a small sample of refined images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from sidepipe.features.pairs import distance
from sidepipe.features.search import Metric, closer, nearest

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.memorization.real import Encoded

STEPS = 10  # network evaluations of plain sampling


def hits_on(
    sample: Float32[np.ndarray, "m d"],
    sets: Mapping[str, Encoded],
    metric: Metric,
    threshold: float,
) -> Int64[np.ndarray, "n"]:
    """How many images of the sample are hits on each image of the sets, in the order of the sets.

    A hit belongs to the closest image of each set.
    """
    found = []
    for of in sets.values():
        gamma, index = nearest(sample, of.features, metric)
        hit = closer(gamma[:, 0], threshold, metric)
        found.append(np.bincount(index[hit, 0], minlength=len(of.rows)))
    return np.concatenate(found)


def with_probabilities(
    table: pd.DataFrame,
    sample: Float32[np.ndarray, "m d"],
    sets: Mapping[str, Encoded],
    metric: Metric,
    threshold: float,
    *,
    budget: int,
    levels: Sequence[int],
    seed: int,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The audit's table with `hits`, `probability` and its interval; the expected numbers.

    sample: of refined images, compared with the sets, whose images are the rows of the table.
    budget: images of the attacker.
    """
    from sidepipe.memorization.extraction import extraction, log_scores  # imports scipy

    hits, sampled = hits_on(sample, sets, metric, threshold), len(sample)
    gamma, limit = np.array(table["gamma"], np.float64), np.array([threshold])
    arrivals = np.array([table[f"arrivals_{t}"] for t in levels], np.float64)
    scores = log_scores(
        distance(gamma, metric),
        float(distance(limit, metric)[0]),
        arrivals.reshape(len(levels), len(table)),
    )
    found = extraction(scores, hits, sampled, budget, seed)
    columns = {"hits": hits, "probability": found.probability}
    columns |= {"probability_low": found.low, "probability_high": found.high}
    results: dict[str, Any] = {"budget": budget, "sampled": sampled}
    for kind, prefix in (("train", ""), ("heldout", "heldout_")):
        some = np.array(table["kind"] == kind)
        expected, interval = found.expected(some)
        results |= {f"{prefix}hits": int(hits[some].sum()), f"{prefix}expected": expected}
        results[f"{prefix}interval"] = list(interval)
    return table.assign(**columns), results
