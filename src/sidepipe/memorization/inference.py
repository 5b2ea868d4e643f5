"""Dataset inference: was a set of images used to train a model, by one p-value for the set.

No image is judged by itself. Features of the suspects and of control images, which the model never
saw, are weighted by a regression on one half of both, and the scores of the other half are compared
by a t-test (CDI: Dubinski et al., arXiv 2411.12858). The two sets must be alike but for training:
any other difference, such as another camera, is found as well. Images must be independent: with
several images per subject, such as a patient, p is far too small, and the features of a subject
are the means of those of its images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.special import stdtr

from sidepipe.base.settings import require

FEWEST = 10  # suspects, and control images: two halves of five
LEVEL = 0.01  # p-value below which the power curve counts a set as found
DRAWS = 50  # sets of each size of the power curve
SIZES = (5, 10, 20, 50, 100, 200, 500, 1000)

Features = Mapping[str, Float[np.ndarray, "n"]]


def dataset_inference(suspects: Features, control: Features, seed: int = 0) -> dict[str, Any]:
    """The p-value that the suspects were used in training, JSON-able.

    suspects, control: features by name, the same names for both; their order does not count. A half
    of each, drawn at random, fits the weights of the features; the other half is tested by Welch's
    t-test, one-sided: where all images are independent and those of both kinds exchangeable, p is
    uniform. num_suspects, num_control: tested. power: the share of sets of `size` suspects, drawn
    from the tested half, with a p-value below LEVEL next to as many control images. ValueError:
    fewer than FEWEST images of a kind.
    """
    names = sorted(suspects)
    require(names == sorted(control), "control", f"features {names}", sorted(control))
    own, other = (
        np.stack([np.asarray(t[n], np.float64) for n in names], 1) for t in (suspects, control)
    )
    for name, some in (("suspects", own), ("control", other)):
        require(len(some) >= FEWEST, name, f">= {FEWEST} images", len(some))
        require(bool(np.isfinite(some).all()), name, "finite features", "nan or inf")
    rng = np.random.default_rng(seed)
    halves = [np.array_split(table[rng.permutation(len(table))], 2) for table in (own, other)]
    scores, base = _scores([fitted for fitted, _ in halves], [tested for _, tested in halves])
    statistic, p_value = welch(scores, base)
    return {
        "p_value": p_value,
        "statistic": statistic,
        "num_suspects": len(scores),
        "num_control": len(base),
        "level": LEVEL,
        "power": _power(scores, base, rng),
    }


def welch(
    suspects: Float64[np.ndarray, "n"], control: Float64[np.ndarray, "m"]
) -> tuple[float, float]:
    """Welch's t and its one-sided p-value that the suspects have the larger mean.

    Where no score differs from another of its kind, t is 0 or infinite.
    """
    difference = float(suspects.mean() - control.mean())
    variances = [float(some.var(ddof=1)) / len(some) for some in (suspects, control)]
    if (total := sum(variances)) == 0:
        sign = float(np.sign(difference))
        return sign * np.inf if sign else 0.0, (1 - sign) / 2
    sizes = (len(suspects), len(control))
    spread = sum(v**2 / (size - 1) for v, size in zip(variances, sizes, strict=True))
    t = difference / total**0.5
    return t, float(stdtr(total**2 / spread, -t))


def _scores(
    fitted: Sequence[Float64[np.ndarray, "_ f"]], tested: Sequence[Float64[np.ndarray, "_ f"]]
) -> list[Float64[np.ndarray, "_"]]:
    """The logits of the tested images of each kind by a regression on the fitted ones."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    is_suspect: Bool[np.ndarray, "n"] = np.arange(sum(map(len, fitted))) < len(fitted[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    model.fit(np.concatenate(fitted), is_suspect)
    return [model.decision_function(table) for table in tested]


def _power(
    suspects: Float64[np.ndarray, "n"], control: Float64[np.ndarray, "m"], rng: np.random.Generator
) -> list[dict[str, float]]:
    rows, most = [], min(len(suspects), len(control))
    for size in [size for size in SIZES if size <= most]:
        drawn = (
            [rng.choice(some, size, replace=False) for some in (suspects, control)]
            for _ in range(DRAWS)
        )
        found = [welch(one, other)[1] < LEVEL for one, other in drawn]
        rows.append({"size": size, "power": float(np.mean(found))})
    return rows
