"""A text-conditional diffusion model, of pixels or of latents: encode prompts, predict eps, decode.

It has the parts of a diffusers pipeline folder; later stages use nothing else of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from sidepipe.base.images import to_model, to_uint8
from sidepipe.diffusion.finite import NOT_FINITE
from sidepipe.diffusion.schedule import eps_from_prediction
from sidepipe.diffusion.timesteps import StepRule

Embeddings = Float[Tensor, "n l d"]
Latents = Float[Tensor, "n c h w"]
# Decoding an image takes far more memory than predicting its noise, and far less time.
DECODED_AT_ONCE = 4


@dataclass(frozen=True)
class Tokens:
    """A tokenized prompt.

    words: the text of each position, with special tokens and without padding. cut: the text that
    exceeds `max_tokens`, "" where the whole prompt fits.
    """

    words: list[str]
    cut: str


class TextModel(nn.Module):
    """A UNet2DConditionModel with its text encoder and, for a latent model, its autoencoder.

    unet, text_encoder, vae: modules of diffusers and transformers; vae is None for a model of
    images. alphas_cumprod: (T,). prediction_type: "epsilon", "v_prediction" or "sample". step_rule:
    that of its scheduler. autocast: the dtype of the UNet's operations, None for no cast.
    clip_range: pred_x_0 of images is clipped to [-clip_range, clip_range], None for no clipping;
    latents are never clipped. Networks run in their own dtype; x_t and embeddings are float32
    outside, and so is eps where the network predicts it.
    """

    unet: Any
    text_encoder: Any
    vae: Any
    alphas_cumprod: Tensor

    def __init__(
        self,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        vae: Any | None,
        alphas_cumprod: Float[Tensor, "T"],
        prediction_type: str,
        step_rule: StepRule = StepRule(),  # noqa: B008
        autocast: torch.dtype | None = None,
        clip_range: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.vae = unet, text_encoder, vae
        self.tokenizer, self.prediction_type = tokenizer, prediction_type
        self.step_rule, self.autocast = step_rule, autocast
        self.clip_range = clip_range if vae is None else None
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.alphas_cumprod.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of x_t."""
        size = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config["in_channels"], height, width

    @property
    def max_tokens(self) -> int:
        """Positions of an embedding, special tokens included."""
        return self.tokenizer.model_max_length

    def encode(self, prompts: Sequence[str]) -> Embeddings:
        """The prompts' embeddings, float32; prompts are truncated to `max_tokens`."""
        inputs = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            return_tensors="pt",
        )
        # Stable Diffusion attends to the padding as well, unless the encoder's config has a mask.
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = inputs["attention_mask"].to(self.device) if masked else None
        with torch.no_grad():
            found = self.text_encoder(inputs["input_ids"].to(self.device), attention_mask=mask)
        return found[0].float()

    def tokens(self, prompt: str) -> Tokens:
        """The words at the positions of `encode([prompt])`, and the text that does not fit."""
        ids = self.tokenizer(prompt, truncation=True, max_length=self.max_tokens)["input_ids"]
        everything = self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        # Both end with the end token; the tokens before it that do not fit are lost.
        lost = everything[len(ids) - 1 : -1] if len(everything) > len(ids) else []
        words = [self.tokenizer.decode([i]).strip() for i in ids]
        return Tokens(words, self.tokenizer.decode(lost).strip() if lost else "")

    def eps(self, x_t: Latents, t: int | Int64[Tensor, "n"], e: Embeddings) -> Latents:
        """The noise predicted in x_t for the prompts of `e`; differentiable in both.

        float32, or float64 where `eps_from_prediction` computes it in float64.
        """
        if isinstance(t, int):
            t = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
        dtype = self.unet.dtype
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            found = self.unet(x_t.to(dtype), t, encoder_hidden_states=e.to(dtype)).sample
        return eps_from_prediction(self.prediction_type, found.float(), x_t, t, self.alphas_cumprod)

    @torch.no_grad()
    def decode(self, x_0: Latents) -> UInt8[Tensor, "n h w c"]:
        """Images of latents; a model of pixels only changes their range and type."""
        if self.vae is None:
            return to_uint8(x_0)
        latents = (x_0 / self.vae.config["scaling_factor"]).to(self.vae.dtype)
        return torch.cat([self._decoded(part) for part in latents.split(DECODED_AT_ONCE)])

    def _decoded(self, latents: Latents) -> UInt8[Tensor, "n h w c"]:
        images, dtype = self.vae.decode(latents).sample, self.vae.dtype
        if not images.isfinite().all():
            raise RuntimeError(f"the autoencoder's images in {dtype} are not finite; {NOT_FINITE}")
        return to_uint8(images)

    @torch.no_grad()
    def to_latents(self, images: UInt8[Tensor, "n h w c"]) -> Latents:
        """x_0 of images: the mean of the autoencoder's posterior, or the images in [-1, 1]."""
        x_0 = to_model(images.to(self.device))
        if self.vae is None:
            return x_0
        posterior = self.vae.encode(x_0.to(self.vae.dtype)).latent_dist
        return posterior.mean.float() * self.vae.config["scaling_factor"]
