"""Edited copies of images, to learn from: crops, colors, patches, blur, noise, JPEG, mixtures.

Images are in [-1, 1]. Every edit is a function of an image and of uniform numbers in [0, 1), one
set an image, so what a step shows follows from its generator alone. How strong an edit is follows
from the size: what a person still takes for a copy at 128 pixels leaves nothing of 8.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

# Numbers an image needs, by what they decide.
DRAWS = (
    *("flip", "area", "aspect", "left", "top"),
    *("contrast", "brightness", "saturation", "red", "green", "blue", "recolor"),
    *("patch", "patch_height", "patch_width", "patch_left", "patch_top", "patch_gray"),
    *("blur", "sigma", "noise", "jpeg", "quality"),
    *("mix", "cut", "share_1", "share_2", "share_3", "cut_left", "cut_top"),
)
MIN_CROP_PIXELS = 6
MIX_PROBABILITY = 0.05  # as in SSCD's published training
# Quantization of luminance in the JPEG standard (ITU T.81, table K.1).
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)

Images = Float[Tensor, "n c h w"]
Draws = dict[str, Float[Tensor, "n"]]


def draws(generator: torch.Generator, count: int, share: tuple[int, int] = (0, 1)) -> Draws:
    """Uniform numbers for `count` images, by name: those of rank share[0] of share[1] ranks."""
    rank, world = share
    uniform = torch.rand((count * world, len(DRAWS)), generator=generator, device=generator.device)[
        rank * count : (rank + 1) * count
    ]
    return dict(zip(DRAWS, uniform.unbind(1), strict=True))


def edited(x: Images, u: Draws, eps: Images) -> Images:
    """One edited copy of each image, in [-1, 1]. eps: standard normal noise."""
    x = patched(recolored(cropped(x, u), u), u)
    x = blurred(x, u)
    x = x + 0.12 * _column(u["noise"] ** 2) * eps
    return recompressed(x.clamp(-1, 1), u).clamp(-1, 1)


def cropped(x: Images, u: Draws) -> Images:
    """A part of each image resized to the whole, half of them mirrored.

    It keeps at least half of each side and at least `MIN_CROP_PIXELS`, every area equally often.
    """
    side = min(1.0, max(0.5, MIN_CROP_PIXELS / x.shape[3]))
    area = 1 - (1 - side**2) * u["area"]
    aspect = torch.exp((u["aspect"] - 0.5) * 2 * math.log(4 / 3))
    width, height = ((area * a).sqrt().clamp(side, 1) for a in (aspect, 1 / aspect))
    theta = x.new_zeros((len(x), 2, 3))
    theta[:, 0, 0] = torch.where(u["flip"] < 0.5, -width, width)
    theta[:, 0, 2] = (2 * u["left"] - 1) * (1 - width)
    theta[:, 1, 1] = height
    theta[:, 1, 2] = (2 * u["top"] - 1) * (1 - height)
    places = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)


def recolored(x: Images, u: Draws) -> Images:
    """Other contrast and brightness; of RGB images also other saturation and a cast."""
    gray = x.mean(1, keepdim=True)
    if x.shape[1] == 3:
        x = gray + (x - gray) * _column(2 * u["saturation"] * (u["recolor"] > 0.1))
        cast = torch.stack([u["red"], u["green"], u["blue"]], 1) - 0.5
        x = x + 0.3 * cast[:, :, None, None]
    middle = gray.mean((2, 3), keepdim=True)
    contrast = torch.exp((u["contrast"] - 0.5) * 2 * math.log(1.8))
    return middle + (x - middle) * _column(contrast) + _column(u["brightness"] - 0.5)


def patched(x: Images, u: Draws) -> Images:
    """A gray rectangle over every seventh image or so, up to a third of a side."""
    height, width = ((u[f"patch_{s}"] * x.shape[3] / 3).ceil() for s in ("height", "width"))
    inside = _rectangle(x, height, width, u["patch_left"], u["patch_top"])
    inside = inside & _column(u["patch"] < 0.15)
    return torch.where(inside, _column(2 * u["patch_gray"] - 1), x)


def blurred(x: Images, u: Draws) -> Images:
    """Gaussian blur of a quarter of the images, with a deviation up to a sixteenth of the side."""
    n, c, h, w = x.shape
    sigma = (u["sigma"] * w / 16).clamp(min=1e-3)
    sigma = torch.where(u["blur"] < 0.25, sigma, 1e-3)  # 1e-3: the image itself
    radius = max(1, round(w / 8))
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    x = F.pad(x, (radius, radius, radius, radius), mode="replicate").reshape(
        1, n * c, -1, w + 2 * radius
    )
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * c)
    return F.conv2d(x, kernel[:, None, :, None], groups=n * c).reshape(n, c, h, w)


def recompressed(x: Images, u: Draws) -> Images:
    """A quarter of the images as JPEG of quality 20 to 95 would leave them.

    Every channel is quantized as luminance, none at half resolution: near enough to learn from.
    """
    h, w = x.shape[2:]
    # The files hold whole numbers, less 128.
    padded = F.pad(127.5 * x - 0.5, (0, -w % 8, 0, -h % 8), mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)
    quality = 20 + 75 * u["quality"]
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    table = x.new_tensor(LUMINANCE).reshape(8, 8) * scale[:, None, None]
    steps = (table + 0.5).floor().clamp(min=1)[:, None, None, None]
    dct = _cosines(x)
    rounded = (dct @ blocks @ dct.T / steps).round() * steps
    rows = (dct.T @ rounded @ dct).permute(0, 1, 2, 4, 3, 5)
    whole = (rows.reshape(padded.shape)[:, :, :h, :w] + 0.5) / 127.5
    return torch.where(_column(u["jpeg"] < 0.25), whole, x)


def mixed(x: Images, u: Draws) -> tuple[Images, Int64[Tensor, "n 2"]]:
    """Some images mixed with their neighbor, and which two images each now holds.

    Images 2 i and 2 i + 1 are neighbors, so that ranks with even shares need no others' images;
    the last of an odd number has none.
    Half of the mixtures are blends (MixUp), half have a rectangle of the neighbor (CutMix), with
    shares from Beta(2, 2), the distribution of the median of three uniform numbers. A plain image
    holds itself twice.
    """
    own = torch.arange(len(x), device=x.device)
    other = (own ^ 1).clamp(max=len(x) - 1)
    share = torch.stack([u["share_1"], u["share_2"], u["share_3"]]).median(0).values
    blend = torch.lerp(x, x[other], _column(share))
    side = share.sqrt() * x.shape[3]
    cut = torch.where(_rectangle(x, side, side, u["cut_left"], u["cut_top"]), x[other], x)
    chosen = u["mix"] < MIX_PROBABILITY
    mixture = torch.where(_column(u["cut"] < 0.5), blend, cut)
    ids = torch.stack([own, torch.where(chosen, other, own)], 1)
    return torch.where(_column(chosen), mixture, x), ids


def _rectangle(x: Images, height: Tensor, width: Tensor, left: Tensor, top: Tensor) -> Tensor:
    """Mask (n, 1, h, w) of rectangles; height and width in pixels, left and top in [0, 1)."""

    def along(count: int, side: Tensor, start: Tensor) -> Tensor:
        places = torch.arange(count, device=x.device) + 0.5 - (start * (count - side))[:, None]
        return (places > 0) & (places < side[:, None])

    rows, columns = along(x.shape[2], height, top), along(x.shape[3], width, left)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _cosines(x: Images) -> Float[Tensor, "8 8"]:
    """The orthonormal DCT-II of eight values."""
    k, i = torch.arange(8.0, device=x.device)[:, None], torch.arange(8.0, device=x.device)
    basis = torch.cos(math.pi / 8 * (i + 0.5) * k) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _column(values: Tensor) -> Tensor:
    """One value an image, to be spread over its pixels."""
    return values[:, None, None, None]
