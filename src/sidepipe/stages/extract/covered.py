"""Plain sampling that stops by itself, without the training images, once starts repeat each other.

The fixed points of refinement are the species of an ecologist, and groups of near duplicates among
the last images of the starts are their sightings (Good, Biometrika 1953; Chao and Jost, 2012).
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sidepipe.engine.shards import load_shards
from sidepipe.engine.stage import Job
from sidepipe.features.near import NearDuplicates
from sidepipe.memorization.blind import candidates
from sidepipe.memorization.rarefaction import coverage, unseen
from sidepipe.stages.attack.attack import SPENT
from sidepipe.stages.extract.rounds import spans_of_rounds

if TYPE_CHECKING:
    from sidepipe.stages.extract.stage import Extract

log = logging.getLogger(__name__)


def sample_until_covered(attack: Extract, covered: float, job: Job) -> dict[str, Any]:
    """Rounds of plain images, until the estimated coverage of a round is at least `covered`.

    A resumed run keeps the images of finished rounds.
    """
    import pandas as pd

    spans, shard_size = spans_of_rounds(attack.num_images, attack.rounds, attack.shard_size)
    plain = replace(attack, rounds=1, covered=None, shard_size=shard_size)
    rows: list[dict[str, Any]] = []
    for span in spans:
        spent = replace(plain, num_images=span.stop).sample_plain(job, span.start)
        images = load_shards(job.folder)[attack.refine.candidates - 1 :: attack.refine.candidates]
        found = estimate(images, attack.near_duplicates, job.runtime.torch_device())
        rows.append({**spent, **found, "starts": span.stop})
        log.info(
            "%(starts)d starts: %(groups)d different images, %(unseen).0f more estimated; "
            "%(coverage).1f %% of further starts would repeat one",
            {**rows[-1], "coverage": 100 * found["coverage"]},
        )
        if found["coverage"] >= covered:
            break
    np.save(job.folder / "targets.npy", np.full(rows[-1]["starts"], -1, np.int64))
    pd.DataFrame(rows).to_csv(job.folder / "coverage.csv", index=False)
    summed = ("num_images", *SPENT, "evaluations_saved")
    total = {name: sum(row[name] for row in rows) for name in summed if name in rows[-1]}
    return {**rows[-1], **total}


def estimate(images: np.ndarray, near: NearDuplicates, device: str) -> dict[str, float]:
    """Different images, how many more there are at least, and the coverage; one image per start.

    images: uint8 (n, h, w, c), at least two.
    """
    features = near.encoder.encode(images, device=device)
    size = candidates(features, near.encoder.metric, near.threshold).size
    return {
        "groups": len(size),
        "unseen": unseen(size, len(images), math.inf),
        "coverage": coverage(size, len(images), math.inf),
    }
