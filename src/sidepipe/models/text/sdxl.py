"""SDXL: two text encoders, a pooled embedding and the sizes of images (Podell et al., 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from sidepipe.models.text.model import Embeddings, Latents, TextModel, Width

NUM_TIME_IDS = 6  # original size, corner of the crop and size, each by height and width


class StableDiffusionXL(TextModel):
    """Both encoders' penultimate hidden states side by side, and the second one's pooled embedding.

    force_zeros_for_empty_prompt: whether the empty prompt is all zeros, as diffusers' pipeline has
    it without a negative prompt. Every image counts as neither resized nor cropped.
    """

    kind: ClassVar[str] = "StableDiffusionXLPipeline"
    encoders: ClassVar[Mapping[str, str]] = {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    defaults: ClassVar[Mapping[str, bool]] = {"force_zeros_for_empty_prompt": True}
    steps_offset: ClassVar[int | None] = None
    text_encoder_2: Any

    @staticmethod
    def widths(network: Mapping[str, Any], encoders: Mapping[str, Any]) -> list[Width]:
        both = sum(config["hidden_size"] for config in encoders.values())
        added = NUM_TIME_IDS * network["addition_time_embed_dim"]
        added += encoders["text_encoder_2"]["projection_dim"]
        return [
            Width("hidden_size of text_encoder and text_encoder_2", both, "cross_attention_dim"),
            Width(
                "projection_dim of text_encoder_2, with the sizes of images,",
                added,
                "projection_class_embeddings_input_dim",
            ),
        ]

    def embed(self, prompts: Sequence[str]) -> Embeddings:
        one, two = (self.encoded(prompts, encoder) for encoder in self.encoders)
        positions = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=2)
        e = with_pooled(positions.float(), two.text_embeds.float())
        if self.settings["force_zeros_for_empty_prompt"]:
            is_given = torch.tensor([prompt != "" for prompt in prompts], device=e.device)
            e = e * is_given[:, None, None]
        return e

    def predict(self, x_t: Latents, t: Int64[Tensor, "n"], e: Embeddings) -> Latents:
        dtype = self.unet.dtype
        width = self.text_encoder_2.config.projection_dim
        positions, pooled = without_pooled(e.to(dtype), self.max_tokens, width)
        _, *size = self.image_shape
        time_ids = torch.tensor([*size, 0, 0, *size], device=e.device).expand(len(e), -1)
        more = {"text_embeds": pooled, "time_ids": time_ids}
        found = self.unet(x_t.to(dtype), t, encoder_hidden_states=positions, added_cond_kwargs=more)
        return found.sample


def with_pooled(positions: Float[Tensor, "n l d"], pooled: Float[Tensor, "n p"]) -> Embeddings:
    """The pooled embedding in as many more rows as it needs, padded with 0."""
    rows = F.pad(pooled, (0, -pooled.shape[1] % positions.shape[2]))
    return torch.cat([positions, rows.unflatten(1, (-1, positions.shape[2]))], dim=1)


def without_pooled(
    e: Embeddings, length: int, width: int
) -> tuple[Float[Tensor, "n l d"], Float[Tensor, "n p"]]:
    """The rows of positions, and the pooled embedding, as given to `with_pooled`."""
    return e[:, :length], e[:, length:].flatten(1)[:, :width]
