"""Signals of memorization other than || D_t ||, which is in `sidepipe.models.text`.

Each is a function of tensors alone. Pairs are generations of one prompt with different x_T: a
memorized prompt leads all of them to one image.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from sidepipe.base.settings import require
from sidepipe.models.text.guidance import noise_difference, norms
from sidepipe.models.text.model import Embeddings, Latents, TextModel

TILES = 4  # per side, as Carlini et al. cut images of 512 pixels into 16
WINDOW = 7  # pixels per side of SSIM's window, smaller for smaller images


def hessian_norms(
    model: TextModel, x_t: Latents, t: int, e: Embeddings, e_0: Float[Tensor, "1 l d"]
) -> Float[Tensor, "n"]:
    """|| H s ||_2 of each image: how much sharper the prompt makes log p (Jeon et al., 2025).

    The score difference is s = -D_t / sqrt(1 - alpha_bar_t), and H its Jacobian in x_t, so that
    H s = J D_t / (1 - alpha_bar_t) with J the Jacobian of D_t.
    """

    with torch.no_grad(), _forward_derivatives(model):
        _, direction = noise_difference(model, x_t, t, e, e_0)
        dual = noise_difference(
            model, forward_ad.make_dual(x_t, direction.to(x_t.dtype)), t, e, e_0
        )[1]
        product = forward_ad.unpack_dual(dual).tangent
    assert product is not None  # x_t has one
    return norms(product) / (1 - model.alphas_cumprod[t])


@contextmanager
def _forward_derivatives(model: TextModel) -> Iterator[None]:
    """A context in which dual numbers pass through the model, without fused attention, autocast."""
    autocast, model.autocast = model.autocast, None
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # torch warns about its own code, which it compiles at the first derivative.
            warnings.filterwarnings("ignore", r"`torch\.jit\.script` is", DeprecationWarning)
            with forward_ad.dual_level():
                yield
    finally:
        model.autocast = autocast


@contextmanager
def attention_maps(unet: nn.Module) -> Iterator[list[Float[Tensor, "n l"]]]:
    """A list to which each cross-attention layer adds its map, the mean over heads and places.

    It uses hooks, so the processor of an attention layer still computes its output.
    """
    maps: list[Tensor] = []

    def record(attention: Any, args: Any, kwargs: Any) -> None:
        x, context = args[0], kwargs["encoder_hidden_states"]
        query, key = attention.to_q(x), attention.to_k(context)
        query, key = attention.head_to_batch_dim(query), attention.head_to_batch_dim(key)
        scores = attention.get_attention_scores(query, key).float()
        maps.append(scores.unflatten(0, (len(x), -1)).mean((1, 2)))

    layers = [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]
    require(len(layers) > 0, "the UNet's cross-attention", "at least one layer", 0)
    hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for m in layers]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def attention_entropy(
    model: TextModel, x_t: Latents, t: int, e: Embeddings
) -> Float[Tensor, "n k"]:
    """Entropy over a prompt's positions of each layer's mean cross-attention (Ren et al., 2024).

    Memorized prompts have higher entropy: attention to others concentrates on the start token.
    """
    with attention_maps(model.network) as maps, torch.no_grad():
        model.eps(x_t, t, e)
    return torch.special.entr(torch.stack(maps, dim=1)).sum(-1)


def residuals(x_T: Latents, eps: Latents) -> Latents:
    """eps - x_T of the first step, each channel of each image stretched to [0, 1].

    As in NeMo (Hintersdorf et al., 2024): the noise predicted for a memorized prompt shows the
    image it leads to, whatever the x_T.
    """
    difference = eps - x_T
    low, high = difference.amin((2, 3), keepdim=True), difference.amax((2, 3), keepdim=True)
    return (difference - low) / (high - low).clamp_min(1e-12)


def pair_ssim(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n n"]:
    """SSIM of every pair of images in [0, 1] (Wang et al., 2004), at one scale, in whole windows.

    NeMo uses three scales, for which small images are too small.
    """
    side = min(images.shape[2:])
    window = min(WINDOW, side - 1 + side % 2)  # odd

    def local(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1)

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        mean_a, mean_b = local(a), local(b)
        variances = local(a * a) - mean_a**2 + local(b * b) - mean_b**2
        covariance = local(a * b) - mean_a * mean_b
        top = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
        return (top / (mean_a**2 + mean_b**2 + 0.01**2) / (variances + 0.03**2)).mean((1, 2, 3))

    return _of_pairs(images, similarity, itself=1.0)


def pair_tile_distance(images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n n"]:
    """The largest distance of two images' 4 x 4 tiles (Carlini et al., 2023, section 4.2).

    Distances are root-mean-square differences in units of [0, 1]. Rows and columns beyond whole
    tiles are left out.
    """
    x = images.permute(0, 3, 1, 2).float() / 255
    height, width = (side // TILES for side in x.shape[2:])
    require(min(height, width) >= 1, "images", f">= {TILES} pixels per side", tuple(x.shape[2:]))
    x = x[:, :, : TILES * height, : TILES * width]

    def distance(a: Tensor, b: Tensor) -> Tensor:
        squares = F.avg_pool2d((a - b).square().mean(1, keepdim=True), (height, width))
        return squares.flatten(1).amax(1).sqrt()

    return _of_pairs(x, distance, itself=0.0)


def _of_pairs(images: Tensor, compare: Any, itself: float) -> Float[Tensor, "n n"]:
    """`compare` of each image with each other one; itself: its value for equal images."""
    found = torch.full((len(images), len(images)), itself, device=images.device)
    # One row at a time: all pairs at once would take n times the memory.
    for i in range(len(images) - 1):
        row = compare(images[i : i + 1].expand_as(images[i + 1 :]), images[i + 1 :])
        found[i, i + 1 :] = found[i + 1 :, i] = row
    return found
