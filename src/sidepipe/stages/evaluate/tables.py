"""The tables and pictures of an evaluate artifact: saving and loading them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64

from sidepipe.base.files import write_table
from sidepipe.base.images import Images
from sidepipe.stages.data.stage import load_encoding, load_table

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.memorization.blind import Candidates
    from sidepipe.memorization.comparison import Comparison
    from sidepipe.memorization.real import RealImages
    from sidepipe.memorization.results import Hits


def read(path: Path) -> pd.DataFrame:
    """A table from `write_table`; ids stay text, even if they are numbers."""
    import pandas as pd

    ids: Any = {"train_id": str, "heldout_id": str}
    # The id of an image may be "NA".
    return pd.read_csv(path, dtype=ids, keep_default_na=False)


def nearest_table(
    c: Comparison,
    ids: np.ndarray,
    targets: Int64[np.ndarray, "n"],
    hits: Hits,
) -> pd.DataFrame:
    """A row per generated image, with indices into the data's array.

    train_group: the training image that represents the nearest one and its duplicates.
    """
    import pandas as pd

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


def of_rows(generated: Images, real: RealImages, data: Path) -> dict[str, Any]:
    """`rows`: the use of generated rows of a table, next to real rows; nothing for images."""
    if generated.dtype == np.uint8:
        return {}
    from sidepipe.memorization.table_utility import measured

    encoding, table = load_encoding(data), load_table(data)
    train, heldout = (table.iloc[part.rows] for part in (real.train, real.unseen))
    rows = encoding.decode(generated)
    return {"rows": measured(rows, train, heldout, encoding)}


def save_gallery(
    folder: Path,
    table: pd.DataFrame,
    closest: Int64[np.ndarray, "p"],
    generated: Images,
    data: Images,
) -> None:
    """Saves the rows of `closest_pairs` with the three pictures of each."""
    best = table.iloc[closest]
    sources = ((generated, "index"), (data, "train_index"), (data, "heldout_index"))
    triples = np.stack([images[best[column].to_numpy()] for images, column in sources], axis=1)
    np.save(folder / "gallery.npy", triples)
    write_table(folder / "gallery.csv", best)


def save_candidates(
    folder: Path,
    ranking: Candidates,
    generated: Images,
    count: int,
    table: pd.DataFrame | None,
) -> None:
    """Saves the best candidates of the blind ranking, with the truth in `table` if known."""
    import pandas as pd

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
    write_table(folder / "candidates.csv", pd.DataFrame(columns))
    np.save(folder / "candidates.npy", generated[best])


def save_labels(
    folder: Path,
    targets: Int64[np.ndarray, "n"],
    cohesion: Float[np.ndarray, "k"],
    table: pd.DataFrame | None,
) -> None:
    """Saves the images of each target label, and with truth the hits, different and new ones.

    cohesion: of every label.
    """
    import pandas as pd

    labels, images = np.unique(targets[targets >= 0], return_counts=True)
    columns: dict[str, Any] = {"label": labels, "cohesion": cohesion[labels], "images": images}
    if table is not None:
        hit, new = table["hit"].to_numpy() == 1, table["new"].to_numpy() == 1
        train = table["train_group"].to_numpy()
        of = [(targets == label) & hit for label in labels]
        columns["hits"] = [int(some.sum()) for some in of]
        columns["unique"] = [len(np.unique(train[some])) for some in of]
        columns["new"] = [int((some & new).sum()) for some in of]
    write_table(folder / "labels.csv", pd.DataFrame(columns))


def load_nearest(folder: Path) -> pd.DataFrame:
    """A row per generated image: its target, nearest images, and whether it is a hit, and new."""
    return read(folder / "nearest.csv")


def load_gallery(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """uint8 (n, 3, h, w, c): generated, nearest training, nearest held-out; and their rows."""
    return np.load(folder / "gallery.npy"), _rows(folder / "gallery.csv")


def load_candidates(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """uint8 (n, h, w, c): the candidates of the blind ranking, best first; and their rows."""
    return np.load(folder / "candidates.npy"), _rows(folder / "candidates.csv")


def load_labels(folder: Path) -> list[dict[str, Any]]:
    """The rows of `save_labels`; [] for an attack without targets."""
    path = folder / "labels.csv"
    return _rows(path) if path.exists() else []


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: Any = read(path).to_dict("records")
    return rows
