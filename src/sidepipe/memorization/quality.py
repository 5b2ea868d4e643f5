"""Quality of a set of generated images: FID and KID by torchmetrics; MiFID penalizes copies.

All compare features of one encoder, which decides their scale: values cannot be compared with those
of another encoder, or with published ones of Inception.
"""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from sidepipe.base.settings import require
from sidepipe.features.encoders import Encoder
from sidepipe.features.search import nearest

Features = Float[np.ndarray, "_ _"]

# Eigenvalues of a d x d matrix take time d^3: on one core 0.3 s for d = 512, 6 s for 2048, 13 s for
# 3072 (32 x 32 color pixels), and 15 minutes for 64 x 64 color pixels.
MAX_DIMENSIONS = 3072
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # as published
# The minimum size of a set, so that subsets have 50 images. On 8x8 digits, noise of RMS 0.2 then
# raises KID by several standard deviations, unlike with 4 images.
KID_MIN_IMAGES = 100
# The published kernel divides x.y by d, for entries of about 1. Vectors of our encoders have this
# division: they are unit vectors or root mean squares.
KID_GAMMA = 1.0
# Threshold of the mean cosine distance, from the competition, for Inception features.
MIFID_THRESHOLD = 0.1


class EncoderFeatures(nn.Module):
    """An encoder as a feature network of torchmetrics: uint8 (n, c, h, w) in, (n, d) out.

    image_shape: (c, h, w) of all images. num_features: d. Features are float64, as torchmetrics
    computes in their type. KernelInceptionDistance needs gamma=`KID_GAMMA`.
    """

    def __init__(self, encoder: Encoder, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.encoder, self.image_shape = encoder, image_shape
        # torchmetrics would use a 299 x 299 color image, which some encoders reject.
        blank = torch.zeros(1, *image_shape, dtype=torch.uint8)
        self.num_features = self(blank).shape[1]

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float64[Tensor, "n d"]:
        """The features; raises ValueError unless images are uint8 and of `image_shape`."""
        require(images.dtype == torch.uint8, "images", "uint8 in 0 to 255", str(images.dtype))
        shape = tuple(images.shape)
        require(shape[1:] == self.image_shape, "images", f"(n, *{self.image_shape})", shape)
        array = images.permute(0, 2, 3, 1).cpu().numpy()
        features = self.encoder.encode(array, device=images.device)
        return torch.from_numpy(features).to(images.device, torch.float64)


class _Identity(nn.Module):
    """The network that torchmetrics expects, for images that are already features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(a: Features, b: Features) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features, 0 for equal sets.

    a: (n, d), b: (m, d). It is biased upwards for small sets: compare values only at equal n and m,
    ideally well above d. Raises ValueError for fewer than 2 images, different d, d above
    `MAX_DIMENSIONS`, or values that are not finite (Heusel et al., 2017).
    """
    a, b = _checked(a, b)
    require(
        a.shape[1] <= MAX_DIMENSIONS,
        "features",
        f"of at most {MAX_DIMENSIONS} dimensions for FID",
        a.shape[1],
        "use an encoder of fewer dimensions, or KID",
    )
    metric = FrechetInceptionDistance(feature=_Identity(a.shape[1]))
    _update(metric, a, b)
    # Rounding can make the distance of equal sets negative.
    return max(0.0, float(metric.compute()))


def kid(a: Features, b: Features, seed: int) -> tuple[float, float]:
    """Kernel distance of two sets of features: mean and standard deviation over random subsets.

    a: (n, d), b: (m, d). Kernel (x.y + 1)^3, 100 subsets of 1,000 (Binkowski et al., 2018). It is
    unbiased, so it can be negative. For smaller sets, a subset has half of the smaller set. The
    deviation is that of a subset, not the error of the mean. The global random state does not
    change. Raises ValueError for fewer than `KID_MIN_IMAGES` images, and as `fid`, for any d.
    """
    a, b = _checked(a, b)
    fewest, remedy = min(len(a), len(b)), "generate or hold out more images"
    rule = f"features of {KID_MIN_IMAGES} or more images each, or KID is noise"
    require(fewest >= KID_MIN_IMAGES, "a and b", rule, fewest, remedy)
    size = min(KID_SUBSET_SIZE, fewest // 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(
            feature=_Identity(a.shape[1]), subsets=KID_SUBSETS, subset_size=size, gamma=KID_GAMMA
        )
    _update(metric, a, b)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def nearest_cosine_distance(generated: Features, training: Features) -> Float64[np.ndarray, "n"]:
    """1 - |cosine| of each generated image to its nearest training image, in [0, 1], for `mifid`.

    generated: (n, d), training: (m, d), vectors of any length. A zero vector has distance 1. Raises
    ValueError for different d, or values that are not finite.
    """
    generated, training = (_unit(x) for x in (generated, training))
    # |cosine| also counts the opposite vector as a copy: as published, for features >= 0.
    gamma = [nearest(x, training, "cosine")[0][:, 0] for x in (generated, -generated)]
    return np.clip(1 - np.maximum(*gamma).astype(np.float64), 0, 1)


def mifid(
    fid: float,
    nearest_cosine_distance: Float[np.ndarray, "n"],
    threshold: float = MIFID_THRESHOLD,
) -> float:
    """FID divided by the mean distance of GENERATED images to training images, if < threshold.

    Bai et al., 2021, with its 1e-14 against division by 0. torchmetrics (1.9) takes the mean over
    training images instead, which misses a few images that are copied often. A penalized value only
    means that it is larger than FID, as the mean distance of copies is rounding error. Raises
    ValueError for no distances, distances outside [0, 1], or a threshold outside (0, 1].
    """
    distance = nearest_cosine_distance
    require(0 < threshold <= 1, "threshold", "in (0, 1]", threshold)
    require(distance.size > 0, "nearest_cosine_distance", "one number per image", distance.shape)
    inside = bool(((distance >= 0) & (distance <= 1)).all())
    remedy = "use quality.nearest_cosine_distance"
    require(inside, "nearest_cosine_distance", "in [0, 1]", _range(distance), remedy)
    mean = float(distance.mean(dtype=np.float64))
    return fid / (mean + 1e-14) if mean < threshold else fid


def _checked(
    a: Features, b: Features
) -> tuple[Float64[np.ndarray, "n d"], Float64[np.ndarray, "m d"]]:
    for name, x in (("a", a), ("b", b)):
        remedy = "generate or hold out more images"
        require(x.ndim == 2 and len(x) >= 2, name, "features of 2 or more images", x.shape, remedy)
        finite = bool(np.isfinite(x).all())
        require(finite, name, "finite", "nan or inf", "check the encoder's input")
    remedy = "encode both with the same encoder"
    require(a.shape[1] == b.shape[1], "b", f"of {a.shape[1]} dimensions", b.shape[1], remedy)
    return a.astype(np.float64), b.astype(np.float64)


def _update(
    metric: FrechetInceptionDistance | KernelInceptionDistance, a: Features, b: Features
) -> None:
    for features, real in ((a, True), (b, False)):
        metric.update(torch.from_numpy(features), real=real)


def _unit(x: Features) -> Float64[np.ndarray, "n d"]:
    norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def _range(x: np.ndarray) -> tuple[float, float]:
    return float(x.min()), float(x.max())
