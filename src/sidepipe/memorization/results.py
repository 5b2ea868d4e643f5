"""The parts of results.json, each computed from one `Comparison`; plain numbers, no files.

Different training images are counted by groups: images closer to each other than the threshold of
a hit are one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.search import Metric, covered, nearest
from sidepipe.memorization import scores as m
from sidepipe.memorization.comparison import AROUND, Compared, Comparison, Control
from sidepipe.memorization.excess import HeldoutHits, excess, share_interval
from sidepipe.memorization.rarefaction import rarefaction
from sidepipe.memorization.thresholds import rate_interval, threshold_at_false_positive_rate

Bands = Mapping[str, m.Band]
Groups = Int64[np.ndarray, "_"]
GROUPED = 100_000  # images whose near duplicates within the set are searched in minutes


@dataclass(frozen=True)
class Hits:
    """Which generated images are hits, and on what.

    hit, new: of each generated image; a new hit is on a training image of which no synthetic image
    had hit any duplicate. group: of each training image, the one that stands for its duplicates.
    """

    hit: Bool[np.ndarray, "n"]
    new: Bool[np.ndarray, "n"]
    group: Int64[np.ndarray, "m"]


def measured(
    c: Comparison, rates: Sequence[float], ends: Bands, thresholds: Sequence[float]
) -> tuple[dict[str, Any], Hits]:
    """Everything that needs truth, and the hits.

    rates: false positive rates, the first of which defines a hit. thresholds: of the curve.
    """
    from sidepipe.memorization.whole import distance_gap, divergence, quality  # torchmetrics

    counts, group = counted(c, rates)
    threshold = counts["calibrated"][0]["threshold"]
    novelty, hits = new_hits(c, threshold, group)
    groups = {
        name: group if name == "train" else duplicate_groups(some, c.metric, threshold)
        for name, some in c.sets.items()
    }
    found = {
        "num_synthetic": len(c.synthetic_gamma),
        **counts,
        "bands": bands(c, ends),
        "curve": curve(c, thresholds),
        "tail_percentile": {
            name: m.tail_percentile(some.gamma, c.metric) for name, some in c.sets.items()
        },
        "rules": rules(c, groups),
        "distance_gap": distance_gap(c),
        "quality": quality(c),
        "divergence": divergence(c),
        "rarefaction": extractable(c, hits, counts["num_different"]),
        "novelty": novelty,
    }
    return found, hits


def counted(c: Comparison, rates: Sequence[float]) -> tuple[dict[str, Any], Groups]:
    """Hits and their excess with its interval at every rate; the group of each training image.

    The groups are `duplicate_groups` at the first rate.
    """
    threshold = threshold_at_false_positive_rate(c.real_gamma, rates[0], c.metric)
    group = duplicate_groups(c.train, c.metric, threshold)
    counts = {
        "num_reference": {name: len(some.rows) for name, some in c.sets.items()},
        "num_different": len(np.unique(group)),
        "control": {
            "num_sets": len(c.controls),
            "scale": c.scale,
        },
        "calibrated": calibrated(c, rates, group),
    }
    return counts, group


def closest_pairs(
    c: Comparison, group: Int64[np.ndarray, "m"], count: int
) -> Int64[np.ndarray, "p"]:
    """Generated images that come closest to a training image, one for each different one.

    group: of each training image. At most `count`, the closest first.
    """
    gamma = c.train.gamma
    order = np.argsort(-gamma if c.metric == "cosine" else gamma, kind="stable")
    first = np.sort(np.unique(group[c.train.index][order], return_index=True)[1])
    return order[first[:count]]


def duplicate_groups(r: Compared, metric: Metric, threshold: float) -> Groups:
    """The image that stands for each image's near duplicates in a set, at a threshold.

    Where images have groups, the first image of a group stands for all of them and for their near
    duplicates in other groups. Where `r` has no distances within a set of more than `GROUPED`
    images, only those that are nearest to a generated image are searched for near duplicates.
    """
    if r.other_gamma is None and len(r.rows) > GROUPED:
        center, places = np.arange(len(r.rows)), np.unique(r.index)
        center[places] = places[near_duplicate_groups(r.features[places], metric, threshold)]
    else:
        center = near_duplicate_groups(r.features, metric, threshold, r.other_gamma)
    if r.groups is None:
        return center
    _, first, number = np.unique(r.groups, return_index=True, return_inverse=True)
    return first[number[center]]


def calibrated(
    c: Comparison, rates: Sequence[float], group: Int64[np.ndarray, "m"]
) -> list[dict[str, Any]]:
    """Hits at the thresholds that these shares of real unseen images reach, first the headline.

    group: of each training image, at the first threshold; it is the same at all of them.
    """
    first = threshold_at_false_positive_rate(c.real_gamma, rates[0], c.metric)
    return [_at_rate(c, rate, group, first) for rate in rates]


def _at_rate(
    c: Comparison, rate: float, group: Int64[np.ndarray, "m"], duplicate: float
) -> dict[str, Any]:
    threshold = threshold_at_false_positive_rate(c.real_gamma, rate, c.metric)
    passing = int(m.closer(c.real_gamma, threshold, c.metric).sum())
    reached = partial(m.closer, threshold=threshold, metric=c.metric)
    hit, heldout = reached(c.train.gamma), c.heldout_hits(reached)
    start_hits = c.of_starts(hit)
    return {
        "false_positive_rate": rate,
        "threshold": threshold,
        "num_real": len(c.real_gamma),
        "real_passing": passing,
        "true_rate_interval": list(rate_interval(passing, len(c.real_gamma))),
        "train": {
            **_counted(c, hit, group[c.train.index]),
            "ams": float(start_hits.mean()),
            "interval": list(share_interval(start_hits, c.draws)),
        },
        "heldout": _heldout(c, heldout, threshold, duplicate),
        "excess": _excess(start_hits, heldout),
    }


def _heldout(
    c: Comparison, heldout: HeldoutHits, threshold: float, duplicate: float
) -> dict[str, Any]:
    """Means over the held-out sets, each set's hits, and what a set as large as T would have."""
    hits = [m.closer(control.gamma, threshold, c.metric) for control in c.controls]
    sets = [int(c.of_starts(hit).sum()) for hit in hits]
    different = map(partial(_different, metric=c.metric, threshold=duplicate), c.controls, hits)
    return {
        "count": float(np.mean(sets)),
        "unique": float(np.mean(list(different))),
        "ams": heldout.mean,
        "sets": sets,
        "scaled": float(np.mean(sets)) if heldout.scale == 1 else c.num_starts * heldout.scaled,
        "interval": list(heldout.interval),
    }


