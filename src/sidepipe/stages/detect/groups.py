"""Which of detect's prompts are looked at further: memorized ones, and as many others."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int64

from sidepipe.engine.stage import NoMaterial

GROUPS = ("memorized", "other")


def grouped(
    prompts: pd.DataFrame, roles: Sequence[str], most: int | None, seed: int
) -> pd.DataFrame:
    """Memorized prompts, at most so many, and as many others of these roles, by their `group`.

    Memorized by what they generated; where nothing could say so, those that the threshold flags.
    Draws are by seed, and in the prompts' order. Raises NoMaterial where none is memorized.
    """
    labeled = bool(prompts["memorized"].notna().any())
    memorized = prompts["memorized" if labeled else "flagged"].eq(True)
    memorized = (memorized & (prompts["role"] != "calibration")).to_numpy(bool)
    if not memorized.any():
        raise NoMaterial(
            "detect found no memorized prompt; remedy: train longer, plant more repeats, or bring "
            "prompts that are known to be memorized"
        )
    others = ~memorized & prompts["role"].isin(list(roles)).to_numpy()
    ours = _drawn(np.flatnonzero(memorized), most, seed)
    theirs = _drawn(np.flatnonzero(others), len(ours), seed)
    group = np.repeat(GROUPS, (len(ours), len(theirs)))
    rows = np.concatenate([ours, theirs])
    return prompts.iloc[rows].assign(group=group).reset_index(drop=True)


def _drawn(rows: Int64[np.ndarray, "n"], most: int | None, seed: int) -> Int64[np.ndarray, "_"]:
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])
