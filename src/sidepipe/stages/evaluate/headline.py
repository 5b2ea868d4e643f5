"""The summary of an evaluate artifact, and its lines in the log."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


def headline(results: Mapping[str, Any]) -> dict[str, Any]:
    """The summary, after writing it to the log."""
    if results["collapse"]:
        log.warning("the model %s", results["collapse"]["said"])
    if results["truth"] == "none":
        return {"candidates": results["blind"]["num_candidates"], **results["blind"]}
    at, sizes, count = results["calibrated"][0], results["num_reference"], results["num_images"]
    hits, heldout = at["train"], at["heldout"]
    share, ends = at["excess"]["share"], at["excess"]["interval"]
    low, high = (100 * end for end in ends)
    log.info(
        "excess at %g %% held-out false positives: %.0f of %d images, %.2f %% (95 %% interval %.2f "
        "to %.2f %%)",
        *(100 * at["false_positive_rate"], count * share, count, 100 * share, low, high),
    )
    log.info(
        "hits: %d of %d generated images hit one of %d training images, %d different ones",
        *(hits["count"], count, sizes["train"], hits["unique"]),
    )
    if (copies := results.get("exact_copies", {})).get("train_alone"):
        log.info(
            "exact copies: %d of %d generated images, of %d different training images",
            *(copies["train_alone"], count, copies["different"]),
        )
    log.info(
        "held-out hits: %.3g of %d generated images hit one of %d held-out images "
        "(held-out sets: %d, with %d to %d hits)%s",
        *(heldout["count"], count, sizes["heldout"], len(heldout["sets"])),
        *(min(heldout["sets"]), max(heldout["sets"]), _scaled_in_words(results)),
    )
    return {
        "excess": share,
        "excess_low": ends[0],
        "excess_high": ends[1],
        "hits": hits["count"],
        "heldout_hits": heldout["count"],
        "unique": hits["unique"],
        "threshold": at["threshold"],
        "ams_high": results["bands"]["high"]["train"]["ams"],
        "ums_high": results["bands"]["high"]["train"]["ums"],
    }


def _scaled_in_words(results: Mapping[str, Any]) -> str:
    """The scaled held-out hits, where fewer images are held out than trained on."""
    heldout, scale = results["calibrated"][0]["heldout"], results["control"]["scale"]
    if scale == 1:
        return ""
    sizes = results["num_reference"]
    return (
        f"; scaled to {sizes['train']} images, {scale:.3g} times as many: {heldout['scaled']:.3g}"
    )
