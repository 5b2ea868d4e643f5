"""The table of prompts, and pictures of what the highest-ranked ones make."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from sidepipe.stages.detect.replays import Truth, replayed
from sidepipe.stages.detect.scores import Observed

PICTURES, PICTURE_SIZE, GALLERY = 4, 128, 60  # of a prompt; pixels a side at most; prompts
TEXT: Any = dict.fromkeys(("id", "caption", "word", "cut"), str)


def labeled(
    table: pd.DataFrame, seen: Observed, truth: Truth | None, copied_share: float
) -> pd.DataFrame:
    """With copies (of the images), nearest (row of the data) and memorized, as images say.

    Where they say nothing, memorized stays as it is, copies is 0 and nearest -1.
    """
    if truth is None:
        return table.assign(copies=0, nearest=-1)
    gamma = seen["gamma"]
    copies, known = truth.copies(gamma), ~np.isnan(gamma).any(1)
    # Rounded: 0.7 * 10 copies are 7.
    enough = copies.sum(1) >= np.ceil(round(copied_share * copies.shape[1], 9))
    memorized = table["memorized"].astype(object).where(~known, pd.Series(enough, table.index))
    return table.assign(
        copies=copies.sum(1),
        nearest=replayed(copies, gamma, seen["nearest"], truth.metric),
        memorized=memorized,
    )


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The prompts, most suspicious first."""
    return table.sort_values("d", ascending=False, kind="stable")


def save(path: Path, table: pd.DataFrame) -> None:
    """Writes a ranked CSV file, numbers to six decimals; number: the prompt's own, from 0 on."""
    ranked(table).to_csv(path, index_label="number", float_format="%.6f")


def read(path: Path) -> pd.DataFrame:
    """A table as `save` wrote it, by number; memorized is True, False or nan."""
    # A caption may well be "NA"; a label that is not known is empty.
    table = pd.read_csv(path, dtype=TEXT, keep_default_na=False, na_values={"memorized": [""]})
    return table.sort_values("number", ignore_index=True)


def pictures(images: UInt8[np.ndarray, "p n h w c"]) -> UInt8[np.ndarray, "p k h2 w2 c"]:
    """The first images of each prompt, averaged down to at most PICTURE_SIZE pixels a side."""
    images = images[:, :PICTURES]
    factor = math.ceil(max(images.shape[2:4]) / PICTURE_SIZE)
    height, width = (side // factor for side in images.shape[2:4])
    whole = images[:, :, : height * factor, : width * factor]
    split = whole.reshape(*images.shape[:2], height, factor, width, factor, -1)
    return split.mean((3, 5)).round().astype(np.uint8)


def save_gallery(
    folder: Path, table: pd.DataFrame, made: np.ndarray, data: UInt8[np.ndarray, "d h w c"]
) -> None:
    """Pictures of the highest-ranked prompts and, where it is known, the image they replay."""
    best = ranked(table).head(GALLERY)
    save(folder / "gallery.csv", best)
    np.save(folder / "gallery.npy", made[best.index])
    rows = best["nearest"].to_numpy()
    if (rows >= 0).all():
        np.save(folder / "gallery_train.npy", pictures(data[rows][:, None])[:, 0])
