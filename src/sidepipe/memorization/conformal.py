"""P-values against a control, and lists at a false discovery rate: no fitted number."""

import numpy as np
from jaxtyping import Bool, Float, Float64

from sidepipe.base.settings import require


def p_values(
    scores: Float[np.ndarray, "n"], control: Float[np.ndarray, "m"]
) -> Float64[np.ndarray, "n"]:
    """Conformal p-values: (1 + the number of control scores >= a score) / (1 + m).

    scores: higher for what is looked for. Where a score and the control scores are exchangeable,
    P(p <= a) <= a (Bates et al., "Testing for outliers with conformal p-values", 2023, eq. 1). The
    smallest possible value is 1 / (1 + m). ValueError: no control, values that are not finite.
    """
    require(len(control) > 0, "control", "one score at least", 0)
    for name, some in (("scores", scores), ("control", control)):
        require(bool(np.isfinite(some).all()), name, "finite", "nan or inf")
    below = np.searchsorted(np.sort(control), scores, side="left")
    return (1 + len(control) - below) / (1 + len(control))


def discoveries(p: Float64[np.ndarray, "n"], rate: float) -> Bool[np.ndarray, "n"]:
    """Which of n p-values are listed at a false discovery rate (Benjamini and Hochberg, 1995).

    Conformal p-values of one control depend on each other in a way that keeps the rate (Bates et
    al., 2023, theorem 2). ValueError: rate outside (0, 1).
    """
    require(0 < rate < 1, "rate", "in (0, 1)", rate)
    order = np.argsort(p, kind="stable")
    passing = np.flatnonzero(p[order] <= rate * np.arange(1, len(p) + 1) / max(len(p), 1))
    listed = np.zeros(len(p), bool)
    listed[order[: passing[-1] + 1 if len(passing) else 0]] = True
    return listed
