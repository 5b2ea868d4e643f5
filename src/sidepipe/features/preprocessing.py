"""Published preprocessing of images in [0, 1] for networks: resizing, cropping, normalization."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Mean and standard deviation of the channels.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def resize(
    x: Float[Tensor, "b 3 h w"], height: int, width: int, mode: Literal["bilinear", "bicubic"]
) -> Float[Tensor, "b 3 h2 w2"]:
    # Bicubic overshoots; the published transforms clip, since they resize 8-bit images.
    return F.interpolate(x, (height, width), mode=mode, antialias=True).clamp_(0, 1)


def resize_and_crop(x: Float[Tensor, "b 3 h w"], size: int, crop: int) -> Float[Tensor, "b 3 s s"]:
    """The shorter side resized to `size`, bicubic, then the central square of `crop`."""
    height, width = x.shape[2:]
    shorter = min(height, width)
    x = resize(x, size * height // shorter, size * width // shorter, "bicubic")
    top, left = (x.shape[2] - crop) // 2, (x.shape[3] - crop) // 2
    return x[:, :, top : top + crop, left : left + crop]


def normalize(
    x: Float[Tensor, "b 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]
