"""The parts of results.json, each computed from one `Comparison`; plain numbers, no files."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from sidepipe.evaluate import memorization as m
from sidepipe.evaluate.calibration import clustered_bootstrap, excess
from sidepipe.evaluate.comparison import AROUND, Compared, Comparison
from sidepipe.evaluate.divergence import (
    default_bandwidth,
    kde_log_density,
    memorization_divergence,
)
from sidepipe.evaluate.quality import (
    MAX_DIMENSIONS,
    fid,
    kid,
    mifid,
    nearest_cosine_distance,
)
from sidepipe.evaluate.rarefaction import rarefaction
from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.search import covered, nearest
from sidepipe.features.thresholds import rate_interval, threshold_at_false_positive_rate

log = logging.getLogger(__name__)

# Every pair with a generated image is looked at eight times; the error is already small.
DIVERGENCE_IMAGES = 2000

Bands = Mapping[str, m.Band]


def measured(
    c: Comparison, rates: Sequence[float], ends: Bands, thresholds: Sequence[float]
) -> tuple[dict[str, Any], Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Everything that needs truth; which images are hits, and which of these are new.

    rates: false positive rates, the first of which defines a hit. thresholds: of the curve.
    """
    at = calibrated(c, rates)
    threshold = at[0]["threshold"]
    hit = m.closer(c.train.gamma, threshold, c.metric)
    novelty, new = new_hits(c, hit, threshold)
    found = {
        "num_synthetic": len(c.synthetic_gamma),
        "num_reference": {name: len(some.rows) for name, some in c.sets.items()},
        "calibrated": at,
        "bands": bands(c, ends),
        "curve": curve(c, thresholds),
        "tail_percentile": {
            name: m.tail_percentile(some.gamma, c.metric) for name, some in c.sets.items()
        },
        "rules": rules(c, threshold),
        "distance_gap": distance_gap(c),
        "quality": quality(c),
        "divergence": divergence(c),
        "rarefaction": extractable(c, hit),
        "novelty": novelty,
    }
    return found, hit, new


def calibrated(c: Comparison, rates: Sequence[float]) -> list[dict[str, Any]]:
    """Hits at the thresholds that these shares of real unseen images reach, first the headline."""
    return [_at_rate(c, rate) for rate in rates]


def _at_rate(c: Comparison, rate: float) -> dict[str, Any]:
    threshold = threshold_at_false_positive_rate(c.real_gamma, rate, c.metric)
    passing = int(m.closer(c.real_gamma, threshold, c.metric).sum())
    hits = {name: m.closer(r.gamma, threshold, c.metric) for name, r in c.sets.items()}
    return {
        "false_positive_rate": rate,
        "threshold": threshold,
        "num_real": len(c.real_gamma),
        "real_passing": passing,
        "true_rate_interval": list(rate_interval(passing, len(c.real_gamma))),
        **{
            name: {**_counted(hits[name], r), "ams": float(hits[name].mean())}
            for name, r in c.sets.items()
        },
        "excess": _excess(c, hits),
    }


def _counted(hit: Bool[np.ndarray, "n"], reference: Compared) -> dict[str, int]:
    """Hits, and the different reference images nearest to them."""
    return {"count": int(hit.sum()), "unique": len(np.unique(reference.index[hit]))}


