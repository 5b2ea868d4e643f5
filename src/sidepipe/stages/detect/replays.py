"""Whether the images of a prompt are copies of a training image: the ground truth of detection.

An image is a copy where it is closer to a training image than nearly all real unseen images are. A
prompt is memorized where enough of its generations are copies. The number of repeats in training is
not the truth: a repeated pair may not be memorized.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image

from sidepipe.base.image_files import open_image
from sidepipe.base.image_pixels import upright
from sidepipe.base.settings import require
from sidepipe.features.encoders import Encoder
from sidepipe.features.search import Metric, closer, nearest
from sidepipe.memorization.real import encode_rows
from sidepipe.memorization.thresholds import (
    COSINE_ROUNDING,
    MIN_UNSEEN,
    hides_copies,
    threshold_at_false_positive_rate,
    usable_rates,
    warn_of_rates,
)

Images = UInt8[np.ndarray, "p n h w c"]
Rows = Int64[np.ndarray, "m"]
# `gamma` (p, n) of each prompt's images to the closest training image, nan where it is not known,
# and `nearest` (p, n), this image's row in the data, -1 for none.
Compare = Callable[[Sequence[int], Images], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Truth:
    """The rule for generated images. threshold: gamma of a copy. about: for the results."""

    compare: Compare
    metric: Metric
    threshold: float
    about: dict[str, Any]

    def copies(self, gamma: Float32[np.ndarray, "p n"]) -> Bool[np.ndarray, "p n"]:
        """Which images are copies; images without a comparison are none."""
        return closer(gamma, self.threshold, self.metric) & ~np.isnan(gamma)


def training_truth(
    encoder: Encoder,
    data: UInt8[np.ndarray, "d h w c"],
    train: Rows,
    unseen: Rows,
    rate: float,
    threshold: float | None,
    device: str,
) -> Truth:
    """Compares with all training images; threshold None: the gamma that `rate` of unseen reach."""
    about: dict[str, Any] = {"num_train": len(train)}
    used = rate if threshold is not None else usable_label_rate(rate, len(unseen))
    features = encode_rows(encoder, data, train, device)
    if threshold is None:
        real = encode_rows(encoder, data, unseen, device)
        real_gamma = nearest(real, features, encoder.metric)[0][:, 0]
        threshold = threshold_at_false_positive_rate(real_gamma, used, encoder.metric)
        rates = {"false_positive_rate": used, "asked_false_positive_rate": rate}
        about |= {**rates, "num_real": len(unseen)}

    def compare(numbers: Sequence[int], images: Images) -> dict[str, np.ndarray]:
        queries = encoder.encode(images.reshape(-1, *images.shape[2:]), device=device)
        gamma, index = nearest(queries, features, encoder.metric)
        shape = images.shape[:2]
        return {"gamma": gamma.reshape(shape), "nearest": train[index].reshape(shape)}

    return _truth(compare, encoder, threshold, about)


def usable_label_rate(rate: float, num_unseen: int) -> float:
    """The rate of `usable_rates`; ValueError, with the remedy for detect, where there is none."""
    remedy = "hold out more, or set detect.label_threshold"
    name = "the number of held-out images"
    require(num_unseen >= MIN_UNSEEN, name, f">= {MIN_UNSEEN}", num_unseen, remedy)
    [used] = usable_rates([rate], num_unseen)
    warn_of_rates([rate], [used], num_unseen)
    return used


def own_truth(
    encoder: Encoder, files: Sequence[Sequence[Path]], threshold: float, device: str
) -> Truth:
    """Compares each prompt's images with those of its own `files`, at the same size."""

    def compare(numbers: Sequence[int], images: Images) -> dict[str, np.ndarray]:
        gamma = np.full(images.shape[:2], np.nan, np.float32)
        for own, made, number in zip(gamma, images, numbers, strict=True):
            if files[number]:
                _, _, size, channels = made.shape
                real = np.stack([read(path, size, channels) for path in files[number]])
                queries, own_features = (encoder.encode(x, device=device) for x in (made, real))
                own[:] = nearest(queries, own_features, encoder.metric)[0][:, 0]
        return {"gamma": gamma, "nearest": np.full(gamma.shape, -1, np.int64)}

    known = sum(len(some) > 0 for some in files)
    return _truth(compare, encoder, threshold, {"num_with_images": known})


def require_reachable(threshold: float, metric: Metric) -> None:
    """Raises ValueError where an exact copy of a training image might miss the threshold."""
    limit = f"<= {1 - COSINE_ROUNDING}" if metric == "cosine" else ">= 0"
    rule = f"{limit} ({metric}), or no exact copy reaches it"
    require(not hides_copies(threshold, metric), "detect.label_threshold", rule, threshold)


def _truth(compare: Compare, encoder: Encoder, threshold: float, about: dict[str, Any]) -> Truth:
    require_reachable(threshold, encoder.metric)
    names = {"metric": encoder.metric, "transform": encoder.transform, "threshold": threshold}
    return Truth(compare, encoder.metric, threshold, {**names, **about})


def read(path: Path, size: int, channels: int) -> UInt8[np.ndarray, "s s c"]:
    """The largest central square of an image file, `size` pixels per side, of 1 or 3 channels."""
    with open_image(path) as opened:
        image = upright(opened, channels)
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    resized = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(size, size, channels)


def replayed(
    copies: Bool[np.ndarray, "p n"],
    gamma: Float32[np.ndarray, "p n"],
    rows: Int64[np.ndarray, "p n"],
    metric: Metric,
) -> Int64[np.ndarray, "p"]:
    """The training image of most of a prompt's copies, else the one closest to any image."""
    closest = gamma.argmax(1) if metric == "cosine" else gamma.argmin(1)
    chosen = rows[np.arange(len(rows)), closest]
    for i in np.flatnonzero(copies.any(1)):
        own, counts = np.unique(rows[i, copies[i]], return_counts=True)
        chosen[i] = own[counts.argmax()]
    return chosen
