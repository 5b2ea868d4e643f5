"""The tables that an audit artifact holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from sidepipe.base.files import write_table
from sidepipe.base.images import Images
from sidepipe.features.search import Metric, closer
from sidepipe.memorization.audit import arrivals, closeness, flagged_excess
from sidepipe.memorization.conformal import discoveries, p_values
from sidepipe.memorization.inference import FEWEST, dataset_inference
from sidepipe.memorization.real import Encoded
from sidepipe.memorization.roc import measured

RATE = 0.01  # false positive rate of the contrast's true positive rate
FDR = (0.01, 0.05)  # false discovery rates of the lists of members
SINGLE = ("divergence", "contrast")  # scores of `single_scores`


def read(path: Path) -> pd.DataFrame:
    """A table as `write_table` wrote it; ids stay text, and an image may be called "NA"."""
    ids: Any = {"id": str, "subject": str}
    empty = {"p_value": [""], "invmm": [""]}
    return pd.read_csv(path, dtype=ids, keep_default_na=False, na_values=empty)


def scores(
    sets: Mapping[str, Encoded],
    found: Mapping[str, Mapping[str, np.ndarray]],
    metric: Metric,
    threshold: float,
    levels: Sequence[int],
    ids: np.ndarray,
    subjects: np.ndarray | None = None,
) -> pd.DataFrame:
    """A row per image of `train` and of `heldout`, in the order of the sets.

    found: what `returns` and `single_scores` gave for each set. subjects: of each image of the
    data, such as its patient, where several images show one. p_value, listed_*: of training images
    alone, by gamma; they tell that an image was trained on, not that it can be extracted.
    """
    control, parts = closeness(found["heldout"]["gamma"], metric), []
    for name, images in sets.items():
        of = found[name]
        columns: dict[str, Any] = {
            "index": images.rows,
            "id": ids[images.rows],
            "kind": name,
            "flagged": closer(of["gamma"], threshold, metric).astype(int),
            "gamma": of["gamma"],
            "error": of["error"],
        }
        if subjects is not None:
            columns["subject"] = subjects[images.rows]
        columns |= {score: of[score] for score in SINGLE if score in of}
        reached = arrivals(of["ends"], len(images.rows))
        for level, t in enumerate(levels):
            columns[f"recall_{t}"] = of["recall"][:, level]
            columns[f"arrivals_{t}"] = reached[level]
        p = p_values(closeness(of["gamma"], metric), control)
        is_train = name == "train"
        columns["p_value"] = p if is_train else np.nan
        for rate in FDR:
            columns[f"listed_{rate:g}"] = discoveries(p, rate).astype(int) if is_train else 0
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def counts(table: pd.DataFrame) -> dict[str, Any]:
    """Images and flags of both kinds, their excess, and the lists of members.

    contrast: how well it separates training from held-out images; None for a model without a base.
    """
    is_train, flagged = np.array(table["kind"] == "train"), np.array(table["flagged"]) == 1
    share, interval = flagged_excess(flagged[is_train], flagged[~is_train])
    members = None
    if "contrast" in table:
        members = measured(table["contrast"].to_numpy(np.float64), is_train, RATE)
    return {
        "num_train": int(is_train.sum()),
        "num_heldout": int((~is_train).sum()),
        "flagged": int(flagged[is_train].sum()),
        "heldout_flagged": int(flagged[~is_train].sum()),
        "excess": {"share": share, "interval": list(interval)},
        "contrast": members,
        "listed": {f"{rate:g}": int(np.sum(table[f"listed_{rate:g}"])) for rate in FDR},
    }


def inference(table: pd.DataFrame, seed: int) -> dict[str, Any] | None:
    """Dataset inference on the training images as suspects; None where there are too few.

    The features are the scores that an image has by itself: arrivals depend on the other images.
    Images of one subject are not independent. Where `table` has subjects, each counts once, with
    the mean of its images, whose score is also the mean of their scores, for these are linear.
    """
    own = ("gamma", "error", *SINGLE)
    names = [name for name in table if name in own or name.startswith("recall_")]
    unit = "subject" if "subject" in table else "image"
    if unit == "subject":
        means: Any = table.groupby(["kind", "subject"], as_index=False)[names].mean()
        table = means
    kinds = [table.loc[table["kind"] == kind] for kind in ("train", "heldout")]
    if min(map(len, kinds)) < FEWEST:
        return None
    suspects, control = ({n: of[n].to_numpy(np.float64) for n in names} for of in kinds)
    return {"unit": unit, **dataset_inference(suspects, control, seed)}


def risk(table: pd.DataFrame, metric: Metric) -> dict[str, Float64[np.ndarray, "n"]]:
    """Each score of the training images by its column, higher for images at more risk."""
    table = table.loc[table["kind"] == "train"]
    found = {"gamma": closeness(table["gamma"].to_numpy(), metric)}
    lower = [name for name in ("error", "divergence") if name in table]
    found |= {name: -table[name].to_numpy(np.float64) for name in lower}
    others = ("contrast", "recall_", "arrivals_")
    names = [name for name in table if name == "probability" or name.startswith(others)]
    return found | {name: table[name].to_numpy(np.float64) for name in names}


def save_gallery(
    folder: Path,
    table: pd.DataFrame,
    data: Images,
    refined: Images,
    metric: Metric,
    count: int,
) -> None:
    """The training images that come back most closely, each with its refined image."""
    train = table.loc[table["kind"] == "train"]
    closest = np.argsort(-closeness(np.array(train["gamma"]), metric), kind="stable")[:count]
    best = train.iloc[closest]
    pairs = np.stack([data[best["index"].to_numpy()], refined[closest]], axis=1)
    np.save(folder / "gallery.npy", pairs)
    write_table(folder / "gallery.csv", best)
