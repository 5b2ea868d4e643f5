"""InvMM: how far the initial noise must leave N(0, I) until a model always gives one image.

A memorized image is the result of noise that is hardly special; for other images no distribution
of noise gives the image at all, or only one far from normal (Ma et al., arXiv 2405.05846).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

STEPS = 2000  # of Adam, at most
LEARNING_RATE = 0.1
CHECK_EVERY, SAMPLES = 50, 8  # steps between attempts, and images of an attempt
GROWTH = 1e-4  # of lambda per step
SMOOTHING = 0.9  # of the reconstruction error, per step
PATIENCE = 50  # steps without a smaller smoothed error until lambda is halved

Images = Float[Tensor, "m *shape"]


def inversion_measure(
    pred_x_0_fn: Callable[[Images, int], Images],
    given_back: Callable[[Images], Bool[Tensor, "m"]],
    x_0: Images,
    alphas_cumprod: Float[Tensor, "T"],
    noise_fn: Callable[[], Images],
    generator: torch.Generator,
    steps: int = STEPS,
    report: Callable[[int], None] = lambda step: None,
) -> Float64[Tensor, "m"]:
    """The KL divergence per value, from N(0, I), of noise that gives each image; inf for none.

    n = mu + sigma xi is fitted by Adam so that pred_x_0 at x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) n
    is x_0 at every t: |pred_x_0 - x_0|^2 + lambda KL. pred_x_0_fn: with a gradient, and one t for
    all images. given_back: whether the model makes each image of its initial noise; it decides
    every CHECK_EVERY steps by SAMPLES draws of n, all of which must give the image. noise_fn:
    standard normal noise of x_0's shape. generator: draws t. report: called after each step.
    """
    mean, log_sigma = (torch.zeros_like(x_0, requires_grad=True) for _ in range(2))
    adam = torch.optim.Adam([mean, log_sigma], LEARNING_RATE)
    found = torch.full((len(x_0),), torch.inf, dtype=torch.float64, device=x_0.device)
    balance = _Balance(found.float())
    for step in range(1, steps + 1):
        t = int(torch.randint(len(alphas_cumprod), (1,), generator=generator))
        alpha_bar = float(alphas_cumprod[t])
        noise = mean + log_sigma.exp() * noise_fn()
        x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise
        error = (pred_x_0_fn(x_t, t) - x_0).square().flatten(1).mean(1)
        loss = error + balance.weight * divergence_from_normal(mean, log_sigma)
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        balance.update(error.detach())
        report(step)
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                draws = [given_back(mean + log_sigma.exp() * noise_fn()) for _ in range(SAMPLES)]
                divergence = divergence_from_normal(mean, log_sigma).double()
            new = torch.stack(draws).all(0) & torch.isinf(found)
            found = torch.where(new, divergence, found)
        if bool(torch.isfinite(found).all()):
            break
    return found


class _Balance:
    """lambda of each image: from 1, GROWTH more per step, half where its error stops falling."""

    def __init__(self, infinite: Float[Tensor, "m"]) -> None:
        self.weight, self.waited = torch.ones_like(infinite), torch.zeros_like(infinite)
        self.smoothed, self.best = None, infinite

    def update(self, error: Float[Tensor, "m"]) -> None:
        """One step; the error is smoothed, and has stopped after PATIENCE steps without a low."""
        last = error if self.smoothed is None else self.smoothed
        self.smoothed = SMOOTHING * last + (1 - SMOOTHING) * error
        self.waited = torch.where(self.smoothed < self.best, 0, self.waited + 1)
        self.best = torch.minimum(self.best, self.smoothed)
        stopped = self.waited >= PATIENCE
        self.weight = torch.where(stopped, self.weight / 2, self.weight + GROWTH)
        self.waited = torch.where(stopped, 0, self.waited)


def divergence_from_normal(mean: Images, log_sigma: Images) -> Float[Tensor, "m"]:
    """KL(N(mean, sigma^2) | N(0, I)) of each image, the mean over its values."""
    each = (mean.square() + (2 * log_sigma).exp() - 2 * log_sigma - 1) / 2
    return each.flatten(1).mean(1)
