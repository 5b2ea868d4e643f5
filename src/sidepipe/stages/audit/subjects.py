"""Subjects of an audit, such as patients: all images of one are one finding."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sidepipe.base.files import write_table
from sidepipe.features.search import Metric
from sidepipe.memorization.audit import closeness
from sidepipe.memorization.conformal import discoveries, p_values
from sidepipe.stages.audit.tables import FDR


def save_subjects(folder: Path, table: pd.DataFrame, metric: Metric) -> dict[str, Any]:
    """Writes subjects.csv; returns the counts of subjects."""
    found = by_subject(table, metric)
    write_table(folder / "subjects.csv", found)
    return subject_counts(found)


def by_subject(table: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """A row per subject: its images, how many are flagged, and gamma of the closest.

    p_value, listed_*: of subjects of the training images alone, by the closest image of each,
    against those of the held-out subjects; all images of a subject are one finding. probability:
    that at least one of its images is extracted, where `table` has the probability of each.
    """
    closest = table.assign(close=closeness(np.array(table["gamma"]), metric))
    ordered: Any = closest.sort_values("close", ascending=False, kind="stable")
    of = ordered.groupby(["kind", "subject"], sort=False)
    found = of.agg(images=("id", "size"), flagged=("flagged", "sum"), gamma=("gamma", "first"))
    if "probability" in table:
        found["probability"] = (
            1 - (1 - ordered["probability"]).groupby([ordered["kind"], ordered["subject"]]).prod()
        )
    found = found.reset_index()
    score, is_train = (
        closeness(np.array(found["gamma"]), metric),
        np.array(found["kind"] == "train"),
    )
    p = p_values(score[is_train], score[~is_train])
    found.loc[is_train, "p_value"] = p
    for rate in FDR:
        found[f"listed_{rate:g}"] = 0
        found.loc[is_train, f"listed_{rate:g}"] = discoveries(p, rate).astype(int)
    return found


def subject_counts(subjects: pd.DataFrame) -> dict[str, Any]:
    """Subjects of both kinds, those with a flagged image, and the lists of subjects."""
    is_train, flagged = (np.array(subjects[name]) for name in ("kind", "flagged"))
    is_train, flagged = is_train == "train", flagged > 0
    return {
        "num_train": int(is_train.sum()),
        "num_heldout": int((~is_train).sum()),
        "flagged": int((is_train & flagged).sum()),
        "heldout_flagged": int((~is_train & flagged).sum()),
        "listed": {f"{rate:g}": int(np.sum(subjects[f"listed_{rate:g}"])) for rate in FDR},
    }