def _excess(c: Comparison, hits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    train = hits.get("train_equal", hits["train"])
    share, low, high = excess(train[:, None], hits["heldout"][:, None], c.equal.index)
    return {"share": float(share[0]), "interval": [float(low[0]), float(high[0])]}


def bands(c: Comparison, ends: Bands) -> dict[str, Any]:
    """AMS and both readings of UMS in every band, against every set, and the excess there."""
    found: dict[str, Any] = {name: {} for name in ends}
    for which, reference in c.sets.items():
        masks = covered(c.queries, reference.features, c.metric, list(ends.values()))
        for (name, band), mask in zip(ends.items(), masks, strict=True):
            found[name][which] = {
                "count": int(m.in_band(reference.gamma, band).sum()),
                "ams": m.ams(reference.gamma, band),
                "ums": float(mask.sum() / len(c.queries)),
                "ums_nearest": m.ums_nearest(reference.gamma, reference.index, band),
            }
    for name, band in ends.items():
        hits = {which: m.in_band(r.gamma, band) for which, r in c.sets.items()}
        found[name]["excess"] = _excess(c, hits)
    return found


def curve(c: Comparison, thresholds: Sequence[float]) -> dict[str, Any]:
    """Cumulative AMS and UMS at every threshold, and the excess of AMS with its interval."""
    found: dict[str, Any] = {"thresholds": list(thresholds)}
    for name, r in c.sets.items():
        ums = m.cumulative_ums(r.reverse_gamma, len(c.queries), thresholds, c.metric)
        found[name] = {"ams": m.cumulative_ams(r.gamma, thresholds, c.metric), "ums": ums}

    def reached(reference: Compared) -> np.ndarray:
        return np.stack([m.closer(reference.gamma, a, c.metric) for a in thresholds], axis=1)

    share, low, high = excess(reached(c.equal), reached(c.heldout), c.equal.index)
    found["excess"] = {"share": share.tolist(), "low": low.tolist(), "high": high.tolist()}
    return found


def rules(c: Comparison, threshold: float) -> dict[str, Any]:
    """Published decision rules against every set; threshold: gamma of duplicates in a set.

    The adaptive score needs 50 reference images and is left out where a set has fewer.
    """
    adaptive: dict[str, Any] = {"rule": "score <= 1"}
    ratio: dict[str, Any] = {"rule": "nn1 < nn2 / 3"}
    for name, r in c.sets.items():
        scores = m.adaptive_scores(m.distance(r.around, c.metric))
        adaptive[name] = _counted(scores <= 1, r)
        of_set = (r.features, c.metric, threshold, r.other_gamma)
        unique = np.unique(near_duplicate_groups(*of_set))
        ratio[f"num_unique_{name}"] = len(unique)
        two = nearest(c.queries, r.features[unique], c.metric, k=2)[0]
        hit = m.ratio_hits(*m.distance(two, c.metric).T)
        ratio[name] = _counted(hit, r)
    enough = all(len(r.rows) >= AROUND for r in c.sets.values())
    return {"adaptive": adaptive, "ratio": ratio} if enough else {"ratio": ratio}


def distance_gap(c: Comparison) -> dict[str, Any]:
    """Mean distance to the nearest training image less that to the nearest held-out one.

    Below 0 where the images are drawn to the training set; with its interval.
    """
    gap = m.distance(c.equal.gamma, c.metric) - m.distance(c.heldout.gamma, c.metric)
    low, high = clustered_bootstrap(gap[:, None], c.equal.index)
    return {"mean": float(gap.mean()), "interval": [float(low[0]), float(high[0])]}


def extractable(c: Comparison, hit: Bool[np.ndarray, "n"]) -> dict[str, Any]:
    """Different training images against images made: the curve, its bound and its check."""
    quarter = np.flatnonzero(hit[: len(hit) // 4])
    return rarefaction(c.train.index[hit], len(hit), c.train.index[quarter])


def new_hits(
    c: Comparison, hit: Bool[np.ndarray, "n"], threshold: float
) -> tuple[dict[str, Any], Bool[np.ndarray, "n"]]:
    """Of the hits, those whose training image no synthetic image had hit; and which these are."""
    synthetic_hit = m.closer(c.synthetic_gamma, threshold, c.metric)
    known = np.unique(c.synthetic_index[synthetic_hit])
    seen = np.isin(c.train.index, known)
    summary: dict[str, Any] = {
        "synthetic_unique": len(known),
        "synthetic_hits": int(synthetic_hit.sum()),
    }
    for name, some in (("seen", hit & seen), ("new", hit & ~seen)):
        summary[name] = _counted(some, c.train)
    return summary, hit & ~seen


def trial(c: Comparison, features: Float32[np.ndarray, "n d"], threshold: float) -> dict[str, int]:
    """The true hits of images that a tuned attack tried: its images, hits, different ones."""
    gamma, index = (x[:, 0] for x in nearest(features, c.train.features, c.metric))
    hit = m.closer(gamma, threshold, c.metric)
    return {"images": len(hit), "hits": int(hit.sum()), "unique": len(np.unique(index[hit]))}


def quality(c: Comparison) -> dict[str, Any] | None:
    """FID, KID and MiFID against both sets; None where d is too large for FID."""
    dimensions = c.queries.shape[1]
    if dimensions > MAX_DIMENSIONS:
        log.info("no FID: %d dimensions, more than %d", dimensions, MAX_DIMENSIONS)
        return None
    found: dict[str, Any] = {"fid": {}, "kid": {}, "mifid": {}}
    for name, reference in (("train", c.equal), ("heldout", c.heldout)):
        distance = fid(c.queries, reference.features)
        copying = nearest_cosine_distance(c.queries, reference.features)
        found["fid"][name] = distance
        found["kid"][name] = list(kid(c.queries, reference.features, seed=0))
        found["mifid"][name] = mifid(distance, copying)
    return found


def divergence(c: Comparison) -> dict[str, Any] | None:
    """Memorisation divergence of up to 2,000 training images and as many held-out ones.

    In feature space; the model's density is a kernel estimate from its own images, with the same
    bandwidth, which is of the held-out images. None where most of these have an exact double.
    """
    count = min(DIVERGENCE_IMAGES, len(c.heldout.rows))
    try:
        bandwidth = default_bandwidth(c.heldout.features[:count])
    except ValueError as error:
        log.warning("no memorisation divergence: %s", error)
        return None
    log_p = kde_log_density(c.queries, bandwidth)
    found: dict[str, Any] = {"bandwidth": bandwidth, "num_images": count}
    for name, reference in (("train", c.equal), ("heldout", c.heldout)):
        images = reference.features[:count]
        value, error = memorization_divergence(images, log_p, bandwidth)
        found[name] = {"value": value, "standard_error": error}
    return found


def headline(results: Mapping[str, Any]) -> dict[str, Any]:
    """The summary, after saying it in the log."""
    if results["truth"] == "none":
        return {"candidates": results["blind"]["num_candidates"], **results["blind"]}
    at, sizes, count = results["calibrated"][0], results["num_reference"], results["num_images"]
    for name in sizes:
        log.info(
            "%s: %d of %d images hit one of %d images, %d different ones",
            *(name, at[name]["count"], count, sizes[name], at[name]["unique"]),
        )
    low, high = (count * share for share in at["excess"]["interval"])
    log.info(
        "excess at %g %% held-out false positives: %.0f of %d images (95 %% interval %.0f to %.0f)",
        *(100 * at["false_positive_rate"], count * at["excess"]["share"], count, low, high),
    )
    return {
        "hits": at["train"]["count"],
        "heldout_hits": at["heldout"]["count"],
        "unique": at["train"]["unique"],
        "excess": at["excess"]["share"],
        "excess_low": at["excess"]["interval"][0],
        "excess_high": at["excess"]["interval"][1],
        "threshold": at["threshold"],
        "ams_high": results["bands"]["high"]["train"]["ams"],
        "ums_high": results["bands"]["high"]["train"]["ums"],
    }
