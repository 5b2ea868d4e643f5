"""InvMM of some audited images: the noise that makes the model give each of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sidepipe.base.settings import require
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.inversion import STEPS as FITTING
from sidepipe.diffusion.inversion import inversion_measure
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import clip_x_0, eps_from_prediction, for_each, signal_and_noise
from sidepipe.engine.logs import counting
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.features.pairs import exact_losses, gamma_of
from sidepipe.features.search import closer
from sidepipe.stages.audit.chances import STEPS

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from jaxtyping import Float32, Float64

    from sidepipe.features.encoders import Device, Encoder
    from sidepipe.memorization.audit import Images
    from sidepipe.memorization.real import Encoded
    from sidepipe.stages.audit.material import Material

log = logging.getLogger(__name__)

# Images per file, of which a killed run loses at most one.
PART, PART_ON_CPU = 16, 4
PROGRESS_SECONDS = 30.0


def require_plain(denoiser: Denoiser) -> None:
    """Raises ValueError for a model that InvMM is not computed for."""
    plain = type(denoiser) is Denoiser and denoiser.num_classes is None
    rule = "0 unless the model is one of pixels without classes"
    require(plain, "audit.invmm_images", rule, type(denoiser).__name__)


def with_inversions(
    table: pd.DataFrame,
    count: int,
    denoiser: Denoiser,
    material: Material,
    seed: int,
    folder: Path,
    device: Device,
) -> pd.DataFrame:
    """The audit's table with `invmm` of the first `count` images of each kind, nan for others."""
    require_plain(denoiser)
    found, start = [], 0
    size = PART_ON_CPU if torch.device(device).type == "cpu" else PART
    for name, of in material.sets.items():
        own = of.part(slice(count))

        def one(rows: range, name: str = name, own: Encoded = own, start: int = start) -> Arrays:
            some, number = slice(rows.start, rows.stop), len(own.rows)
            which = f"{name} images {rows.start + 1} to {rows.stop} of {number}"
            log.info("InvMM of %s, up to %s steps", which, f"{FITTING:,}")
            values = inversions(
                denoiser,
                material.data[own.rows[some]],
                own.features[some],
                material.encoder,
                material.threshold,
                seed,
                start + rows.start,
                device,
                counting(FITTING, f"steps of the InvMM of {which}", PROGRESS_SECONDS),
            )
            return {"invmm": values}

        values = np.full(len(of.rows), np.nan)
        parts = folder / f"invmm_{name}"
        values[: len(own.rows)] = in_parts(
            parts, len(own.rows), size, one, f"inverted {name} image"
        )["invmm"]
        found.append(values)
        start += len(of.rows)
    return table.assign(invmm=np.concatenate(found))


def inversions(
    denoiser: Denoiser,
    images: Images,
    features: Float32[np.ndarray, "n d"],
    encoder: Encoder,
    threshold: float,
    seed: int,
    first: int,
    device: Device,
    report: Callable[[int], None] = lambda step: None,
) -> Float64[np.ndarray, "n"]:
    """`inversion_measure` of each image, inf for none. first: the number of the first image.

    An image is given back where a sample of ten evaluations is within the threshold of a hit.
    """
    denoiser = denoiser.to(device).requires_grad_(False)
    alphas = denoiser.alphas_cumprod
    eps_fn = denoiser.eps_fn(torch.zeros(len(images), dtype=torch.int64, device=device))
    clipped, there = clip_x_0(eps_fn, alphas, denoiser.clip_range), np.arange(len(images))

    def given_back(noise: Tensor) -> Tensor:
        x_0 = ddim(clipped, noise, denoiser.timesteps(STEPS, "trailing"), alphas)
        made = encoder.encode(denoiser.decode(x_0.float()).cpu().numpy(), device)
        losses = exact_losses(made, features, there, there, encoder.metric)
        near = closer(gamma_of(losses, encoder.metric), threshold, encoder.metric)
        return torch.from_numpy(near).to(device)

    return (
        inversion_measure(
            lambda x_t, t: pred_x_0(denoiser, x_t, t),
            given_back,
            denoiser.encode(torch.from_numpy(images).to(device)),
            alphas,
            image_noise(
                seed, "inversion", range(first, first + len(images)), denoiser.shape, device
            ),
            torch.Generator().manual_seed(seed),
            report=report,
        )
        .cpu()
        .numpy()
    )


def pred_x_0(denoiser: Denoiser, x_t: Tensor, t: int) -> Tensor:
    """pred_x_0 with a gradient; clipped as by samplers, but with the gradient of the unclipped."""
    alphas = denoiser.alphas_cumprod
    found = denoiser.unet(x_t, for_each(t, x_t)).sample.float()[:, : x_t.shape[1]]
    eps = eps_from_prediction(denoiser.prediction_type, found, x_t, t, alphas)
    signal, noise = signal_and_noise(alphas, t, x_t)
    x_0 = ((x_t - noise * eps) / signal).float()
    if denoiser.clip_range is None:
        return x_0
    return x_0 + (x_0.clamp(-denoiser.clip_range, denoiser.clip_range) - x_0).detach()


def survival(table: pd.DataFrame) -> dict[str, Any]:
    """The share of images with a finite InvMM, and its median, None for inf; of both kinds."""
    found: dict[str, Any] = {}
    for kind in ("train", "heldout"):
        values = np.array(table.loc[table["kind"] == kind, "invmm"], np.float64)
        values = values[~np.isnan(values)]
        median = float(np.median(values))
        found[kind] = {
            "num_images": len(values),
            "finite": float(np.isfinite(values).mean()),
            "median": median if np.isfinite(median) else None,
        }
    return found
