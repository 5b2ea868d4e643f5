"""A text-conditional model as a Denoiser: each image with its prompt, or all without one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.schedule import EpsFn
from sidepipe.models.text.guidance import prompt_guided
from sidepipe.models.text.model import TextModel
from sidepipe.models.text.words import cut_off

# Images per decoding: an autoencoder needs more memory per image than a UNet.
DECODED = 8


class PromptedDenoiser(Denoiser):
    """eps of a text model; a condition y is the number of a prompt.

    prompts: None for the empty one, the model's own images. guidance_scale: s of classifier-free
    guidance; s = 1 is the prompt alone and needs one evaluation, another s two.
    """

    first_batch = 4

    def __init__(
        self, model: TextModel, prompts: Sequence[str] | None = None, guidance_scale: float = 1.0
    ) -> None:
        super().__init__(
            model.network, model.alphas_cumprod, model.prediction_type, model.latent_shape
        )
        if model.is_distilled:  # the network takes the scale itself
            model.guidance_scale, guidance_scale = guidance_scale, 1.0
        self.model, self.guidance_scale = model, guidance_scale
        self.prompts = None if prompts is None else list(prompts)
        cut_off(model, self.prompts or [])
        self.has_range, self.clip_range = model.vae is None, model.clip_range
        self.step_rule = model.step_rule
        self.evaluations = 1 if prompts is None or guidance_scale == 1 else 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.model.image_shape

    def eps_fn(self, y: Int64[Tensor, "n"]) -> EpsFn:
        e_0 = self.model.encode([""])
        if self.prompts is None:
            return self._eps_of(e_0.expand(len(y), -1, -1))
        e = self.model.encode([self.prompts[i] for i in y.tolist()])
        if self.guidance_scale == 1:
            return self._eps_of(e)
        return prompt_guided(self.model, e, e_0, self.guidance_scale)

    def _eps_of(self, e: Float[Tensor, "n l d"]) -> EpsFn:
        @torch.no_grad()
        def eps_fn(x_t: Tensor, t: int) -> Tensor:
            return self.model.eps(x_t, t, e)

        return eps_fn

    def encode(self, images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self.model.to_latents(part) for part in images.split(DECODED)])

    def decode(self, x_0: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n h w c"]:
        # Without the sampler's autocast, in which an autoencoder may overflow.
        with torch.autocast(x_0.device.type, enabled=False):
            return torch.cat([self.model.decode(part) for part in x_0.split(DECODED)])
