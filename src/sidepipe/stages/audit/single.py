"""Scores of an audit that an image has by itself, without refinement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sidepipe.models.contrast import log_loss_ratio

if TYPE_CHECKING:
    from sidepipe.diffusion.denoiser import Denoiser
    from sidepipe.memorization.audit import Probe

# Takes uint8 images; `first` is the number of the first one, which decides its noise.
Single = Callable[..., np.ndarray]


def single_scores(
    denoiser: Denoiser, base: Denoiser | None, probe: Probe, contrast_t: int, seed: int
) -> dict[str, Single]:
    """The scores by their columns. base: of a fine-tuned model; both lie on one device."""
    from sidepipe.models.divergence import image_divergences

    found: dict[str, Single] = {
        "divergence": partial(
            image_divergences, denoiser, t=probe.t, probes=probe.probes, seed=seed
        )
    }
    if base is not None:
        draws = probe.draws
        found["contrast"] = partial(
            log_loss_ratio, denoiser, base, t=contrast_t, draws=draws, seed=seed
        )
    return found


def evaluations(probe: Probe, has_base: bool) -> int:
    """Network evaluations per image, of all scores."""
    return probe.evaluations + probe.probes + 2 * probe.draws * has_base
