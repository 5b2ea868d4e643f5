"""What can stand in for the missing condition: modules with `grad_log_prob(x_t, t, y)`.

The closed-form posterior is `sidepipe.diffusion.guidance.Posterior`, and here is how far it can be
cut; here is the paper's. Of large models it is the model itself, adapted to take a label.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from sidepipe.base.settings import Precision, require
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.guidance import Posterior, grad_of
from sidepipe.diffusion.nearest import NearestPosterior, cut_error
from sidepipe.stages.classifier.stage import load as load_classifier
from sidepipe.stages.label.stage import load as load_labels
from sidepipe.stages.lora.stage import load as load_lora

log = logging.getLogger(__name__)

Surrogate = Literal["classifier", "posterior", "lora"]

# The relative error of a cut posterior above which it is warned of, and at how many timesteps.
MAX_CUT_ERROR, CUT_TIMESTEPS = 0.1, 10


class ClassifierSurrogate(nn.Module):
    """The trained classifier's log p(y | x_t, t) and its gradient by autograd.

    network: (x_t, t) -> logits, in eval mode; its weights need no gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def log_prob(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """log p(y | x_t, t), (n,), in x_t's dtype: logits may come in fewer bits."""
        log_probs = F.log_softmax(self.network(x_t, t).to(x_t.dtype), dim=1)
        return log_probs.gather(1, y[:, None])[:, 0]

    def grad_log_prob(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """grad_{x_t} log p(y | x_t, t), in x_t's shape and dtype."""
        return grad_of(self.log_prob)(x_t, t, y)


def judge_cut(
    cut: NearestPosterior,
    full: Posterior,
    guided: Sequence[int],
    rng: np.random.Generator,
    device: str,
) -> list[dict[str, int | float]]:
    """The relative error of a cut posterior's gradient at some of the guided timesteps.

    Warns of those where it is above `MAX_CUT_ERROR`.
    """
    at = np.linspace(0, len(guided) - 1, min(len(guided), CUT_TIMESTEPS)).round().astype(int)
    rows = cut_error(cut.to(device), full.to(device), [guided[i] for i in at], rng)
    cut.cpu()  # not on a device: it may be sent to other processes
    said = [f"t = {row['t']}: {row['relative_error']:.3f}" for row in rows]
    log.info("relative error of the posterior's cut at %s", ", ".join(said))
    wrong = [row["t"] for row in rows if row["relative_error"] > MAX_CUT_ERROR]
    if wrong:
        log.warning(
            "extract.posterior_neighbors = %d changes the gradient by more than %g of its length "
            "at t in %s; remedy: raise it, set it to null, or set extract.t_max below %d",
            *(cut.neighbors, MAX_CUT_ERROR, wrong, min(wrong)),
        )
    return rows


def load_surrogate(
    kind: Surrogate,
    inputs: Mapping[str, Path],
    denoiser: Denoiser,
    precision: Precision,
    images: UInt8[np.ndarray, "m h w c"],
    label: Path,
    neighbors: int | None = None,
) -> nn.Module:
    """A gradient of log p(label | x_t), or the model adapted to labels, on the CPU.

    inputs: the trained artifacts. images, and the folder with their labels: what a posterior sums
    over; neighbors: how many of them at most, None for all. Raises ValueError for a model of
    latents, of which only the adapted model knows labels.
    """
    if kind == "lora":
        return load_lora(inputs["lora"], inputs["dpm"], precision)
    rule, remedy = "lora or none for a model of latents", "labels are of images, its x_t are none"
    require(denoiser.has_range, "extract.surrogate", rule, kind, remedy)
    if kind == "classifier":
        return ClassifierSurrogate(load_classifier(inputs["classifier"]))
    pixels, labels = labeled_images(images, label)
    if neighbors is None:
        return Posterior(pixels, labels, denoiser.alphas_cumprod)
    return NearestPosterior(pixels, labels, denoiser.alphas_cumprod, neighbors)


def labeled_images(
    images: UInt8[np.ndarray, "m h w c"], label: Path
) -> tuple[UInt8[Tensor, "m c h w"], Int64[Tensor, "m"]]:
    """The images and their labels, as a posterior takes them."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return pixels, torch.from_numpy(load_labels(label))
