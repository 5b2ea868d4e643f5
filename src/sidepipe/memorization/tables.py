"""Published measures of generated tables: the ratio of distances, and the share closer to training.

Both depend on the table more than on the model, so each needs the same number of held-out rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.spatial.distance import cdist

from sidepipe.features.pairs import blocks
from sidepipe.features.search import nearest
from sidepipe.memorization.excess import Z, wilson

RATIO = 1 / 3  # of the distances to the two nearest training rows; below it a row is "memorized"
ROUNDING = 1e-9
MOST_PAIRS = 20_000_000  # distances at once
MOST_PARTS = 10  # of the larger one of the two sets

Vectors = np.ndarray


@dataclass(frozen=True)
class Plain:
    """Rows in their own units. numeric: (n, p) without missing values; codes: of categories."""

    numeric: Float64[np.ndarray, "n p"]
    codes: Int64[np.ndarray, "n c"]

    def __len__(self) -> int:
        return len(self.numeric)

    def part(self, rows: Int64[np.ndarray, "_"]) -> "Plain":
        return Plain(self.numeric[rows], self.codes[rows])


def published_ratios(queries: Plain, train: Plain) -> Float64[np.ndarray, "n"]:
    """The ratio of Fang et al. (arXiv 2412.11044) of each query, by their distance.

    For each query the Euclidean distances of the numeric columns, in their units, to all training
    rows are scaled to [0, 1]; the number of different categories is added. Therefore the nearest
    row by numbers is at the distance 0, whatever it is.
    """
    found = []
    for distance, mismatches in _distances(queries, train, np.ones(train.numeric.shape[1])):
        least = distance.min(axis=1, keepdims=True)
        span = distance.max(axis=1, keepdims=True) - least
        found.append(_ratio((distance - least) / np.where(span > 0, span, 1) + mismatches))
    return np.concatenate(found)


def global_ratios(queries: Plain, train: Plain) -> Float64[np.ndarray, "n"]:
    """The same ratio, with each numeric column in units of its range over the training rows."""
    span = np.ptp(train.numeric, axis=0)
    scale = np.where(span > 0, span, 1)
    found = [_ratio(d + mismatches) for d, mismatches in _distances(queries, train, scale)]
    return np.concatenate(found)


def _distances(
    queries: Plain, train: Plain, scale: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Euclidean distances by scaled numbers, and numbers of different categories, by blocks."""
    columns = queries.codes.shape[1]
    for some in blocks(len(queries), max(1, MOST_PAIRS // len(train))):
        one, other = queries.numeric[some] / scale, train.numeric / scale
        # cdist takes differences, so that equal rows are at the distance 0.
        distance = cdist(one, other) if one.shape[1] else np.zeros((len(one), len(other)))
        mismatches = np.zeros_like(distance)
        if columns:
            mismatches = np.rint(cdist(queries.codes[some], train.codes, "hamming") * columns)
        yield distance, mismatches


def _ratio(distance: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, "n"]:
    """Nearest by second nearest; 1 where both are 0, as for a row that occurs twice in training."""
    two = np.partition(distance, 1, axis=1)[:, :2]
    return np.divide(two[:, 0], two[:, 1], out=np.ones(len(two)), where=two[:, 1] > 0)


def memorized(ratios: Float64[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which ratios are below one third; one of 1/3 is not, to the rounding of its distances."""
    return ratios < RATIO - ROUNDING


def mem_auc(ratios: Float64[np.ndarray, "n"]) -> float:
    """The area under the share of ratios below a threshold, for thresholds of 0 to 1."""
    return float(1 - ratios.mean())


def closer_to_train(
    queries: Vectors, train: Vectors, heldout: Vectors, seed: int = 0
) -> Float64[np.ndarray, "n"]:
    """The share of equally large sets in which each query is closer to a training row.

    A tie counts one half. The larger one of the two sets is divided into at most `MOST_PARTS` parts
    as large as the smaller one, in a random order, for files may be sorted.
    """
    size = min(len(train), len(heldout))
    rng = np.random.default_rng(seed)

    def parts(rows: Vectors) -> list[np.ndarray]:
        order = rng.permutation(len(rows))
        number = min(MOST_PARTS, len(rows) // size)
        some = [rows[order[i * size : (i + 1) * size]] for i in range(number)]
        return [nearest(queries, part, "l2")[0][:, 0] for part in some]

    def score(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        # Steps between the ranks of a column are equal but for the rounding of float32.
        return np.where(np.isclose(one, other, rtol=1e-5, atol=1e-6), 0.5, one < other)

    to_train, to_heldout = parts(train), parts(heldout)
    return np.mean([score(one, other) for one in to_train for other in to_heldout], axis=0)


def share_interval(
    scores: Float64[np.ndarray, "n"], row: Int64[np.ndarray, "n"], num_real: int
) -> tuple[float, float]:
    """The 95 % interval of the mean of `closer_to_train`, for other rows of the same kinds.

    row: the nearest of all `num_real` real rows to each query. By chance a real row is in training
    or held out, and this one event decides about all queries that are nearest to it. With m_j
    queries at row j the variance is p (1 - p) (sum m_j^2 / n^2 - 1 / num_real): the first term is
    that of clusters (Kish, 1965), the second is left out because the sizes of the sets are fixed.
    The interval is Wilson's for as many independent queries as have this variance.
    """
    number = len(scores)
    sizes = np.unique(row, return_counts=True)[1].astype(np.float64)
    factor = max(1 / number, float(np.square(sizes).sum()) / number**2 - 1 / num_real)
    return wilson(float(scores.mean()), 1 / factor, Z)
