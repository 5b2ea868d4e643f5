"""How well a score separates memorized prompts: ROC, its area, and intervals over prompts.

A higher score indicates memorization. "TPR at 1 % FPR" is that of the last point of the ROC with a
false positive rate of at most 1 %; another convention takes the nearest point.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from sidepipe.base.settings import require
from sidepipe.memorization.thresholds import LEVEL, allowed

DRAWS = 2000
MAX_FLOATS = 4_000_000  # of drawn weights held at once

Scores = Float[np.ndarray, "n"]
Positive = Bool[np.ndarray, "n"]


@dataclass(frozen=True)
class Roc:
    """False and true positive rates as the threshold falls, from (0, 0) to (1, 1).

    Points lie along the last axis; prompts that tie are one step.
    """

    fpr: Float64[np.ndarray, "*b g"]
    tpr: Float64[np.ndarray, "*b g"]

    def area(self) -> Float64[np.ndarray, "*b"]:
        """The chance that a memorized prompt scores higher than another one, ties counting half."""
        heights = (self.tpr[..., 1:] + self.tpr[..., :-1]) / 2
        return (np.diff(self.fpr, axis=-1) * heights).sum(-1)

    def tpr_at(self, rate: float) -> Float64[np.ndarray, "*b"]:
        """The true positive rate of the last point with a false positive rate <= `rate`."""
        return np.where(self.fpr <= rate, self.tpr, 0).max(-1)


def roc(scores: Scores, positive: Positive, weights: Shaped[np.ndarray, "*b n"]) -> Roc:
    """The ROC of prompts that count `weights` times; ValueError where a class is empty."""
    both = bool(positive.any() and not positive.all())
    require(both, "positive", "some and not all", f"{positive.sum()} of {len(positive)}")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    yes = weights * positive
    rates = []
    for some in (weights - yes, yes):
        counts = np.cumsum(some[..., order], axis=-1)[..., ends]
        rates.append(np.insert(counts / counts[..., -1:], 0, 0.0, axis=-1))
    return Roc(*rates)


def measured(
    scores: Scores, positive: Positive, rate: float, draws: int = DRAWS, seed: int = 0
) -> dict[str, float | list[float]]:
    """Area and true positive rate at `rate`, each with its 95 % bootstrap interval over prompts.

    Each class of prompts is resampled on its own, so that no draw lacks one. If every prompt is
    classified correctly, the interval has no width, however few prompts there are.
    """
    curve = roc(scores, positive, np.ones(len(scores)))
    rng = np.random.default_rng(seed)
    areas, tprs = [], []
    block = max(1, MAX_FLOATS // len(scores))
    for start in range(0, draws, block):
        weights = _drawn(rng, positive, min(block, draws - start))
        drawn = roc(scores, positive, weights)
        areas.append(drawn.area())
        tprs.append(drawn.tpr_at(rate))
    return {
        "auc": float(curve.area()),
        "auc_interval": _interval(np.concatenate(areas)),
        "tpr": float(curve.tpr_at(rate)),
        "tpr_interval": _interval(np.concatenate(tprs)),
    }


def _drawn(rng: np.random.Generator, positive: Positive, draws: int) -> np.ndarray:
    """How often each prompt is drawn, with replacement, within its class: (draws, n)."""
    weights = np.empty((draws, len(positive)))
    for some in (positive, ~positive):
        count = int(some.sum())
        weights[:, some] = rng.multinomial(count, np.full(count, 1 / count), draws)
    return weights


def _interval(values: Float64[np.ndarray, "b"]) -> list[float]:
    tail = (1 - LEVEL) / 2
    return np.quantile(values, [tail, 1 - tail]).tolist()


def require_enough(count: int, rate: float, what: str, remedy: str) -> None:
    """Raises ValueError, naming `what`, where `rate` of them is less than one."""
    rule = f">= 1 / {rate:g} = {np.ceil(round(1 / rate, 9)):g}"
    require(allowed(count, rate) >= 1, f"the number of {what}", rule, count, remedy)
