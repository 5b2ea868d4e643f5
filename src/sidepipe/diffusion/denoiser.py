"""A model as samplers use it: eps of images, each with an optional condition, and decoding x_0.

The class here takes the numbers of classes, where the network has classes; models with prompts and
labels derive from it.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from sidepipe.base.images import to_model, to_uint8
from sidepipe.base.settings import require
from sidepipe.diffusion.guidance import conditioned
from sidepipe.diffusion.sampler import require_x_0
from sidepipe.diffusion.schedule import EpsFn, eps_of
from sidepipe.diffusion.timesteps import StepRule


class Denoiser(nn.Module):
    """A diffusers UNet2DModel of images, unconditional or class-conditional.

    unet: the network itself, which may be compiled. alphas_cumprod: (T,). prediction_type:
    "epsilon", "v_prediction" or "sample". shape: (c, h, w) of x_t. evaluations: of the network for
    one eps. has_range: whether x_0 lies in [-1, 1], as images do. clip_range: pred_x_0 is clipped
    to [-clip_range, clip_range], None for no clipping. step_rule: that of its scheduler.
    num_classes: of a class-conditional network, whose condition y is the number of a class.
    null_class: the number that stands for no class, None where the network has none.
    guidance_scale: s of classifier-free guidance by classes, 0 for the null class alone, 1 for the
    class alone.
    image_dtype: of what `decode` gives.
    first_batch: images that fit into the memory of any GPU.
    """

    alphas_cumprod: Tensor
    evaluations, has_range, first_batch = 1, True, 64
    image_dtype: type[np.generic] = np.uint8
    clip_range: float | None = 1.0
    step_rule = StepRule()
    num_classes: int | None = None
    null_class: int | None = None
    guidance_scale: float = 1.0

    def __init__(
        self,
        unet: Any,
        alphas_cumprod: Float[Tensor, "T"],
        prediction_type: str,
        shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.unet, self.prediction_type, self.shape = unet.eval(), prediction_type, shape
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image."""
        return self.shape

    def timesteps(self, num_inference_steps: int, spacing: str | None = None) -> list[int]:
        """Where the network is evaluated, from most to least noise; ValueError without an x_0.

        spacing: None for that of the model's scheduler.
        """
        num_train_timesteps = len(self.alphas_cumprod)
        timesteps = self.step_rule.timesteps(num_train_timesteps, num_inference_steps, spacing)
        require_x_0(self.prediction_type, self.alphas_cumprod, timesteps)
        return timesteps

    def eps_fn(self, y: Int64[Tensor, "n"]) -> EpsFn:
        """eps of n images, each for its condition y, where the model has one."""
        if self.num_classes is None:
            return eps_of(self.unet, self.prediction_type, self.alphas_cumprod)
        of_class = self._eps_of(y)
        if self.null_class is None:
            return of_class
        of_null = self._eps_of(torch.full_like(y, self.null_class))
        return conditioned(of_null, of_class, self.guidance_scale)

    def _eps_of(self, classes: Int64[Tensor, "n"]) -> EpsFn:
        kind, alphas_cumprod = self.prediction_type, self.alphas_cumprod
        return eps_of(self.unet, kind, alphas_cumprod, class_labels=classes)

    @property
    def classes(self) -> list[int]:
        """The numbers of the classes, without the null class."""
        return [y for y in range(self.num_classes or 0) if y != self.null_class]

    def guide_by_class(self, guidance_scale: float) -> None:
        """Sets s of classifier-free guidance; ValueError without a null class unless s is 1."""
        alone = self.null_class is not None or guidance_scale == 1
        rule = "1 for a model without a null class"
        remedy = "set dpm.null_class if one of its classes stands for none; or surrogate=none"
        require(alone, "condition_guidance_scale", rule, guidance_scale, remedy)
        self.guidance_scale = guidance_scale
        self.evaluations = 1 if guidance_scale in (0, 1) else 2

    def encode(self, images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
        """The x_0 of images."""
        return to_model(images)

    def decode(self, x_0: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n h w c"]:
        """The images of x_0."""
        return to_uint8(x_0)

    def as_saved(self, x_0: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """x_0 rounded to the levels of uint8 images; latents, which no image gives, as they are."""
        return to_model(self.decode(x_0)) if self.has_range else x_0
