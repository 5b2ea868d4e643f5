"""Which generated images are training images, without the training images: a calibrated verdict.

A shadow model, trained on samples of the model under attack, has training images that the attacker
has. Its candidates, hits and others, calibrate the scores of the candidates of the model itself
(shadow models: Shokri et al., arXiv 1610.05820; here they are made from the model's own samples).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.special import ndtr

from sidepipe.base.settings import require
from sidepipe.memorization.conformal import p_values

FEWEST = 10  # hits, and others, of the shadow model
PARTS = 1000  # of cross-validation; as many candidates or fewer are left out one by one
SMALLEST = 1e-6  # of a score whose logarithm is taken
QUARTILE = 0.75  # of the shadow's hits: the share of hits is estimated from higher scores
WEAK = 0.5  # share of the shadow's others above it, per share of its hits, that is too much

Table = Mapping[str, Float[np.ndarray, "n"]]
Logits = Float64[np.ndarray, "n"]


@dataclass(frozen=True)
class Verdicts:
    """One verdict per candidate.

    score: the logit of the regression. probability: that it is a hit, never higher for a lower
    score. p_value: conformal, against the shadow's candidates that are not hits. share: the
    estimated share of hits among the candidates.
    """

    score: Logits
    probability: Float64[np.ndarray, "n"]
    p_value: Float64[np.ndarray, "n"]
    share: float


def verdicts(scores: Table, shadow: Table, shadow_hit: Bool[np.ndarray, "m"]) -> Verdicts:
    """Verdicts on candidates from the scores of a shadow model's, whose hits are known.

    scores: positive, by name; the same names for both. A logistic regression on the logarithms is
    fitted to the shadow's candidates; the logits of these are cross-validated, as those of the
    candidates are of a regression that does not know them. ValueError: fewer than FEWEST hits, or
    others, of the shadow.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for what, count in (("hits", shadow_hit.sum()), ("other candidates", (~shadow_hit).sum())):
        remedy = "change shadow.num_images, or shadow.max_steps"
        require(count >= FEWEST, f"the shadow model's {what}", f">= {FEWEST}", int(count), remedy)
    names = sorted(shadow)
    own, theirs = (_logs(table, names) for table in (scores, shadow))
    model = make_pipeline(StandardScaler(), LogisticRegression())
    parts = KFold(min(PARTS, len(theirs)), shuffle=True, random_state=0)
    known: Any = cross_val_predict(model, theirs, shadow_hit, cv=parts, method="decision_function")
    hits, others = known[shadow_hit], known[~shadow_hit]
    logit = model.fit(theirs, shadow_hit).decision_function(own)
    share = share_of_hits(logit, hits, others)
    return Verdicts(logit, probabilities(logit, hits, share), p_values(logit, others), share)


def uncorrected(score: Logits) -> Float64[np.ndarray, "n"]:
    """Probabilities for the share of hits among the shadow's candidates."""
    return 1 / (1 + np.exp(-score))


def share_of_hits(score: Logits, hits: Logits, others: Logits) -> float:
    """The share of hits among candidates whose kinds are unknown, from the highest scores.

    hits, others: scores of the shadow's candidates. Above the upper quartile of the hits lie the
    shares F of the candidates, F1 of the hits and F0 of the others, F1 and F0 by the normal
    distribution; the share is (F - F0) / (F1 - F0) (adjusted count: Forman, Data Mining and
    Knowledge Discovery 2008, 17, 164). It is right where hits score alike in both models and the
    model's others score as the shadow's do, and too low where they score lower. 0 where the
    shadow's scores tell hits from others too weakly.
    """
    cut = float(np.quantile(hits, QUARTILE))
    of_hits, of_others = (_above(some, np.array([cut]))[0] for some in (hits, others))
    if of_others > WEAK * of_hits:
        return 0.0
    found = (np.mean(score >= cut) - of_others) / (of_hits - of_others)
    return float(np.clip(found, 0, 1))


def probabilities(score: Logits, hits: Logits, share: float) -> Float64[np.ndarray, "n"]:
    """The probability that each candidate is a hit, for a share of hits among them.

    The number of hits expected among the first k candidates, the highest scores first, is the
    share of all that scores so high by the normal distribution of `hits`, the shadow's hits. The
    probabilities are its increments, made to fall along the order (isotonic regression); nothing
    is assumed of the scores of others.
    """
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(-score, kind="stable")
    expected = len(score) * share * _above(hits, score[order])
    falling = IsotonicRegression(y_min=0, y_max=1, increasing=False)
    found = np.empty(len(score))
    found[order] = falling.fit_transform(np.arange(len(score)), np.diff(expected, prepend=0))
    return found


def _above(some: Logits, cuts: Logits) -> Logits:
    """The share above each cut of a normal distribution with the mean and deviation of `some`."""
    return ndtr((some.mean() - cuts) / max(some.std(), SMALLEST))


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
