"""Scores of prompts: the first step's || D_T ||, or how alike the images of several seeds are."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from sidepipe.models.text.guidance import norms
from sidepipe.models.text.model import Latents, TextModel
from sidepipe.models.text.trajectory import prompt_timesteps, sample
from sidepipe.stages.detect.signals import pair_tile_distance

Scored = Callable[[Sequence[str]], Float[np.ndarray, "q"]]


@torch.no_grad()
def first_step_energy(
    model: TextModel, x_T: Latents, num_inference_steps: int, batch_size: int
) -> Scored:
    """|| D_T || of a prompt, the mean over `x_T`: len(x_T) network evaluations per prompt.

    The prediction for the empty prompt is computed once.
    """
    t = prompt_timesteps(model, num_inference_steps)[0]
    eps_0 = model.eps(x_T, t, model.encode([""]).expand(len(x_T), -1, -1))

    @torch.no_grad()
    def energy(prompts: Sequence[str]) -> Float[np.ndarray, "q"]:
        found = []
        for start in range(0, len(prompts), batch_size):
            e = model.encode(prompts[start : start + batch_size])
            each = [
                norms(model.eps(x.expand(len(e), *x.shape), t, e) - e_0)
                for x, e_0 in zip(x_T, eps_0, strict=True)
            ]
            found.append(torch.stack(each).mean(0))
        return torch.cat(found).cpu().numpy().astype(np.float64)

    return energy


def image_likeness(
    model: TextModel, x_T: Latents, guidance_scale: float, num_inference_steps: int, batch_size: int
) -> Scored:
    """Minus the mean distance (by tiles) of a prompt's images from `x_T`, which needs images alone.

    Each prompt is len(x_T) queries of images.
    """
    e_0, each = model.encode([""]), len(x_T)

    def likeness(prompts: Sequence[str]) -> Float[np.ndarray, "q"]:
        e = model.encode(prompts).repeat_interleave(each, 0)
        noise = x_T.repeat(len(prompts), 1, 1, 1)
        images = torch.cat(
            [
                sample(model, some, e[i : i + batch_size], e_0, guidance_scale, num_inference_steps)
                for i in range(0, len(e), batch_size)
                for some in [noise[i : i + batch_size]]
            ]
        ).unflatten(0, (len(prompts), each))
        pairs = np.triu_indices(each, 1)
        return np.array([-pair_tile_distance(own).cpu().numpy()[pairs].mean() for own in images])

    return likeness


def masked_proposals(
    network: Any, tokenizer: Any, words: Sequence[str], num_candidates: int
) -> Callable[[Int64[np.ndarray, "l"], int], Int64[np.ndarray, "c"]]:
    """The words that a masked language model finds most likely at a place of a prompt."""
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(words)))

    @torch.no_grad()
    def propose(prompt: Int64[np.ndarray, "l"], place: int) -> Int64[np.ndarray, "c"]:
        text = [words[int(word)] for word in prompt]
        text[place] = tokenizer.mask_token
        inputs = tokenizer(" ".join(text), return_tensors="pt")
        at = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        logits = network(**inputs).logits[0, at]
        return logits[ids].topk(min(num_candidates, len(ids))).indices.numpy()

    return propose
