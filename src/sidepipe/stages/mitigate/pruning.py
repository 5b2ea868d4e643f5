"""Pruning of the weights that memorized prompts use most (Chavhan et al., arXiv 2406.18566).

A has a layer's inputs at one step: a row of norm 1 per image and token. A weight W_ij is pruned
where its score |W_ij| ||A_:j|| is among the largest of its row for memorized prompts, and larger
than for ordinary ones, at any of the first steps.

| paper | here      |
|-------|-----------|
| r     | row_share |
| tau   | num_steps |
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from sidepipe.base.settings import require
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import clip_x_0
from sidepipe.models.text.guidance import prompt_guided
from sidepipe.models.text.model import Embeddings, Latents, TextModel
from sidepipe.models.text.trajectory import prompt_timesteps

Layers = Literal["feed_forward", "cross_attention"]
Masks = dict[str, Bool[Tensor, "o i"]]
# Per layer, ||A_:j|| of each step and input.
Norms = dict[str, Float[Tensor, "s i"]]


def linear_layers(network: nn.Module, kind: Layers) -> dict[str, nn.Linear]:
    """The second layer of every feed-forward block, or keys and values of cross-attention."""
    from diffusers.models.attention import FeedForward

    modules = dict(network.named_modules())
    if kind == "feed_forward":
        names = [f"{name}.net.2" for name, m in modules.items() if isinstance(m, FeedForward)]
    else:
        names = [name for name in modules if name.endswith((".attn2.to_k", ".attn2.to_v"))]
    where = "the network for mitigate.method=prune"
    require(bool(names), where, f"one with layers of {kind}", type(network).__name__)
    found = ((name, modules[name]) for name in names)
    return {name: layer for name, layer in found if isinstance(layer, nn.Linear)}


def input_norms(
    model: TextModel,
    layers: Mapping[str, nn.Linear],
    x_T: Latents,
    e: Embeddings,
    *,
    guidance_scale: float,
    num_inference_steps: int,
    num_steps: int,
    batch_size: int,
) -> Norms:
    """||A_:j|| of each layer in the first `num_steps` of the images' guided trajectories.

    A mean over images takes the place of the sum, so that sets of several sizes compare.
    """
    e_0 = model.encode([""])
    timesteps = prompt_timesteps(model, num_inference_steps)[:num_steps]
    squares = {
        name: torch.zeros(len(timesteps), layer.in_features, device=model.device)
        for name, layer in layers.items()
    }
    for some_x_T, some_e in zip(x_T.split(batch_size), e.split(batch_size), strict=True):
        eps_fn = prompt_guided(model, some_e, e_0, guidance_scale)
        eps_fn = clip_x_0(eps_fn, model.alphas_cumprod, model.clip_range)
        with _squares(layers) as seen:
            ddim(eps_fn, some_x_T, timesteps, model.alphas_cumprod)
        for name, steps in seen.items():
            squares[name] += torch.stack(steps)
    return {name: (sums / len(x_T)).sqrt() for name, sums in squares.items()}


@contextmanager
def _squares(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, list[Tensor]]]:
    """Per layer, the sum of A_:j^2 of every evaluation within this context."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(name: str) -> Any:
        def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            # A guided evaluation has the empty prompt's images first.
            inputs = args[0][len(args[0]) // 2 :].flatten(0, -2)
            seen[name].append(normalize(inputs.float(), dim=1).square().sum(0))

        return look

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def masks_of(
    layers: Mapping[str, nn.Linear], memorized: Norms, ordinary: Norms, row_share: float
) -> Masks:
    """The weights that `memorized` prompts use more than `ordinary` ones, united over the steps."""
    masks = {}
    for name, layer in layers.items():
        steps = zip(memorized[name], ordinary[name], strict=True)
        found = [_step_mask(layer.weight.detach(), *step, row_share) for step in steps]
        masks[name] = torch.stack(found).any(0)
    return masks


def _step_mask(
    weight: Float[Tensor, "o i"],
    memorized: Float[Tensor, "i"],
    ordinary: Float[Tensor, "i"],
    row_share: float,
) -> Bool[Tensor, "o i"]:
    scores, rivals = weight.abs() * memorized, weight.abs() * ordinary
    most = math.ceil(round(row_share * weight.shape[1], 9))
    top = torch.zeros_like(scores, dtype=torch.bool)
    top.scatter_(1, scores.topk(most, dim=1).indices, True)
    return top & (scores > rivals)


def shuffled(masks: Masks, seed: int) -> Masks:
    """Random masks with as many weights in each row."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, mask in masks.items():
        order = torch.rand(mask.shape, generator=generator).argsort(1)
        found[name] = mask.gather(1, order.to(mask.device))
    return found


def overlap(one: Masks, other: Masks) -> float | None:
    """The weights in both masks per weight in either (IoU), over all layers; None for none."""
    both = sum(int((one[name] & other[name]).sum()) for name in one)
    either = sum(int((one[name] | other[name]).sum()) for name in one)
    return both / either if either else None


def density(masks: Masks) -> float:
    """The share of pruned weights among those of all masked layers."""
    weights = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / weights


@torch.no_grad()
def prune(layers: Mapping[str, nn.Linear], masks: Masks) -> None:
    """Sets the masked weights to 0, in place."""
    for name, layer in layers.items():
        layer.weight.masked_fill_(masks[name], 0)
