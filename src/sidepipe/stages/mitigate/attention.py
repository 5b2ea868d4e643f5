"""Attention scaling: less cross-attention to the tokens that carry memorized images.

Ren et al. ("Unveiling and Mitigating Memorization in Text-to-image Diffusion Models through Cross
Attention", 2024): no pixel attends to the summary tokens (the end token and the padding after it),
and every pixel's logit of the start token is multiplied by a constant. It costs no evaluation.
The authors' code keeps the end token itself; this module follows the paper.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sidepipe.base.settings import require
from sidepipe.models.text.model import TextModel


class ScaledAttention:
    """diffusers' attention processor for the cross-attention of prompts.

    seen: the positions that each prompt's image may attend to. This applies to the last n images of
    a batch: in classifier-free guidance, those of the empty prompt come before them.
    """

    def __init__(self, seen: Bool[Tensor, "n l"], start_scale: float) -> None:
        self.bias = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
        self.start_scale = start_scale

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b s c"],
        encoder_hidden_states: Float[Tensor, "b l d"],
        attention_mask: None = None,
        temb: None = None,
    ) -> Float[Tensor, "b s c"]:
        query = self._heads(attn, attn.to_q(hidden_states))
        key = self._heads(attn, attn.to_k(encoder_hidden_states))
        value = self._heads(attn, attn.to_v(encoder_hidden_states))
        plain = len(key) - len(self.bias)
        # A key times a number gives its logits times that number.
        scale = torch.ones(len(key), 1, key.shape[2], 1, dtype=key.dtype, device=key.device)
        scale[plain:, :, 0] = self.start_scale
        bias = F.pad(self.bias, (0, 0, plain, 0))[:, None, None].to(query.dtype)
        found = F.scaled_dot_product_attention(query, key * scale, value, attn_mask=bias)
        out, dropout = attn.to_out
        return dropout(out(found.transpose(1, 2).flatten(2)))

    @staticmethod
    def _heads(attn: Any, x: Float[Tensor, "b s c"]) -> Float[Tensor, "b h s _"]:
        return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


@contextmanager
def attention_scaled(
    model: TextModel, lengths: Sequence[int], start_scale: float
) -> Iterator[None]:
    """The context in which cross-attention is scaled, for a batch of these prompts in this order.

    lengths: the number of positions before each prompt's end token.
    """
    positions = torch.arange(model.max_tokens, device=model.device)
    seen = positions < torch.tensor(lengths, device=model.device)[:, None]
    before = model.network.attn_processors
    scaled = ScaledAttention(seen, start_scale)
    where, kind = "the network for mitigate.method=attention", type(model.network).__name__
    require(model.network_part == "unet", where, "a UNet with cross-attention", kind)
    cross = {name: scaled if ".attn2." in name else own for name, own in before.items()}
    model.network.set_attn_processor(cross)
    try:
        yield
    finally:
        model.network.set_attn_processor(before)
