"""Samples images of prompts, and keeps the values that every signal is computed from."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sidepipe.base.settings import require
from sidepipe.models.text.guidance import noise_difference, norms
from sidepipe.models.text.model import Embeddings, Latents, TextModel
from sidepipe.models.text.trajectory import prompt_noise, prompt_timesteps, sample
from sidepipe.stages.detect import signals as s

log = logging.getLogger(__name__)

Images = UInt8[Tensor, "n h w c"]
Found = dict[str, Tensor]
Result = TypeVar("Result")
InBatches = Callable[[Callable[[slice], Result], int], list[Result]]


@dataclass(frozen=True)
class Watch:
    """Settings of an observation. attention_layer: from 1, as evaluated; None for the mean."""

    num_generations: int
    num_inference_steps: int
    guidance_scale: float
    signals: Sequence[str]
    attention_layer: int | None
    seed: int


def observe(
    model: TextModel,
    captions: Sequence[str],
    numbers: range,
    watch: Watch,
    in_batches: InBatches,
    in_smaller: InBatches,
) -> tuple[dict[str, np.ndarray], UInt8[np.ndarray, "p n h w c"]]:
    """Values for the signals, one row per prompt, and the images.

    numbers: those of the captions, which decide their noise. in_batches, in_smaller: from
    `halving`, the latter for steps that need more memory than sampling.
    """
    count, n = len(captions), watch.num_generations
    x_T = prompt_noise(model, watch.seed, numbers, n)
    e, e_0 = model.encode(captions), model.encode([""])
    of_prompt = torch.arange(count, device=model.device).repeat_interleave(n)

    def step(some: slice) -> tuple[Found, Images]:
        return _observe_batch(model, x_T[some], e[of_prompt[some]], e_0, watch)

    def sharpness(some: slice) -> Tensor:
        t = prompt_timesteps(model, watch.num_inference_steps)[0]
        return s.hessian_norms(model, x_T[some], t, e[of_prompt[some]], e_0)

    found, images = zip(*in_batches(step, len(x_T)), strict=True)
    seen = {name: torch.cat([some[name] for some in found]) for name in found[0]}
    if "hessian" in watch.signals:
        seen["hessian"] = torch.cat(in_smaller(sharpness, len(x_T)))
    seen = {name: rows.unflatten(0, (count, n)) for name, rows in seen.items()}
    pictures = torch.cat(images).unflatten(0, (count, n))
    _compare(seen, pictures, watch)
    return {name: rows.cpu().numpy() for name, rows in seen.items()}, pictures.cpu().numpy()


def _compare(seen: Found, pictures: Images, watch: Watch) -> None:
    """Adds values of pairs of a prompt's generations, and removes their sources."""
    if "ssim" in watch.signals:
        seen["ssim"] = torch.stack([s.pair_ssim(own) for own in seen.pop("residual")])
    if "tile_l2" in watch.signals:
        seen["tile_l2"] = torch.stack([s.pair_tile_distance(own) for own in pictures])


def _observe_batch(
    model: TextModel, x_T: Latents, e: Embeddings, e_0: Embeddings, watch: Watch
) -> tuple[Found, Images]:
    """Values and images of generations that may belong to any prompts."""
    lengths: list[Tensor] = []
    eps: list[Tensor] = []

    def look(t: int, eps_0: Latents, difference: Latents) -> None:
        lengths.append(norms(difference))
        if not eps:  # the first step's, with the prompt alone
            eps.append(eps_0 + difference)

    images = sample(model, x_T, e, e_0, watch.guidance_scale, watch.num_inference_steps, look=look)
    found = {"norm": torch.stack(lengths, dim=1)}
    if "ssim" in watch.signals:
        found["residual"] = s.residuals(x_T, eps[0])
    if "entropy" in watch.signals:
        t = prompt_timesteps(model, watch.num_inference_steps)[0]
        entropy = s.attention_entropy(model, x_T, t, e)
        found["entropy"] = _of_layer(entropy, watch.attention_layer)
    return found, images


def _of_layer(entropy: Tensor, layer: int | None) -> Tensor:
    if layer is None:
        return entropy.mean(1)
    most = entropy.shape[1]
    require(layer <= most, "detect.attention_layer", f"<= {most}, the model's layers", layer)
    return entropy[:, layer - 1]


def require_guidance(
    model: TextModel, captions: Sequence[str], seed: int, num_inference_steps: int
) -> None:
    """Raises ValueError where prompts do not change the prediction, or the change is not finite."""
    x_T, e = prompt_noise(model, seed, range(len(captions)), 1), model.encode(captions)
    t = prompt_timesteps(model, num_inference_steps)[0]
    with torch.no_grad():
        _, difference = noise_difference(model, x_T, t, e, model.encode([""]))
    largest = float(norms(difference).max())
    name = "|| D_t ||, the change of the prediction by a prompt,"
    require(np.isfinite(largest), name, "finite", largest, "use detect.precision=32-true")
    if largest == 0:
        raise ValueError(
            f"{name} is 0 for every prompt: the model ignores its prompt, and was not trained for "
            "classifier-free guidance"
        )


def halving(batch_size: int) -> InBatches:
    """A function that calls a step on batches of items, smaller ones after memory was full."""
    size = batch_size

    def in_batches(step: Callable[[slice], Result], count: int) -> list[Result]:
        nonlocal size
        found: list[Result] = []
        start = 0
        while start < count:
            stop = min(start + size, count)
            try:
                found.append(step(slice(start, stop)))
                start = stop
                continue
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside of `except`, whose traceback keeps the step's tensors alive.
            size = (stop - start + 1) // 2
            torch.cuda.empty_cache()
            log.warning("memory is full; continuing with %d images at once", size)
        return found

    return in_batches
