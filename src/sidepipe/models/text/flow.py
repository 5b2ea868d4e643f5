"""Rectified flow guided by text: Stable Diffusion 3 (Esser et al., 2024) and Flux.

Their transformers predict a velocity at a time in (0, 1]; `diffusion.continuous` calls them at
levels of noise, so that samplers and stages use them as any other network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from sidepipe.diffusion.continuous import Preconditioned, Prediction, flow_levels
from sidepipe.models.continuous import OwnSteps, flow_ratios
from sidepipe.models.text.model import Embeddings, Latents, TextModel, Width
from sidepipe.models.text.sdxl import with_pooled, without_pooled

CLIP = "CLIPTextModelWithProjection"


class FlowModel(TextModel):
    """A transformer that predicts a velocity, at the levels of noise of `flow_levels`.

    steps_from_1: whether the pipeline gives its scheduler equally spaced times from 1 on.
    """

    network_part: ClassVar[str] = "transformer"
    defaults: ClassVar[Mapping[str, bool]] = {}
    steps_offset: ClassVar[int | None] = None
    steps_from_1: ClassVar[bool] = False
    transformer: Any
    text_encoder_2: Any

    def _take_schedule(self, scheduler: Any) -> None:
        levels = flow_levels(1.0)
        self.prediction_type, self.clip_range = levels.prediction_type, None
        self.step_rule = PipelineSteps(
            scheduler=scheduler,
            levels=levels,
            num_patches=math.prod(self.latent_shape[1:]) // self.patch_size**2,
            from_1=self.steps_from_1,
        )
        self.register_buffer("alphas_cumprod", levels.alphas_cumprod.float(), persistent=False)
        self.called = Preconditioned(self.velocity, levels)

    @property
    def patch_size(self) -> int:
        """Latents per side of what the transformer attends to."""
        return self.transformer.config["patch_size"]

    def predict(self, x_t: Latents, t: Int64[Tensor, "n"], e: Embeddings) -> Latents:
        return self.called(x_t, t, e=e).sample

    def velocity(self, x: Latents, time: Float[Tensor, "n"], e: Embeddings) -> Prediction:
        """eps - x_0 predicted at each image's time."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class PipelineSteps(OwnSteps):
    """The levels nearest to the steps that the pipeline takes for images of its size."""

    num_patches: int
    from_1: bool

    def _ratios(self, num_inference_steps: int) -> list[float]:
        config = self.scheduler.config
        scheduler, options = type(self.scheduler).from_config(config), {}
        if config.get("use_dynamic_shifting"):
            options["mu"] = _shift(config, self.num_patches)
        if self.from_1:
            options["sigmas"] = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(num_inference_steps, **options)
        return flow_ratios(scheduler)


def _shift(config: Mapping[str, Any], num_patches: int) -> float:
    """mu of diffusers' `calculate_shift`: linear in the number of patches."""
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    return config["base_shift"] + slope * (num_patches - low)


class StableDiffusion3(FlowModel):
    """Two CLIP encoders side by side, a T5 encoder after them, and both CLIPs' pooled embeddings.

    Without a T5 encoder its positions are 0, as in diffusers' pipeline.
    """

    kind: ClassVar[str] = "StableDiffusion3Pipeline"
    encoders: ClassVar[Mapping[str, str]] = {
        "text_encoder": CLIP,
        "text_encoder_2": CLIP,
        "text_encoder_3": "T5EncoderModel",
    }
    max_t5_tokens: ClassVar[int] = 256

    @staticmethod
    def widths(network: Mapping[str, Any], encoders: Mapping[str, Any]) -> list[Width]:
        both = [encoders["text_encoder"], encoders["text_encoder_2"]]
        pooled = sum(config["projection_dim"] for config in both)
        joint, name = network["joint_attention_dim"], "text_encoder and text_encoder_2"
        found = [Width(f"projection_dim of {name}", pooled, "pooled_projection_dim")]
        if "text_encoder_3" in encoders:
            d_model = encoders["text_encoder_3"]["d_model"]
            found.append(Width("d_model of text_encoder_3", d_model, "joint_attention_dim"))
        clip = max(joint, sum(config["hidden_size"] for config in both))  # narrower is padded
        return [*found, Width(f"hidden_size of {name}", clip, "joint_attention_dim")]

    def embed(self, prompts: Sequence[str]) -> Embeddings:
        one, two = (self.encoded(prompts, name) for name in ("text_encoder", "text_encoder_2"))
        clip = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=2).float()
        width = self.transformer.config["joint_attention_dim"]
        clip = F.pad(clip, (0, width - clip.shape[2]))
        t5 = clip.new_zeros(len(clip), self.max_t5_tokens, width)
        if "text_encoder_3" in self.part_names:
            t5 = self.encoded(prompts, "text_encoder_3", self.max_t5_tokens)[0].float()
        pooled = torch.cat([one.text_embeds, two.text_embeds], dim=1).float()
        return with_pooled(torch.cat([clip, t5], dim=1), pooled)

    def velocity(self, x: Latents, time: Float[Tensor, "n"], e: Embeddings) -> Prediction:
        config, dtype = self.transformer.config, self.transformer.dtype
        length = self.max_tokens + self.max_t5_tokens
        positions, pooled = without_pooled(e.to(dtype), length, config["pooled_projection_dim"])
        found = self.transformer(
            hidden_states=x.to(dtype),
            timestep=1000 * time,
            encoder_hidden_states=positions,
            pooled_projections=pooled,
        )
        return Prediction(found.sample.float())


