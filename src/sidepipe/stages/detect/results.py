"""The results of detection as plain numbers: AUC and rates of each signal, and its threshold."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from sidepipe.memorization.rates import rate as share
from sidepipe.memorization.roc import measured, roc
from sidepipe.memorization.thresholds import threshold_above
from sidepipe.stages.detect.scores import Observed, Variant

log = logging.getLogger(__name__)

BINS = 40


def memorized_of(table: pd.DataFrame) -> Bool[np.ndarray, "p"]:
    """Which prompts are memorized, as far as known."""
    return (table["memorized"] == True).to_numpy(bool)  # noqa: E712 - nan is not


def calibrates(table: pd.DataFrame) -> Bool[np.ndarray, "p"]:
    """Calibration prompts, without memorized ones."""
    return (table["role"] == "calibration").to_numpy(bool) & ~memorized_of(table)


def tested(table: pd.DataFrame) -> Bool[np.ndarray, "p"]:
    """Prompts with a label, except those of calibration: detection is tested on them."""
    return (table["role"] != "calibration").to_numpy(bool) & table["memorized"].notna().to_numpy()


def of_variant(
    variant: Variant, scores: Float[np.ndarray, "p"], table: pd.DataFrame, rate: float
) -> dict[str, Any]:
    """A row of the results: the variant, its cost, and how well it separates.

    AUC and the true positive rate at `rate`, of the ROC of the tested prompts, are None where these
    are all memorized or none is. The threshold depends on calibration prompts alone; the row has
    the shares of memorized and of other prompts above it.
    """
    threshold = threshold_above(scores[calibrates(table)], rate)
    test, memorized = tested(table), memorized_of(table)
    found: dict[str, Any] = dict.fromkeys(("auc", "auc_interval", "tpr", "tpr_interval"))
    if memorized[test].any() and not memorized[test].all():
        found |= measured(scores[test], memorized[test], rate)
    return {
        "signal": variant.signal,
        "generations": variant.generations,
        "steps": variant.steps,
        "evaluations_per_image": variant.evaluations,
        "evaluations_per_prompt": variant.evaluations * variant.generations,
        **found,
        "threshold": threshold,
        "flagged_memorized": share(scores[test & memorized] > threshold),
        "flagged_others": share(scores[test & ~memorized] > threshold),
    }


def distributions(scores: Float[np.ndarray, "p"], table: pd.DataFrame) -> dict[str, Any]:
    """Histograms of memorized, other and calibration prompts, and of prompts without a label.

    The points of the ROC are added where both kinds exist. edges: BINS + 1, the same for all.
    """
    test, memorized = tested(table), memorized_of(table)
    kinds = {
        "memorized": test & memorized,
        "others": test & ~memorized,
        "calibration": calibrates(table),
        "unlabeled": table["memorized"].isna().to_numpy() & (table["role"] != "calibration"),
    }
    edges = np.histogram_bin_edges(scores, BINS)
    found: dict[str, Any] = {"edges": edges.tolist()}
    for name, some in kinds.items():
        found[name] = np.histogram(scores[np.asarray(some, bool)], edges)[0].tolist()
    if any(found["memorized"]) and any(found["others"]):
        curve = roc(scores[test], memorized[test], np.ones(int(test.sum())))
        found["roc"] = {"fpr": curve.fpr.tolist(), "tpr": curve.tpr.tolist()}
    return found


def counts(table: pd.DataFrame) -> dict[str, Any]:
    """Prompts per role, and the memorized ones among them, by role and by repeats."""
    known, memorized = table["memorized"].notna().to_numpy(), memorized_of(table)
    by: dict[str, Any] = {}
    for name in ("role", "repeats"):
        values = table[name].to_numpy()
        by[name] = [
            {name: value, **share(memorized[known & (values == value)])}
            for value in np.unique(values[known]).tolist()
        ]
    return {"num_prompts": table["role"].value_counts().to_dict(), "memorized_by": by}


def calibration_norms(
    norms: Float[np.ndarray, "p n t"], table: pd.DataFrame, timesteps: Sequence[int], rate: float
) -> dict[str, Any]:
    """|| D_t || of calibration prompts' images at each step: median and 1 - rate quantile."""
    some = norms[calibrates(table)].reshape(-1, norms.shape[2]).astype(np.float64)
    return {
        "timesteps": list(timesteps),
        "median": np.median(some, axis=0).tolist(),
        "upper": np.quantile(some, 1 - rate, axis=0).tolist(),
    }


def scored(
    table: pd.DataFrame,
    seen: Observed,
    every: Sequence[Variant],
    decision: Variant,
    rate: float,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table with d, flagged and a column per signal, and the results' part about signals.

    decision: the variant of d; each column uses as many generations, and || D_t || as many steps.
    Raises ValueError where no calibration prompt is left for a threshold.
    """
    if not calibrates(table).any():
        raise ValueError(
            "all calibration prompts count as memorized and give no threshold: the model replays "
            "images for prompts it never saw; remedy: lower detect.label_false_positive_rate"
        )
    scores = {variant: variant.score(seen) for variant in every}
    rows = {v: of_variant(v, score, table, rate) for v, score in scores.items()}
    d, decided = scores[decision], rows[decision]
    shown = {
        v.signal: score
        for v, score in scores.items()
        if v.generations == decision.generations and (v.signal != decision.signal or v == decision)
    }
    results = {
        **counts(table),
        "signals": list(rows.values()),
        "decision": decided,
        "distributions": {name: distributions(score, table) for name, score in shown.items()},
    }
    return table.assign(d=d, flagged=d > decided["threshold"], **shown), results


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """The summary, after writing it to the log."""
    decision, by_role = results["decision"], results["memorized_by"]["role"]
    for row in by_role:
        log.info("%(role)s: %(count)d of %(of)d prompts are memorized", row)
    if decision["auc"] is not None:
        log.info(
            "|| D_t || of %d images and %d steps: AUC %.3f, true positive rate %.3f at %g %% false",
            *(decision[name] for name in ("generations", "steps", "auc", "tpr")),
            100 * results["false_positive_rate"],
        )
    known = sum(row["count"] for row in by_role)
    names = ("auc", "tpr", "threshold")
    return {"num_memorized": known, **{name: decision[name] for name in names}}