def _excess(hit: Bool[np.ndarray, "n"], heldout: HeldoutHits) -> dict[str, Any]:
    share, interval = excess(hit, heldout)
    return {"share": share, "interval": list(interval)}


def _different(
    control: Control, hit: Bool[np.ndarray, "n"], metric: Metric, threshold: float
) -> int:
    """The different images of a held-out set that are hit; only these are searched for groups."""
    places = np.unique(control.index[hit])
    if len(places) == 0:
        return 0
    center = places[near_duplicate_groups(control.features[places], metric, threshold)]
    return len(np.unique(center if control.groups is None else control.groups[center]))


def _counted(
    c: Comparison, hit: Bool[np.ndarray, "n"], group: Int64[np.ndarray, "n"]
) -> dict[str, int]:
    """Starts that hit, and the groups of the training images nearest to all of their hits."""
    return {"count": int(c.of_starts(hit).sum()), "unique": len(np.unique(group[hit]))}


def bands(c: Comparison, ends: Bands) -> dict[str, Any]:
    """AMS and both readings of UMS in every band, against every set, and the excess there.

    Held-out values but UMS are means over the held-out sets. The excess is left out of a band with
    two ends where held-out sets are smaller: how many images it holds does not rise with the set.
    """
    found: dict[str, Any] = {name: {} for name in ends}
    for which, reference in c.sets.items():
        masks = covered(c.queries, reference.features, c.metric, list(ends.values()))
        pairs = c.controls if which == "heldout" else [reference]
        for (name, band), mask in zip(ends.items(), masks, strict=True):
            hits = [c.of_starts(m.in_band(some.gamma, band)) for some in pairs]
            inside = np.mean(hits, axis=0)
            found[name][which] = {
                "count": float(inside.sum()),
                "ams": float(inside.mean()),
                "ums": float(mask.sum() / c.num_starts),
                "ums_nearest": c.per_start
                * float(np.mean([m.ums_nearest(some.gamma, some.index, band) for some in pairs])),
            }
    for name, band in ends.items():
        inside = partial(m.in_band, band=band)
        heldout = c.heldout_hits(inside)
        comparable = heldout.scale == 1 or not np.isfinite(band).all()
        hit = c.of_starts(inside(c.train.gamma))
        found[name]["excess"] = _excess(hit, heldout) if comparable else None
    return found


