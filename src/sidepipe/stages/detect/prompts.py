"""The table of prompts, from the data's pairs or from files, with the role of each.

planted, train: captions of training pairs, with and without a planted word. test, calibration:
captions of pairs outside the training set; thresholds are set on the latter alone. All prompts of a
file are test prompts, and those of a second file are calibration. No caption is there twice.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64

from sidepipe.models.text.prompts import Prompt, count_images, present_images

log = logging.getLogger(__name__)

Rows = Int64[np.ndarray, "n"]

ROLES = ("planted", "train", "test", "calibration")


def of_data(
    captions: pd.DataFrame,
    ids: np.ndarray,
    train: Rows,
    unseen: Rows,
    num_train: int,
    num_heldout: int,
    seed: int,
) -> pd.DataFrame:
    """A row per prompt: id, caption, role, row of the data, repeats, word and memorized (nan).

    captions: of all images, from `load_captions`. It has all planted pairs of the training images,
    up to num_train of the others, and up to num_heldout of the unseen ones, half of them for
    calibration.
    """
    chosen = _chosen(captions, train, unseen, num_train, num_heldout, seed)
    rows = np.concatenate([chosen[role] for role in ROLES])
    table = captions.loc[rows, ["caption", "repeats", "word"]].reset_index(drop=True)
    table.insert(0, "id", ids[rows])
    table.insert(2, "role", [role for role in ROLES for _ in chosen[role]])
    table.insert(3, "row", rows)
    # Unseen pairs were not trained on, whatever their column repeats.
    seen = table["role"].isin(["planted", "train"])
    return table.assign(repeats=table["repeats"].where(seen, 0), memorized=np.nan)


def _chosen(
    captions: pd.DataFrame, train: Rows, unseen: Rows, num_train: int, num_heldout: int, seed: int
) -> dict[str, Rows]:
    """The rows per role."""
    rng = np.random.default_rng(seed)
    of_train = captions.loc[np.sort(train)].drop_duplicates("caption")
    of_unseen = captions.loc[np.sort(unseen)].drop_duplicates("caption")
    of_unseen = of_unseen[~of_unseen["caption"].isin(of_train["caption"])]
    planted = (of_train["word"] != "").to_numpy()
    rows, others = of_train.index.to_numpy(np.int64), of_unseen.index.to_numpy(np.int64)
    few = rng.permutation(rows[~planted])[:num_train]
    heldout = rng.permutation(others)[:num_heldout]
    half = len(heldout) // 2
    roles = (rows[planted], few, heldout[half:], heldout[:half])
    return dict(zip(ROLES, roles, strict=True))


def of_files(prompts: Sequence[Prompt], calibration: Sequence[Prompt]) -> pd.DataFrame:
    """The table of `of_data` for files; row is -1, repeats 0 and word "", which are unknown.

    memorized is the value in the file, nan where there is none.
    """
    rows = [
        [prompt.id, prompt.caption, role, -1, 0, "", prompt.memorized]
        for role, some in (("test", prompts), ("calibration", calibration))
        for prompt in some
    ]
    columns = ["id", "caption", "role", "row", "repeats", "word", "memorized"]
    table = pd.DataFrame(rows, columns=pd.Index(columns))
    table["memorized"] = [np.nan if known is None else known for known in table["memorized"]]
    once = table.drop_duplicates("caption", ignore_index=True)
    if len(once) < len(table):
        log.warning("left out %d prompts as duplicates", len(table) - len(once))
    return once


def own_files(table: pd.DataFrame, prompts: Sequence[Prompt], folder: Path) -> list[list[Path]]:
    """The training images in `folder` of each prompt in the table of `of_files`."""
    present = present_images(prompts, folder)
    log.info("training images of the prompts: %s", count_images(present))
    files = dict(zip(present["id"], present["files"], strict=True))
    return [
        [folder / file for file in files[key]] if role == "test" else []
        for key, role in zip(table["id"], table["role"], strict=True)
    ]
