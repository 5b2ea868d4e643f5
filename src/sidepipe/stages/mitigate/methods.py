"""Mitigation at inference: changes of a prompt or its embedding before sampling.

Each image is mitigated by itself. Attention scaling changes the network and not the prompt: see
`attention.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sidepipe.models.text.guidance import norms
from sidepipe.models.text.model import Embeddings, Latents, TextModel


def lowered(
    model: TextModel,
    x_T: Latents,
    t: int,
    e: Embeddings,
    e_0: Float[Tensor, "1 l d"],
    target: float,
    lr: float,
    max_iterations: int,
) -> tuple[Embeddings, Int64[Tensor, "n"]]:
    """Embeddings with || D_T || <= `target`, or the last ones, and each image's evaluations.

    AdamW changes the embedding of every position but the first (Wen et al., 2024, section 5.1);
    t: that of the first step. An embedding with a low enough norm keeps its value while AdamW
    changes others. A forward counts as one evaluation, a backward as two. The authors' code has one
    norm for the whole batch, with a target for four images; here each image has its own.
    """
    with torch.no_grad():
        eps_0 = model.eps(x_T, t, e_0.expand_as(e))
    e = e.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([e], lr=lr)
    evaluations = torch.ones(len(e), dtype=torch.int64, device=e.device)
    left = torch.ones_like(evaluations, dtype=torch.bool)
    for _ in range(max_iterations):
        losses = norms(model.eps(x_T, t, e) - eps_0)
        evaluations += left  # also for embeddings that this forward finds low enough
        left = losses.detach() > target
        if not left.any():
            break
        before = e.detach().clone()
        (e.grad,) = torch.autograd.grad(losses.sum(), e)
        optimizer.step()
        # Momentum and decay also change embeddings without a gradient.
        still = ~left[:, None, None] | (torch.arange(e.shape[1], device=e.device) == 0)[:, None]
        e.data.copy_(torch.where(still, before, e.data))
        evaluations += 2 * left
    return e.detach(), evaluations


def with_words(prompt: str, words: Sequence[str], rng: np.random.Generator) -> str:
    """The prompt with these words at random places (Somepalli et al., 2023).

    The prompt's own words keep their order.
    """
    own = prompt.split()
    for word in words:
        own.insert(int(rng.integers(len(own) + 1)), word)
    return " ".join(own)


def without_word(tokenizer: Any, prompt: str, position: int) -> str:
    """The prompt without the word, between spaces, that contains the token at `position`."""
    inputs = tokenizer(
        prompt, truncation=True, max_length=tokenizer.model_max_length, return_offsets_mapping=True
    )
    start, end = inputs["offset_mapping"][position]
    before, after = prompt[:start], prompt[end:]
    kept = before.rsplit(maxsplit=1)[:-1] if before and not before[-1].isspace() else [before]
    rest = after.split(maxsplit=1)[1:] if after and not after[0].isspace() else [after]
    return " ".join(" ".join([*kept, *rest]).split())
