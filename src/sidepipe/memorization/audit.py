"""An owner's audit: which training images the model returns to, from the model alone.

An image that the model has memorized is a fixed point of refinement: it comes back to itself, and
noised copies of it come back to it. Held-out images go through the same computation and are the
control, because a model returns to some images that it never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from sidepipe.base.images import Images
from sidepipe.features.pairs import distance, exact_losses, gamma_of
from sidepipe.features.search import Metric, closer, nearest
from sidepipe.memorization.excess import difference, wilson
from sidepipe.memorization.rates import rank_correlation
from sidepipe.memorization.roc import measured

if TYPE_CHECKING:
    from sidepipe.features.encoders import Device, Encoder

# (images, the timestep of the noise they get or None for none, whether they are refined, the number
# of the first one, which decides its noise) -> the images that the model makes of them.
Move = Callable[[Images, int | None, bool, int], Images]


@dataclass(frozen=True)
class Probe:
    """The measurements of an image. t, steps: of refinement. levels: timesteps of added noise.

    draws: of noise, per level. probes: evaluations of the score divergence at timestep t.
    """

    t: int
    steps: int
    levels: Sequence[int]
    draws: int
    probes: int = 16

    @property
    def evaluations(self) -> int:
        """Network evaluations of `returns` per image."""
        return self.steps + self.draws + len(self.levels) * self.draws * (1 + self.steps)


def returns(
    images: Images,
    features: Float32[np.ndarray, "n d"],
    own: slice,
    move: Move,
    encoder: Encoder,
    probe: Probe,
    threshold: float,
    first: int = 0,
    device: Device = "cpu",
) -> dict[str, np.ndarray]:
    """The scores of some images of one kind, training or held-out; a row per image.

    images: those whose features are `features[own]`. threshold: gamma within which an image has
    come back. first: the number of the first image, for the noise. Returns `refined` images; gamma
    of each to its own image; `error`, the mean distance of an image to what one step makes of it
    and noise of timestep t; `recall` (n, levels), the share of noised copies that come back after
    one step and refinement; `ends` (n, levels, draws), which image of the kind each one reaches.
    """
    metric, mine = encoder.metric, features[own]
    encoded = partial(encoder.encode, device=device)

    def gamma(some: Float32[np.ndarray, "m d"], repeats: int) -> Float32[np.ndarray, "m"]:
        """gamma of each vector to that of its own image, which has `repeats` of them."""
        there = np.arange(len(some))
        return gamma_of(exact_losses(some, mine, there, there // repeats, metric), metric)

    def reached(some: Float32[np.ndarray, "m d"]) -> Int64[np.ndarray, "m"]:
        """The image of this kind that each one reaches; -1 for none."""
        nearby, index = nearest(some, features, metric)
        return np.where(closer(nearby[:, 0], threshold, metric), index[:, 0], -1)

    draws, start = probe.draws, first * probe.draws
    refined, copies = move(images, None, True, first), np.repeat(images, draws, axis=0)
    error = distance(gamma(encoded(move(copies, probe.t, False, start)), draws), metric)
    recall = np.empty((len(images), len(probe.levels)), np.float32)
    ends = np.empty((len(images), len(probe.levels), draws), np.int64)
    for level, t in enumerate(probe.levels):
        back = encoded(move(copies, t, True, start))
        recall[:, level] = closer(gamma(back, draws), threshold, metric).reshape(-1, draws).mean(1)
        ends[:, level] = reached(back).reshape(-1, draws)
    return {
        "refined": refined,
        "gamma": gamma(encoded(refined), 1),
        "error": error.reshape(-1, draws).mean(1).astype(np.float32),
        "recall": recall,
        "ends": ends,
    }


def arrivals(
    ends: Int64[np.ndarray, "n levels draws"], count: int
) -> Int64[np.ndarray, "levels m"]:
    """How many noised copies, of any image, reach each of `count` images, per level."""
    of_level = [ends[:, level][ends[:, level] >= 0] for level in range(ends.shape[1])]
    return np.array([np.bincount(some, minlength=count) for some in of_level]).reshape(-1, count)


def closeness(gamma: Float32[np.ndarray, "n"], metric: Metric) -> Float64[np.ndarray, "n"]:
    """gamma as a score that is higher for closer images."""
    return (gamma if metric == "cosine" else -gamma).astype(np.float64)


def flagged_excess(
    train: Bool[np.ndarray, "n"], heldout: Bool[np.ndarray, "m"]
) -> tuple[float, tuple[float, float]]:
    """The share of flagged training images minus that of held-out ones, and its 95 % interval.

    The interval is that of two independent shares (Newcombe, Statistics in Medicine 1998, 17, 873,
    method 10).
    """
    a, b = float(train.mean()), float(heldout.mean())
    return difference(a, wilson(a, len(train)), b, wilson(b, len(heldout)))


def judged(
    score: Float64[np.ndarray, "n"], hits: Int64[np.ndarray, "n"], rate: float
) -> dict[str, Any] | None:
    """How well a score predicts the training images that an attack extracts.

    None where all images are extracted, or none is. score: higher for images at risk. hits: of an
    attack, by training image. rate: of the true positive rate. Membership, training against
    held-out images, is another and easier question.
    """
    extracted = hits > 0
    if not extracted.any() or extracted.all():
        return None
    found = measured(score, extracted, rate)
    return {**found, "correlation": rank_correlation(score, hits.astype(np.float64))}


def flags_judged(flagged: Bool[np.ndarray, "n"], hits: Int64[np.ndarray, "n"]) -> dict[str, int]:
    """Extracted images, and hits, among flagged training images and among the others."""
    return {
        "flagged": int(flagged.sum()),
        "others": int((~flagged).sum()),
        "extracted_flagged": int((hits[flagged] > 0).sum()),
        "extracted_others": int((hits[~flagged] > 0).sum()),
        "hits_flagged": int(hits[flagged].sum()),
        "hits_others": int(hits[~flagged].sum()),
    }
