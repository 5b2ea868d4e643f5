"""Scores of candidates by the network alone, for a model and its shadow alike."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from sidepipe.base.images import Images, to_model
from sidepipe.diffusion import fixed_points
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.score_divergence import score_divergence
from sidepipe.engine.resuming import in_parts

PART = 256  # images per file: a killed run loses at most so many


def evaluations(levels: Sequence[int], draws: int, probes: int) -> int:
    """Network evaluations per candidate."""
    return len(levels) * (fixed_points.EVALUATIONS + probes) + draws


def scores_of(
    denoiser: Denoiser,
    images: Images,
    levels: Sequence[int],
    draws: int,
    probes: int,
    seed: int,
    folder: Path,
    device: str,
) -> dict[str, Float32[np.ndarray, "n"]]:
    """Scores by name: those of `responses` at each level, and the denoising error at the first.

    probes: of the score divergence at each level, 0 for none; its score is 1 + the mean cosine,
    which is positive. The map is one refinement step without clipping, in float32. folder: for the
    parts of a killed run.
    """
    denoiser = denoiser.to(device)

    def one(rows: range) -> dict[str, np.ndarray]:
        x = to_model(torch.from_numpy(images[rows.start : rows.stop])).to(device)
        noise_fn = image_noise(seed, "verdict", rows, denoiser.shape, device)
        with torch.no_grad():
            return {name: s.cpu().numpy() for name, s in _scores(x, noise_fn).items()}

    def _scores(x: Tensor, noise_fn: fixed_points.Draw) -> dict[str, Tensor]:
        eps_fn = denoiser.eps_fn(torch.zeros(len(x), dtype=torch.int64, device=device))
        ab = denoiser.alphas_cumprod
        found = {}
        for t in levels:
            step = partial(seek_mode, eps_fn, t=t, num_steps=1, alphas_cumprod=ab)
            for name, values in fixed_points.responses(step, x, noise_fn).items():
                found[f"{name}_{t}"] = values
        if probes:
            for t in levels:
                cosine = score_divergence(eps_fn, x, t, ab, probes, noise_fn)
                found[f"divergence_{t}"] = 1 + cosine
        t = levels[0]

        def denoised(x: Tensor, noise: Tensor) -> Tensor:
            return seek_mode(eps_fn, x, t, 1, ab, noise=1.0, noise_fn=lambda: noise)

        found[f"error_{t}"] = fixed_points.denoising_error(denoised, x, noise_fn, draws)
        return found

    return in_parts(folder, len(images), PART, one, "candidate")
