"""How much noise keeps memorized images apart, where each probability has a closed form.

The optimal denoiser of a training set returns its images alone. Noise of level t and denoising
return an image with the probability that Bayes' rule gives it, refinement keeps it while it is a
mode of the training images smoothed by level t, and theorem 1 of Verma et al. (arXiv 2610.11670)
bounds the former from below.

    python examples/critical_noise.py > docs/results/data/critical_noise.csv
"""

import csv
import sys

import torch
from diffusers import DDPMScheduler
from sklearn.datasets import load_digits
from torch import Tensor

from sidepipe.diffusion.cycles import cyclic, fixed_point
from sidepipe.diffusion.mixtures import EXACT, Mixture
from sidepipe.diffusion.refine import iterates
from sidepipe.memorization.levels import returning

TRAIN_IMAGES = (64, 256, 1000)
LEVELS = (30, 60, 100, 150, 200, 250, 300, 400, 500)
DRAWS = 16  # of noise per image, for the exact probability
REFINEMENT_STEPS = 50
DENOISING_STEPS = 50
NEAR = 0.05  # of the distance to the nearest other image: how far a kept image may move


def square_distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode=EXACT).square()


def exactly_returning(x_0: Tensor, alpha_bar: float, noise: Tensor) -> float:
    """The mean probability that noise of this level and exact denoising return an image.

    It is the posterior weight of the image given its x_t, by Bayes' rule. x_0: (n, d). noise:
    standard normal, (draws, n, d); the mean over draws is the only approximation.
    """
    signal, variance = alpha_bar**0.5, 1 - alpha_bar
    shares = [
        (-square_distances(signal * x_0 + variance**0.5 * eps, signal * x_0) / (2 * variance))
        .softmax(1)
        .diagonal()
        .mean()
        for eps in noise
    ]
    return float(sum(shares)) / len(shares)


def kept(x_0: Tensor, found: Tensor) -> float:
    """The share of images that stay within NEAR of the distance to their nearest other image."""
    apart = square_distances(x_0, x_0).fill_diagonal_(torch.inf).amin(1)
    return float(((found - x_0).square().sum(1) <= NEAR**2 * apart).double().mean())


def shares(x_0: Tensor, t: int, alphas: Tensor, draw: torch.Generator) -> list[float]:
    """Bound, exact probability, share of cycles and share of refinements that return an image."""

    def noise_fn() -> Tensor:
        return torch.randn(x_0.shape, generator=draw, dtype=x_0.dtype)

    def eps_fn(x_t: Tensor, t: int) -> Tensor:
        mixture = Mixture(x_0, torch.zeros_like(x_0[0]))
        return mixture.eps(x_t, alphas[t].expand(len(x_t)))

    alpha_bar = float(alphas[t])
    bound = float(returning(x_0.numpy(), (1 - alpha_bar) / alpha_bar).mean())
    exact = exactly_returning(x_0, alpha_bar, torch.stack([noise_fn() for _ in range(DRAWS)]))
    cycle = cyclic(t, 1, noise=1.0, denoising_steps=min(t, DENOISING_STEPS), eta=1.0)
    refinement = fixed_point(t, REFINEMENT_STEPS)
    ends = [list(iterates(eps_fn, x_0, c, alphas, noise_fn))[-1] for c in (cycle, refinement)]
    return [bound, exact, *(kept(x_0, end) for end in ends)]


def main() -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["train_images", "refine_t", "return_bound", "return_exact", "cycled", "kept"])
    digits = torch.from_numpy(load_digits().data) / 8 - 1
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    alphas = scheduler.alphas_cumprod.double()
    for n in TRAIN_IMAGES:
        x_0 = digits[order[:n]].double()
        for t in LEVELS:
            draw = torch.Generator().manual_seed(0)
            found = [100 * share for share in shares(x_0, t, alphas, draw)]
            writer.writerow([n, t, *(f"{value:.1f}" for value in found)])


if __name__ == "__main__":
    main()
