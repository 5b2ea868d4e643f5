"""Which generated images are training images, without the training images: a calibrated verdict.

A shadow model, trained on samples of the model under attack, has training images that the attacker
has. Its candidates, hits and others, calibrate the scores of the candidates of the model itself
(shadow models: Shokri et al., arXiv 1610.05820; here they are made from the model's own samples).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from sidepipe.base.settings import require
from sidepipe.memorization.conformal import p_values

FEWEST = 10  # hits, and others, of the shadow model
SMALLEST = 1e-6  # of a score whose logarithm is taken
ROUNDS = 1000  # of `with_own_share`, which converges in tens of them

Table = Mapping[str, Float[np.ndarray, "n"]]


@dataclass(frozen=True)
class Verdicts:
    """One verdict per candidate.

    score: the logit of the regression, whose order is that of the probabilities. probability: that
    it is a hit, with the share of hits among these candidates estimated from their scores. p_value:
    conformal, against the shadow's candidates that are not hits. share: the estimated share;
    shadow_share: that of the shadow's candidates.
    """

    score: Float64[np.ndarray, "n"]
    probability: Float64[np.ndarray, "n"]
    p_value: Float64[np.ndarray, "n"]
    share: float
    shadow_share: float


def verdicts(scores: Table, shadow: Table, shadow_hit: Bool[np.ndarray, "m"]) -> Verdicts:
    """Verdicts on candidates from the scores of a shadow model's, whose hits are known.

    scores: positive, by name; the same names for both. A logistic regression on the logarithms is
    fitted to the shadow's candidates. ValueError: fewer than FEWEST hits, or others, of the shadow.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for what, count in (("hits", shadow_hit.sum()), ("other candidates", (~shadow_hit).sum())):
        remedy = "change shadow.num_images, or shadow.max_steps"
        require(count >= FEWEST, f"the shadow model's {what}", f">= {FEWEST}", int(count), remedy)
    names = sorted(shadow)
    own, theirs = (_logs(table, names) for table in (scores, shadow))
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(theirs, shadow_hit)
    logit, control = fitted.decision_function(own), fitted.decision_function(theirs[~shadow_hit])
    shadow_share = float(shadow_hit.mean())
    probability, share = with_own_share(uncorrected(logit), shadow_share)
    return Verdicts(logit, probability, p_values(logit, control), share, shadow_share)


def uncorrected(score: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Probabilities for the share of hits among the shadow's candidates."""
    return 1 / (1 + np.exp(-score))


def with_own_share(
    probability: Float64[np.ndarray, "n"], share: float
) -> tuple[Float64[np.ndarray, "n"], float]:
    """Probabilities corrected for the share of hits among these candidates, and that share.

    probability: for a share of hits `share`, in (0, 1). The share is that of the maximum
    likelihood, by expectation maximization (Saerens et al., Neural Computation 2002, 14, 21,
    eq. 2.9); it takes for granted that hits, and others, have the same scores in both models.
    """
    found, own = probability, share
    for _ in range(ROUNDS):
        hit, other = probability * own / share, (1 - probability) * (1 - own) / (1 - share)
        found = hit / np.maximum(hit + other, np.finfo(np.float64).tiny)
        last, own = own, float(found.mean())
        if abs(own - last) < 1e-9:
            break
    return found, own


def promised(probability: Float64[np.ndarray, "n"], precision: float) -> Bool[np.ndarray, "n"]:
    """The longest list, most probable first, whose mean probability is at least `precision`."""
    order = np.argsort(-probability, kind="stable")
    means = np.cumsum(probability[order]) / np.arange(1, len(order) + 1)
    listed = np.zeros(len(order), bool)
    long_enough = np.flatnonzero(means >= precision)  # means fall along the list
    listed[order[: long_enough[-1] + 1 if len(long_enough) else 0]] = True
    return listed


def _logs(table: Table, names: list[str]) -> Float64[np.ndarray, "n f"]:
    return np.log(np.stack([np.maximum(table[name], SMALLEST) for name in names], axis=1))
