"""A text-conditional diffusion model, of pixels or of latents: encode prompts, predict eps, decode.

It has the parts of a diffusers pipeline folder; later stages use nothing else of it. `TextModel` is
Stable Diffusion 1.x and 2.x; a family with other parts derives from it and is listed in `kinds.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from sidepipe.base.images import to_model, to_uint8
from sidepipe.diffusion.finite import NOT_FINITE
from sidepipe.diffusion.schedule import eps_from_prediction
from sidepipe.models.schedules import clip_range, step_rule

# All that the network receives of a prompt: a row per position, and in families with a pooled
# embedding this one in further rows, whose rest is 0.
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


class Width(NamedTuple):
    """A width that a text encoder gives, and the network's setting that it has to equal."""

    setting: str
    found: int
    of: str


class TextModel(nn.Module):
    """A UNet2DConditionModel with its text encoder and, for a latent model, its autoencoder.

    parts: by the names of diffusers: unet, scheduler (a DDPMScheduler), text_encoder, tokenizer,
    and vae, which a model of images does not have. settings: those of `defaults`, None for these.
    autocast: the dtype of the network's operations, None for no cast.

    pred_x_0 of images is clipped to [-clip_range, clip_range], None for no clipping; latents are
    never clipped. Networks run in their own dtype; x_t and embeddings are float32 outside, and so
    is eps where the network predicts it.

    kind: the pipeline's class. network_part: the name of the network that predicts noise.
    encoders: the class of each text encoder; the tokenizer of "text_encoder_2" is "tokenizer_2".
    defaults: settings of the pipeline's index that matter, and their defaults.
    is_distilled: whether the network was distilled for guidance, so that it takes guidance_scale as
    an input, and an empty prompt is of no use.
    steps_offset: that the pipeline sets, whatever its scheduler has; None where it sets none.
    """

    kind: ClassVar[str] = "StableDiffusionPipeline"
    network_part: ClassVar[str] = "unet"
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "CLIPTextModel"}
    defaults: ClassVar[Mapping[str, bool]] = {"requires_safety_checker": False}
    steps_offset: ClassVar[int | None] = 1
    is_distilled: bool = False
    guidance_scale: float = 1.0
    vae: Any
    tokenizer: Any
    text_encoder: Any
    unet: Any
    alphas_cumprod: Tensor

    def __init__(
        self,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.vae = None
        self.part_names, self.settings, self.autocast = (
            tuple(parts),
            dict(settings or self.defaults),
            autocast,
        )
        for name, part in parts.items():
            setattr(self, name, part)
        self._take_schedule(parts["scheduler"])

    def _take_schedule(self, scheduler: Any) -> None:
        self.prediction_type = scheduler.config["prediction_type"]
        self.clip_range = clip_range(scheduler) if self.vae is None else None
        self.step_rule = step_rule(scheduler)
        if self.vae is not None and self.steps_offset is not None:
            self.step_rule = replace(self.step_rule, steps_offset=self.steps_offset)
        alphas_cumprod = scheduler.alphas_cumprod.float()
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    @staticmethod
    def widths(network: Mapping[str, Any], encoders: Mapping[str, Any]) -> list[Width]:
        """Widths that must be equal in the configs of network and encoders."""
        found = encoders["text_encoder"]["hidden_size"]
        return [Width("hidden_size of text_encoder", found, "cross_attention_dim")]

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by name."""
        return {name: getattr(self, name) for name in self.part_names}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The parts with weights by name, the one that predicts noise first."""
        parts = {self.network_part: self.network, **self.parts}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @property
    def network(self) -> Any:
        """The network that predicts noise."""
        return getattr(self, self.network_part)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.alphas_cumprod.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of x_t."""
        size = self.network.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.network.config["in_channels"], height, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image."""
        if self.vae is None:
            return self.latent_shape
        _, height, width = self.latent_shape
        factor = self.vae_factor
        return self.vae.config["out_channels"], height * factor, width * factor

    @property
    def vae_factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def max_tokens(self) -> int:
        """Positions of an embedding, special tokens included."""
        return self.tokenizer.model_max_length

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Embeddings:
        """The prompts' embeddings, float32; prompts are truncated to `max_tokens`."""
        return self.embed(prompts)

    def embed(self, prompts: Sequence[str]) -> Embeddings:
        """As `encode`, with gradients."""
        return self.encoded(prompts)[0].float()

    def encoded(
        self,
        prompts: Sequence[str],
        encoder: str = "text_encoder",
        max_tokens: int | None = None,
    ) -> Any:
        """The output of a text encoder with all its hidden states.

        max_tokens: None for those that the first encoder takes.
        """
        tokenizer = getattr(self, encoder.replace("text_encoder", "tokenizer"))
        network = getattr(self, encoder)
        inputs = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=max_tokens or self.max_tokens,
            truncation=True,
            return_tensors="pt",
        )
        # Stable Diffusion attends to the padding as well, unless the encoder's config has a mask.
        masked = getattr(network.config, "use_attention_mask", False)
        mask = inputs["attention_mask"].to(self.device) if masked else None
        ids = inputs["input_ids"].to(self.device)
        return network(ids, attention_mask=mask, output_hidden_states=True)

    def num_parameters(self) -> int:
        """The number of weights of the network, its text encoders and its autoencoder."""
        return sum(p.numel() for p in self.parameters())

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
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            found = self.predict(x_t, t, e)
        return eps_from_prediction(self.prediction_type, found.float(), x_t, t, self.alphas_cumprod)

    def predict(self, x_t: Latents, t: Int64[Tensor, "n"], e: Embeddings) -> Latents:
        """The network's prediction, in its own dtype."""
        dtype = self.network.dtype
        return self.network(x_t.to(dtype), t, encoder_hidden_states=e.to(dtype)).sample

    @torch.no_grad()
    def decode(self, x_0: Latents) -> UInt8[Tensor, "n h w c"]:
        """Images of latents; a model of pixels only changes their range and type."""
        if self.vae is None:
            return to_uint8(x_0)
        latents = x_0 / self.vae.config["scaling_factor"] + self._shift
        latents = latents.to(self.vae.dtype)
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
        return (posterior.mean.float() - self._shift) * self.vae.config["scaling_factor"]

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0
