"""The batch size of a text-conditional model: the fastest that fits in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from sidepipe.models.speed import CPU_BATCH_SIZE, largest_useful_batch, seconds_of
from sidepipe.models.text.guidance import noise_difference
from sidepipe.models.text.model import TextModel

# Numbers of x_t in a batch on a CPU: 256 images of 8 x 8 pixels, 16 latents of Stable Diffusion.
CPU_ELEMENTS = 2**18
LARGEST = 256
GRADIENT_SHARE = 0.25  # of the images of a forward: a gradient keeps activations


def images_at_once(model: TextModel, asked: int | None, share: float = 1.0) -> int:
    """The batch size for `noise_difference` on the model's device, at least 1.

    asked: the setting, None to choose. share: the share of the images that fit, for computations
    that keep more memory than one forward, such as gradients.
    """
    if asked is not None:
        return asked
    channels, height, width = model.latent_shape
    if model.device.type == "cpu":
        size = min(CPU_BATCH_SIZE, CPU_ELEMENTS // (channels * height * width))
        return max(1, int(size * share))
    e_0 = model.encode([""])

    def step(n: int) -> Callable[[], object]:
        x_t = torch.zeros(n, channels, height, width, device=model.device)
        return torch.no_grad()(lambda: noise_difference(model, x_t, 0, _repeated(e_0, n), e_0))

    def images_per_second(n: int) -> float:
        return n / seconds_of(step(n), model.device)

    return max(1, int(largest_useful_batch(images_per_second, 2, LARGEST) * share))


def _repeated(e_0: Tensor, n: int) -> Tensor:
    return e_0.expand(n, -1, -1)
