"""The charts of an evaluation with truth for tracking, with keys for dashboards."""

from collections.abc import Mapping, Sequence
from typing import Any

# One point per run, over the number of training images.
TRAIN_IMAGES = "evaluate/num_train_images"
HITS, HIT_RATE = "evaluate/hits", "evaluate/hit_rate"
HELDOUT_HITS, UNIQUE = "evaluate/heldout_hits", "evaluate/unique"
EXCESS, EXCESS_LOW = "evaluate/excess", "evaluate/excess_low"
EXCESS_HIGH = "evaluate/excess_high"
AT_LEAST, COVERAGE = "evaluate/at_least", "evaluate/coverage"
EVALUATIONS = "evaluate/network_evaluations"
SYNTHETIC_EVALUATIONS = "evaluate/synthetic_evaluations"
# Rarefaction, over the number of generated images; the curve, over gamma.
RAREFACTION_IMAGES = "evaluate/rarefaction/num_images"
RAREFACTION_UNIQUE = "evaluate/rarefaction/unique"
RAREFACTION_LOW, RAREFACTION_HIGH = "evaluate/rarefaction/low", "evaluate/rarefaction/high"
THRESHOLD = "evaluate/curve/threshold"
CURVE_AMS_TRAIN, CURVE_AMS_HELDOUT = "evaluate/curve/ams_train", "evaluate/curve/ams_heldout"
CURVE_EXCESS = "evaluate/curve/excess"


def band_key(band: str, score: str) -> str:
    """The key of a band's `score`, "ams" or "ums", on training images."""
    return f"evaluate/{score}_{band}"


def curves(results: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """The headline as a point, rarefaction, and scores by threshold, each by its x axis."""
    found, curve = results["rarefaction"], results["curve"]
    return {
        TRAIN_IMAGES: [headline(results)],
        RAREFACTION_IMAGES: _rows(
            {
                RAREFACTION_IMAGES: found["num_images"],
                RAREFACTION_UNIQUE: found["unique"],
                RAREFACTION_LOW: found["low"],
                RAREFACTION_HIGH: found["high"],
            }
        ),
        THRESHOLD: _rows(
            {
                THRESHOLD: curve["thresholds"],
                CURVE_AMS_TRAIN: curve["train"]["ams"],
                CURVE_AMS_HELDOUT: curve["heldout"]["ams"],
                CURVE_EXCESS: curve["excess"]["share"],
            }
        ),
    }


def headline(results: Mapping[str, Any]) -> dict[str, float]:
    """One point: hits at the first false positive rate, the bands, the bound and the cost."""
    at, found, cost = results["calibrated"][0], results["rarefaction"], results["cost"]
    low, high = at["excess"]["interval"]
    point = {
        TRAIN_IMAGES: results["num_reference"]["train"],
        HITS: at["train"]["count"],
        HIT_RATE: at["train"]["ams"],
        HELDOUT_HITS: at["heldout"]["scaled"],
        UNIQUE: at["train"]["unique"],
        EXCESS: at["excess"]["share"],
        EXCESS_LOW: low,
        EXCESS_HIGH: high,
        **{
            band_key(name, score): band["train"][score]
            for name, band in results["bands"].items()
            for score in ("ams", "ums")
        },
        AT_LEAST: found["at_least"],
        COVERAGE: found["coverage"],
        EVALUATIONS: cost["network_evaluations"],
        SYNTHETIC_EVALUATIONS: cost["synthetic_evaluations"],
    }
    return {name: value for name, value in point.items() if value is not None}


def _rows(columns: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
