"""The base class of `metrics`: checked features, and the number of generated images."""

import hashlib
from typing import Any

import numpy as np
import torch
import torchmetrics
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from sidepipe.base.settings import require, require_known
from sidepipe.features.search import METRICS, Metric, nearest

Features = Float[np.ndarray | Tensor, "_ _"]
Gamma = Float32[np.ndarray, "n"]
Index = Int64[np.ndarray, "n"]


class MemorizationMetric(torchmetrics.Metric):
    """Base of metrics over the features of generated images.

    metric: how to compare features. settings: all other values that change the result. Raises
    ValueError for features that are not (items, dimensions), float32 or float64, finite, of the
    dimensions of the training features and, for "cosine", of unit length; and for a result before
    the first image.
    """

    full_state_update = False
    num_images: Tensor

    def __init__(
        self, training_features: Features, metric: Metric, *settings: Any, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        require_known("metric", metric, METRICS)
        self.metric: Metric = metric
        # An array, not a buffer, as it is neither moved nor saved.
        self.training_features = checked("training_features", training_features, metric)
        require(len(self.training_features) > 0, "training_features", "not empty", 0)
        self.add_state("num_images", torch.tensor(0), "sum")
        # MetricCollection merges metrics of equal states forever, such as two without a hit yet.
        settings = (type(self).__name__, metric, *settings)
        self.add_state("identity", _digest(self.training_features, settings), "max")

    def update(self, features: Features) -> None:
        """Adds features (n, d) of generated images."""
        array = checked("features", features, self.metric)
        d, remedy = self.training_features.shape[1], "encode all with the same encoder"
        require(array.shape[1] == d, "features", f"of {d} dimensions", array.shape[1], remedy)
        self._take(array)
        self.num_images = self.num_images + len(array)

    def _take(self, features: Float32[np.ndarray, "n d"]) -> None:
        raise NotImplementedError

    def _nearest(self, features: Float32[np.ndarray, "n d"]) -> tuple[Gamma, Index]:
        gamma, index = nearest(features, self.training_features, self.metric)
        return gamma[:, 0], index[:, 0]

    def _state(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _share(self, count: Tensor) -> Float64[Tensor, "*s"]:
        """count as a share of the generated images."""
        self._require_images()
        return count.double() / self.num_images

    def _require_images(self) -> None:
        require(int(self.num_images) > 0, "num_images", "> 0", 0, "call update before compute")


def checked(name: str, features: Features, metric: Metric) -> Float32[np.ndarray, "n d"]:
    kind, remedy = str(features.dtype).removeprefix("torch."), "encode the images first"
    require(kind in ("float32", "float64"), name, "float32 or float64", kind, remedy)
    shape = tuple(features.shape)
    require(len(shape) == 2, name, "(items, dimensions)", shape, remedy)
    array = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
    finite = bool(np.isfinite(array).all())
    require(finite, name, "finite", "nan or inf", "check the encoder's input")
    if metric == "cosine":
        squares = np.einsum("nd,nd->n", array, array, dtype=np.float64)
        unit = bool(((np.abs(squares - 1) < 1e-3) | (squares == 0)).all())
        remedy = 'divide each by its length, or compare by "l2"'
        require(unit, name, "unit vectors (or zero) for cosine", "other lengths", remedy)
    return array.astype(np.float32)


def _digest(features: Float32[np.ndarray, "m d"], settings: tuple[Any, ...]) -> Tensor:
    """SHA-256 of the features and settings of a metric, as 32 numbers."""
    hashed = hashlib.sha256(repr((settings, features.shape)).encode())
    hashed.update(np.ascontiguousarray(features).data)
    return torch.tensor(list(hashed.digest()))
