"""The denoising loss of a model on held-out images: the cost of mitigation in training."""

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8

from sidepipe.diffusion.noise import generator
from sidepipe.models.text.model import TextModel
from sidepipe.stages.mitigate.adversary import denoising_errors, noise_of

NUM_NOISES = 10  # per image, each with its own t


def heldout_losses(
    model: TextModel,
    data: UInt8[np.ndarray, "m h w c"],
    captions: list[str],
    rows: Int64[np.ndarray, "n"],
    seed: int,
    batch_size: int,
) -> Float[np.ndarray, "n"]:
    """The mean squared error of the noise predicted in each image of `rows`, over t at random.

    captions: those of all data. Row and seed give t and noise, so they are the same for all models.
    """
    losses = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        streams = [generator(seed, "prompts", int(row) * 1_000_000 + 999_998) for row in some]
        x_0 = model.to_latents(torch.from_numpy(np.array(data[some])))
        e = model.encode([captions[row] for row in some])
        with torch.no_grad():
            errors = [
                denoising_errors(model, x_0, e, *noise_of(streams, model))
                for _ in range(NUM_NOISES)
            ]
        losses.append(torch.stack(errors).mean(dim=0).cpu().numpy())
    return np.concatenate(losses)
