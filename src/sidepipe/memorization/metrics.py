"""The scores of `memorization` as torchmetrics metrics, for a loop over batches or processes.

The constructor takes the features of the training images (m, d), or of any set to compare with;
`update` takes features of generated images (n, d); `compute` returns float64. States are whole
numbers, maxima and lists of float32, so the result does not depend on batches, their order, or the
number of processes; a sampler that repeats images to fill the last batch does change it. Features
may be on any device; states are on the device of the metric.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from sidepipe.base.settings import require
from sidepipe.features.search import Metric, covered, nearest
from sidepipe.memorization import scores as m
from sidepipe.memorization.excess_metric import Excess as Excess
from sidepipe.memorization.metric_base import Features, MemorizationMetric

Floats = Sequence[float]

ADAPTIVE_NEIGHBORS = 50  # Carlini et al., 2023


class _Share(MemorizationMetric):
    """Share of the generated images that meet a rule."""

    count: Tensor

    def __init__(
        self, training_features: Features, metric: Metric, *settings: Any, **kwargs: Any
    ) -> None:
        super().__init__(training_features, metric, *settings, **kwargs)
        self.add_state("count", torch.tensor(0), "sum")

    def _take(self, features: Float32[np.ndarray, "n d"]) -> None:
        self.count = self.count + int(self._hits(features).sum())

    def _hits(self, features: Float32[np.ndarray, "n d"]) -> Bool[np.ndarray, "n"]:
        raise NotImplementedError

    def compute(self) -> Float64[Tensor, ""]:
        return self._share(self.count)


class AMS(_Share):
    """Share of images whose nearest training image is in the band (`memorization.ams`)."""

    def __init__(
        self, training_features: Features, metric: Metric, band: m.Band, **kwargs: Any
    ) -> None:
        super().__init__(training_features, metric, band, **kwargs)
        self.band = _checked_band(band)

    def _hits(self, features: Float32[np.ndarray, "n d"]) -> Bool[np.ndarray, "n"]:
        return m.in_band(self._nearest(features)[0], self.band)


class AdaptiveScore(_Share):
    """Share of images with an adaptive score of at most 1 (`memorization.adaptive_scores`).

    Raises ValueError for fewer than 50 training images.
    """

    def __init__(self, training_features: Features, metric: Metric, **kwargs: Any) -> None:
        super().__init__(training_features, metric, **kwargs)
        size, rule = len(self.training_features), f"of at least {ADAPTIVE_NEIGHBORS} images"
        require(size >= ADAPTIVE_NEIGHBORS, "training_features", rule, size, "use RatioRule")

    def _hits(self, features: Float32[np.ndarray, "n d"]) -> Bool[np.ndarray, "n"]:
        gamma, _ = nearest(features, self.training_features, self.metric, ADAPTIVE_NEIGHBORS)
        return m.adaptive_scores(m.distance(gamma, self.metric)) <= 1


class RatioRule(_Share):
    """Share of images three times closer to one training image than to the next different one.

    (`memorization.ratio_hits`.) Training images with equal features count once. The caller removes
    duplicates whose features differ by rounding, as those of networks may between batches. Raises
    ValueError for fewer than 2 different images.
    """

    def __init__(self, training_features: Features, metric: Metric, **kwargs: Any) -> None:
        super().__init__(training_features, metric, **kwargs)
        self.training_features = np.unique(self.training_features, axis=0)
        size = len(self.training_features)
        require(size >= 2, "training_features", "of at least 2 different images", size)

    def _hits(self, features: Float32[np.ndarray, "n d"]) -> Bool[np.ndarray, "n"]:
        gamma, _ = nearest(features, self.training_features, self.metric, 2)
        return m.ratio_hits(*m.distance(gamma, self.metric).T)


class CumulativeAMS(MemorizationMetric):
    """AMS at least as close as each threshold, (T,) (`memorization.cumulative_ams`)."""

    counts: Tensor

    def __init__(
        self, training_features: Features, metric: Metric, thresholds: Floats, **kwargs: Any
    ) -> None:
        thresholds = _checked_thresholds(thresholds)
        super().__init__(training_features, metric, thresholds, **kwargs)
        self.thresholds = thresholds
        self.add_state("counts", torch.zeros(len(thresholds), dtype=torch.int64), "sum")

    def _take(self, features: Float32[np.ndarray, "n d"]) -> None:
        gamma = self._nearest(features)[0]
        self.counts = self.counts + self._state(_as_close(gamma, self.thresholds, self.metric))

    def compute(self) -> Float64[Tensor, "t"]:
        return self._share(self.counts)


class _Unique(MemorizationMetric):
    """Training images within the band of any generated image, over the generated images."""

    found: Tensor

    def __init__(
        self, training_features: Features, metric: Metric, band: m.Band, **kwargs: Any
    ) -> None:
        super().__init__(training_features, metric, band, **kwargs)
        self.band = _checked_band(band)
        nothing = torch.zeros(len(self.training_features), dtype=torch.bool)
        self.add_state("found", nothing, "max")

    def _take(self, features: Float32[np.ndarray, "n d"]) -> None:
        self.found = self.found | self._state(self._mask(features))

    def _mask(self, features: Float32[np.ndarray, "n d"]) -> Bool[np.ndarray, "m"]:
        raise NotImplementedError

    def compute(self) -> Float64[Tensor, ""]:
        return self._share(self.found.sum())


class UMS(_Unique):
    """Different training images of all pairs in the band, over N_G (SIDE, eq. 9)."""

    def _mask(self, features: Float32[np.ndarray, "n d"]) -> Bool[np.ndarray, "m"]:
        return covered(features, self.training_features, self.metric, [self.band])[0]


class UMSNearest(_Unique):
    """Different NEAREST training images in the band, over N_G (`memorization.ums_nearest`)."""

    def _mask(self, features: Float32[np.ndarray, "n d"]) -> Bool[np.ndarray, "m"]:
        gamma, index = self._nearest(features)
        mask = np.zeros(len(self.training_features), bool)
        mask[index[m.in_band(gamma, self.band)]] = True
        return mask


class CumulativeUMS(MemorizationMetric):
    """UMS at least as close as each threshold, (T,) (`memorization.cumulative_ums`)."""

    closest: Tensor

    def __init__(
        self, training_features: Features, metric: Metric, thresholds: Floats, **kwargs: Any
    ) -> None:
        thresholds = _checked_thresholds(thresholds)
        super().__init__(training_features, metric, thresholds, **kwargs)
        self.thresholds = thresholds
        worst = -np.inf if metric == "cosine" else np.inf
        nothing = torch.full((len(self.training_features),), worst, dtype=torch.float32)
        self.add_state("closest", nothing, "max" if metric == "cosine" else "min")

    def _take(self, features: Float32[np.ndarray, "n d"]) -> None:
        gamma, _ = nearest(self.training_features, features, self.metric)
        better = torch.maximum if self.metric == "cosine" else torch.minimum
        self.closest = better(self.closest, self._state(gamma[:, 0]))

    def compute(self) -> Float64[Tensor, "t"]:
        counts = _as_close(self.closest.cpu().numpy(), self.thresholds, self.metric)
        return self._share(self._state(counts))


class TailPercentile(MemorizationMetric):
    """95th percentile of similarities or 5th of distances (`memorization.tail_percentile`)."""

    gamma: Any

    def __init__(self, training_features: Features, metric: Metric, **kwargs: Any) -> None:
        super().__init__(training_features, metric, **kwargs)
        self.add_state("gamma", [], "cat")

    def _take(self, features: Float32[np.ndarray, "n d"]) -> None:
        self.gamma.append(self._state(self._nearest(features)[0]))

    def compute(self) -> Float64[Tensor, ""]:
        self._require_images()
        gamma = dim_zero_cat(self.gamma).cpu().numpy()
        value = m.tail_percentile(gamma, self.metric)
        return torch.tensor(value, dtype=torch.float64, device=self.device)


def _checked_band(band: m.Band) -> m.Band:
    low, high = band
    require(low < high, "band", "(low, high) with low < high", band, "use inf for an open end")
    return low, high


def _as_close(
    gamma: Float32[np.ndarray, "n"], thresholds: Floats, metric: Metric
) -> Int64[np.ndarray, "t"]:
    """The number of gamma at least as close as each threshold."""
    return np.array([m.closer(gamma, a, metric).sum() for a in thresholds], np.int64)


def _checked_thresholds(thresholds: Floats) -> list[float]:
    values = [float(a) for a in thresholds]
    good = len(values) > 0 and not np.isnan(values).any()
    require(good, "thresholds", "one or more numbers", values)
    return values