def curve(c: Comparison, thresholds: Sequence[float]) -> dict[str, Any]:
    """Cumulative AMS and UMS at every threshold, and the excess of AMS with its interval.

    The held-out AMS is the mean over the held-out sets, the UMS that of the first.
    """
    found: dict[str, Any] = {"thresholds": list(thresholds)}
    for name, r in c.sets.items():
        reverse_gamma = nearest(r.features, c.queries, c.metric)[0][:, 0]
        ums = m.cumulative_ums(reverse_gamma, c.num_starts, thresholds, c.metric)
        hits = [c.of_starts(m.closer(r.gamma, a, c.metric)) for a in thresholds]
        found[name] = {"ams": [float(hit.mean()) for hit in hits], "ums": ums}
    found["excess"] = {"share": [], "low": [], "high": []}
    found["heldout"]["ams"] = []
    for threshold in thresholds:
        reached = partial(m.closer, threshold=threshold, metric=c.metric)
        heldout = c.heldout_hits(reached)
        share, (low, high) = excess(c.of_starts(reached(c.train.gamma)), heldout)
        found["heldout"]["ams"].append(heldout.mean)
        for name, value in (("share", share), ("low", low), ("high", high)):
            found["excess"][name].append(value)
    return found


def rules(c: Comparison, groups: Mapping[str, Groups]) -> dict[str, Any]:
    """Published decision rules against every set; groups: of its near duplicates.

    The adaptive score needs 50 reference images and is left out where a set has fewer.
    """
    adaptive: dict[str, Any] = {"rule": "score <= 1"}
    ratio: dict[str, Any] = {"rule": "nn1 < nn2 / 3"}
    for name, r in c.sets.items():
        nearest_group = groups[name][r.index]
        if r.adaptive is not None:
            adaptive[name] = _counted(c, r.adaptive <= 1, nearest_group)
        unique = np.unique(groups[name])
        ratio[f"num_unique_{name}"] = len(unique)
        two = nearest(c.queries, r.features[unique], c.metric, k=2)[0]
        hit = m.ratio_hits(*m.distance(two, c.metric).T)
        ratio[name] = _counted(c, hit, nearest_group)
    enough = all(len(r.rows) >= AROUND for r in c.sets.values())
    return {"adaptive": adaptive, "ratio": ratio} if enough else {"ratio": ratio}


def extractable(c: Comparison, hits: Hits, num_different: int) -> dict[str, Any]:
    """Different training images against images made: the curve, its bound and its check."""
    starts, found = c.sightings(hits.hit, hits.group[c.train.index[hits.hit]])
    quarter = found[starts < c.num_starts // 4]
    return rarefaction(found, c.num_starts, quarter, num_different)


def new_hits(
    c: Comparison, threshold: float, group: Int64[np.ndarray, "m"]
) -> tuple[dict[str, Any], Hits]:
    """How many hits are on training images that no synthetic image had hit; and which these are.

    None where there are no synthetic images.
    """
    hit = m.closer(c.train.gamma, threshold, c.metric)
    synthetic_hit = m.closer(c.synthetic_gamma, threshold, c.metric)
    known = np.unique(group[c.synthetic_index[synthetic_hit]])
    nearest_group = group[c.train.index]
    seen = np.isin(nearest_group, known)
    new = hit & ~seen if len(c.synthetic_gamma) else np.zeros(len(hit), bool)
    summary: dict[str, Any] = {
        "synthetic_unique": len(known),
        "synthetic_hits": int(synthetic_hit.sum()),
    }
    for name, some in (("seen", hit & seen), ("new", new)):
        summary[name] = _counted(c, some, nearest_group)
    return summary, Hits(hit, new, group)


def trial(
    c: Comparison,
    features: Float32[np.ndarray, "n d"],
    threshold: float,
    group: Int64[np.ndarray, "m"],
) -> dict[str, int]:
    """The true hits of images that a tuned attack tried: its images, hits, different ones."""
    gamma, index = (x[:, 0] for x in nearest(features, c.train.features, c.metric))
    hit = m.closer(gamma, threshold, c.metric)
    different = len(np.unique(group[index[hit]]))
    return {"images": len(gamma), "hits": int(hit.sum()), "unique": different}