class Flux(FlowModel):
    """A T5 encoder's positions, and the pooled embedding of a CLIP encoder.

    A model with `guidance_embeds` was distilled for guidance: the scale is an input of its network.
    """

    kind: ClassVar[str] = "FluxPipeline"
    encoders: ClassVar[Mapping[str, str]] = {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    }
    steps_from_1: ClassVar[bool] = True
    max_t5_tokens: ClassVar[int] = 512
    patch_size: ClassVar[int] = 2

    @staticmethod
    def widths(network: Mapping[str, Any], encoders: Mapping[str, Any]) -> list[Width]:
        pooled, t5 = encoders["text_encoder"]["hidden_size"], encoders["text_encoder_2"]["d_model"]
        return [
            Width("hidden_size of text_encoder", pooled, "pooled_projection_dim"),
            Width("d_model of text_encoder_2", t5, "joint_attention_dim"),
        ]

    @property
    def is_distilled(self) -> bool:
        return self.transformer.config["guidance_embeds"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of x_t, by the autoencoder's size of images: the transformer states none."""
        side = self.vae.config["sample_size"] // self.vae_factor
        return self.transformer.config["in_channels"] // self.patch_size**2, side, side

    def embed(self, prompts: Sequence[str]) -> Embeddings:
        positions = self.encoded(prompts, "text_encoder_2", self.max_t5_tokens)[0]
        pooled = self.encoded(prompts, "text_encoder").pooler_output
        return with_pooled(positions.float(), pooled.float())

    def velocity(self, x: Latents, time: Float[Tensor, "n"], e: Embeddings) -> Prediction:
        config, dtype = self.transformer.config, self.transformer.dtype
        positions, pooled = without_pooled(
            e.to(dtype), self.max_t5_tokens, config["pooled_projection_dim"]
        )
        height, width = (side // self.patch_size for side in x.shape[2:])
        scale = torch.full_like(time, self.guidance_scale) if self.is_distilled else None
        found = self.transformer(
            hidden_states=packed(x).to(dtype),
            timestep=time,
            guidance=scale,
            encoder_hidden_states=positions,
            pooled_projections=pooled,
            txt_ids=x.new_zeros(self.max_t5_tokens, 3),
            img_ids=_places(height, width, x),
        )
        return Prediction(unpacked(found.sample.float(), height, width))


def packed(x: Latents) -> Float[Tensor, "n p k"]:
    """Each 2 x 2 latents of an image as one row."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * c)


def unpacked(rows: Float[Tensor, "n p k"], height: int, width: int) -> Latents:
    """The inverse of `packed`; height, width: in rows."""
    x = rows.unflatten(2, (-1, 2, 2)).unflatten(1, (height, width))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _places(height: int, width: int, like: Tensor) -> Float[Tensor, "p 3"]:
    """0, row and column of each packed row."""
    y, x = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (height, width))
    return torch.cartesian_prod(torch.zeros_like(y[:1]), y, x)
