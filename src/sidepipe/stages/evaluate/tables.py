"""The tables and pictures that an evaluate artifact holds beside its results."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64, UInt8

from sidepipe.memorization.blind import Candidates
from sidepipe.memorization.comparison import Comparison
from sidepipe.memorization.results import Hits


def save(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV file, numbers to six decimals."""
    table.to_csv(path, index=False, float_format="%.6f")


def read(path: Path) -> pd.DataFrame:
    """A table as `save` wrote it; ids stay text, whatever they look like."""
    ids: Any = {"train_id": str, "heldout_id": str}
    # An image may be called "NA".
    return pd.read_csv(path, dtype=ids, keep_default_na=False)


def nearest_table(
    c: Comparison,
    ids: np.ndarray,
    targets: Int64[np.ndarray, "n"],
    hits: Hits,
) -> pd.DataFrame:
    """A row per generated image; indices are places in the data's array.

    train_group: the training image that stands for the nearest one and its duplicates.
    """
    columns: dict[str, Any] = {
        "index": np.arange(len(targets)),
        "target": targets,
        "hit": hits.hit.astype(int),
        "new": hits.new.astype(int),
        "train_group": c.train.rows[hits.group[c.train.index]],
    }
    for name, reference in (("train", c.train), ("heldout", c.heldout)):
        rows = reference.rows[reference.index]
        columns |= {
            f"{name}_index": rows,
            f"{name}_id": ids[rows],
            f"{name}_gamma": reference.gamma,
        }
    return pd.DataFrame(columns)


def save_gallery(
    folder: Path,
    table: pd.DataFrame,
    closest: Int64[np.ndarray, "p"],
    generated: UInt8[np.ndarray, "n h w c"],
    data: UInt8[np.ndarray, "m h w c"],
) -> None:
    """The rows of `closest_pairs` with the three pictures of each."""
    best = table.iloc[closest]
    sources = ((generated, "index"), (data, "train_index"), (data, "heldout_index"))
    triples = np.stack([images[best[column].to_numpy()] for images, column in sources], axis=1)
    np.save(folder / "gallery.npy", triples)
    save(folder / "gallery.csv", best)


def save_candidates(
    folder: Path,
    ranking: Candidates,
    generated: UInt8[np.ndarray, "n h w c"],
    count: int,
    table: pd.DataFrame | None,
) -> None:
    """The best bets of the blind ranking; table: with truth beside them where it is known."""
    best = ranking.index[:count]
    columns: dict[str, Any] = {
        "rank": np.arange(1, len(best) + 1),
        "index": best,
        "size": ranking.size[:count],
        "tightness": ranking.tightness[:count],
    }
    if table is not None:
        known = ("hit", "train_id", "train_gamma")
        columns |= {name: table[name].to_numpy()[best] for name in known}
    save(folder / "candidates.csv", pd.DataFrame(columns))
    np.save(folder / "candidates.npy", generated[best])


def save_labels(
    folder: Path,
    targets: Int64[np.ndarray, "n"],
    cohesion: Float[np.ndarray, "k"],
    table: pd.DataFrame | None,
) -> None:
    """What each label that was aimed at gave: images, and with truth hits, different and new ones.

    cohesion: of every label.
    """
    labels, images = np.unique(targets[targets >= 0], return_counts=True)
    columns: dict[str, Any] = {"label": labels, "cohesion": cohesion[labels], "images": images}
    if table is not None:
        hit, new = table["hit"].to_numpy() == 1, table["new"].to_numpy() == 1
        train = table["train_group"].to_numpy()
        of = [(targets == label) & hit for label in labels]
        columns["hits"] = [int(some.sum()) for some in of]
        columns["unique"] = [len(np.unique(train[some])) for some in of]
        columns["new"] = [int((some & new).sum()) for some in of]
    save(folder / "labels.csv", pd.DataFrame(columns))
