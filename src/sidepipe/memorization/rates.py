"""Shares and means with their 95 % intervals, and rank correlations, as plain numbers."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from sidepipe.memorization.thresholds import rate_interval

DRAWS = 2000
FEWEST = 3  # pairs for a rank correlation


def rate(hits: Bool[np.ndarray, "n"]) -> dict[str, Any]:
    """count, of, share and its exact 95 % interval (Clopper and Pearson, 1934); None of nothing."""
    count, of = int(hits.sum()), len(hits)
    if of == 0:
        return {"count": 0, "of": 0, "share": None, "interval": None}
    interval = list(rate_interval(count, of))
    return {"count": count, "of": of, "share": count / of, "interval": interval}


def mean(values: Float[np.ndarray, "n"], seed: int = 0) -> dict[str, Any]:
    """of, mean and its 95 % percentile bootstrap interval; None of nothing. nan is left out."""
    values = values[~np.isnan(values)].astype(np.float64)
    if len(values) == 0:
        return {"of": 0, "mean": None, "interval": None}
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    interval = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return {"of": len(values), "mean": float(values.mean()), "interval": interval.tolist()}


def cluster_mean(
    values: Float[np.ndarray, "n"], clusters: Int64[np.ndarray, "n"], seed: int = 0
) -> dict[str, Any]:
    """The mean over clusters of their mean, so that each counts once, as `mean`.

    The bootstrap draws clusters: values of one cluster, such as prompts of one image, are not
    independent. of: the number of clusters.
    """
    there = ~np.isnan(values)
    _, cluster = np.unique(clusters[there], return_inverse=True)
    sums = np.bincount(cluster, weights=values[there])
    return mean(sums / np.bincount(cluster), seed)


def rank_correlation(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float | None:
    """Spearman's rank correlation; None of fewer than three pairs, or where x or y is constant."""
    from scipy.stats import spearmanr  # slow to import

    if len(x) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found: Any = spearmanr(x, y)
    return float(found.statistic)
