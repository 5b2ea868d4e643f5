"""Images in the space of a model, as surrogates take them: uint8, or x_0 of another kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sidepipe.base.images import Images

if TYPE_CHECKING:
    from torch import Tensor

    from sidepipe.diffusion.denoiser import Denoiser

ENCODED = 64  # images on the device at once


def rows_of(denoiser: Denoiser, images: Images, device: str) -> np.ndarray:
    """The images as surrogates of the model take them: uint8 ones, or the x_0 of another model.

    Latents, and rows of a table, are float32 (n, c, h, w), encoded on `device`; the model is on the
    CPU afterwards.
    """
    import torch

    if denoiser.has_range:
        return images
    denoiser.to(device)
    parts = torch.from_numpy(np.array(images)).split(ENCODED)
    latents = [denoiser.encode(part.to(device)).float().cpu().numpy() for part in parts]
    denoiser.cpu()
    return np.concatenate(latents)


def channels_first(rows: np.ndarray) -> Tensor:
    """Rows of `rows_of` as (n, c, h, w), in their own dtype, as a posterior takes them."""
    import torch

    found = torch.from_numpy(rows)
    return found.permute(0, 3, 1, 2) if rows.dtype == np.uint8 else found
