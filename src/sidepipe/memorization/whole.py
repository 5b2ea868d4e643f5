"""How near the generated images as a whole are to training and to held-out images.

These compare a set of training images with a held-out set of the same size, since the nearest image
of a larger set is nearer, and FID depends on the number of images. Where fewer images are held out
than were trained on, only as many training images are used, and copies of the others are missed:
the differences are then too small by about the ratio of the two numbers.
"""

import logging
from typing import Any

import numpy as np

from sidepipe.memorization import scores as m
from sidepipe.memorization.comparison import Comparison
from sidepipe.memorization.divergence import (
    default_bandwidth,
    kde_log_density,
    memorization_divergence,
)
from sidepipe.memorization.excess import Z
from sidepipe.memorization.quality import (
    KID_MIN_IMAGES,
    MAX_DIMENSIONS,
    fid,
    kid,
    mifid,
    nearest_cosine_distance,
)

log = logging.getLogger(__name__)

# Each pair with a generated image is evaluated eight times; the error is already small.
DIVERGENCE_IMAGES = 2000


def distance_gap(c: Comparison) -> dict[str, Any]:
    """Mean distance to the nearest training image minus that to the nearest held-out image.

    It is below 0 where the images are closer to the training set. The held-out distance is the mean
    over the held-out sets. The interval is that of a mean of independent images.
    """
    heldout = np.mean([m.distance(control.gamma, c.metric) for control in c.controls], axis=0)
    gap = m.distance(c.equal.gamma, c.metric) - heldout
    mean, error = float(gap.mean()), Z * float(gap.std(ddof=1)) / np.sqrt(len(gap))
    return {"mean": mean, "interval": [mean - error, mean + error]}


def quality(c: Comparison) -> dict[str, Any]:
    """FID, KID and MiFID against both sets; None where images are too few, and the reason.

    The covariance of no more images than dimensions is singular, and FID is then mostly a function
    of their number.
    """
    fewest, dimensions = min(len(c.queries), len(c.heldout.rows)), c.queries.shape[1]
    found: dict[str, Any] = {"fid": None, "kid": None, "mifid": None, "left_out": []}
    sets = {"train": c.equal.features, "heldout": c.heldout.features}
    if dimensions > MAX_DIMENSIONS:
        reason = f"FID, KID and MiFID: {dimensions} dimensions, more than {MAX_DIMENSIONS}"
        return {**found, "left_out": [reason]}
    if fewest > dimensions:
        found["fid"] = {name: fid(c.queries, features) for name, features in sets.items()}
        found["mifid"] = {
            name: mifid(found["fid"][name], nearest_cosine_distance(c.queries, features))
            for name, features in sets.items()
        }
    else:
        reason = f"FID and MiFID: {fewest} images, not more than the {dimensions} dimensions"
        found["left_out"].append(reason)
    if fewest >= KID_MIN_IMAGES:
        kids = {name: kid(c.queries, features, seed=0) for name, features in sets.items()}
        found["kid"] = {name: list(values) for name, values in kids.items()}
    else:
        found["left_out"].append(f"KID: {fewest} images, fewer than {KID_MIN_IMAGES}")
    return found


def divergence(c: Comparison) -> dict[str, Any] | None:
    """Memorization divergence of up to 2,000 training images and as many held-out ones.

    In feature space; the model's density is a kernel estimate from its own images, with the same
    bandwidth, which is of the held-out images. None where most of these have an exact double.
    """
    count = min(DIVERGENCE_IMAGES, len(c.heldout.rows))
    try:
        bandwidth = default_bandwidth(c.heldout.features[:count])
    except ValueError as error:
        log.warning("no memorization divergence: %s", error)
        return None
    log_p = kde_log_density(c.queries, bandwidth)
    found: dict[str, Any] = {"bandwidth": bandwidth, "num_images": count}
    for name, reference in (("train", c.equal), ("heldout", c.heldout)):
        images = reference.features[:count]
        value, error = memorization_divergence(images, log_p, bandwidth)
        found[name] = {"value": value, "standard_error": error}
    return found
