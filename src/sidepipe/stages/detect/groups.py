"""The prompts of detect that later stages use: memorized ones, and as many others."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int64

from sidepipe.engine.stage import NoMaterial

GROUPS = ("memorized", "other")


def grouped(
    prompts: pd.DataFrame, roles: Sequence[str], most: int | None, seed: int
) -> pd.DataFrame:
    """At most `most` memorized prompts, and as many others of these roles, by their `group`.

    Memorized prompts are those whose images are copies; where no truth is known, those that the
    threshold flags. The seed decides the draw, which keeps the prompts' order. Raises NoMaterial
    where no prompt is memorized.
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


def halves_of_images(memorized: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two halves of memorized prompts, those that replay one image in the same half.

    Raises NoMaterial where all replay one image. A prompt whose image is not known has its own.
    """
    image = memorized["nearest"].where(memorized["nearest"] >= 0, -1 - memorized["number"])
    images = np.random.default_rng(seed).permutation(np.unique(image))
    if len(images) < 2:
        raise NoMaterial(
            "the method needs memorized prompts of two images: it uses one half, and the other "
            "tests it; remedy: train longer, or bring more memorized prompts"
        )
    ours = image.isin(images[: -(-len(images) // 2)].tolist())
    return memorized.loc[ours], memorized.loc[~ours]


def _drawn(rows: Int64[np.ndarray, "n"], most: int | None, seed: int) -> Int64[np.ndarray, "_"]:
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])
