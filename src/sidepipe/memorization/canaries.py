"""Exposure of canaries, and extraction and exposure by repeats, as plain numbers."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sidepipe.memorization.rates import mean, rate


def exposure(own: float, others: Float[np.ndarray, "c"]) -> tuple[int, float]:
    """The rank of a canary's loss among candidates' losses, and its exposure in bits.

    log2 of the number of candidates, the canary among them, minus log2 of the rank (Carlini et al.,
    2019, The Secret Sharer). Ties rank the canary last.
    """
    rank = 1 + int((others <= own).sum())
    return rank, float(np.log2(len(others) + 1) - np.log2(rank))


def exposure_by_chance(num_candidates: int) -> float:
    """The mean exposure where every rank is equally likely."""
    ranks = np.arange(1, num_candidates + 1)
    return float(np.log2(num_candidates) - np.log2(ranks).mean())


def by_repeats(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per number of repeats, controls (0) first.

    table: repeats, share (of images that are copies of the canary) and exposure of each canary.
    extracted: canaries of which at least one image is a copy.
    """
    rows = []
    for repeats, some in table.groupby("repeats"):
        share, bits = (some[name].to_numpy(np.float64) for name in ("share", "exposure"))
        found = {"extracted": rate(share > 0), "images": mean(share), "exposure": mean(bits)}
        rows.append({"repeats": int(str(repeats)), **found})
    return rows


def leaks_from(rows: list[dict[str, Any]]) -> int | None:
    """The fewest repeats whose extraction and that of controls have non-overlapping intervals."""
    [control] = [row for row in rows if row["repeats"] == 0]
    most = control["extracted"]["interval"][1]
    leaking = [row["repeats"] for row in rows if row["extracted"]["interval"][0] > most]
    return min(leaking, default=None)
