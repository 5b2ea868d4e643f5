"""Strategies of refinement as lists of one cycle: some noise added to x_0, and denoising.

x_0 <- D_{t->0}(sqrt(ab_t) x_0 + noise sqrt(1 - ab_t) eps)
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cycle:
    """One replacement of x_0 by D_{t->0}(sqrt(ab_t) x_0 + noise sqrt(1 - ab_t) eps).

    D: DDIM in `denoising_steps` from level t to no noise; eta: 0 deterministic, 1 ancestral. noise:
    the share of the noise of level t that is added. relaxation: the next cycle starts so many times
    as far from x_0 as D leads.
    """

    t: int
    noise: float = 0.0
    denoising_steps: int = 1
    eta: float = 0.0
    relaxation: float = 1.0

    @property
    def timesteps(self) -> list[int]:
        """Where the network is evaluated: evenly from t down."""
        return [self.t - k * self.t // self.denoising_steps for k in range(self.denoising_steps)]


def fixed_point(t: int, steps: int, relaxation: float = 1.0) -> list[Cycle]:
    """One denoising step from level t without noise, `steps` times.

    It leads up the density of the data smoothed by level t: by Tweedie's formula a step is x_0 +
    (1 - ab_t) / ab_t * grad log p(x_0) (Alain & Bengio, 2014; Kadkhodaie & Simoncelli, 2021). For a
    model that has memorized its training images this is mean shift on them (Comaniciu & Meer,
    2002); they are its fixed points where level t keeps them apart. Iterated autoencoders return
    training images in the same way (Radhakrishnan et al., PNAS 117:27162, 2020).

    Mean shift is expectation maximization (Carreira-Perpinan, TPAMI 2007), which arrives sooner
    with a relaxation between 1 and 2 (Salakhutdinov & Roweis, ICML 2003); below 2 its fixed points
    stay attractive.
    """
    return [Cycle(t, relaxation=relaxation)] * steps


def cyclic(t: int, steps: int, noise: float, denoising_steps: int, eta: float) -> list[Cycle]:
    """Noising to level t and denoising, `steps` times: cyclic denoising.

    With noise = 1 each x_t is a proper draw (Sharma & Martiniani, arXiv 2606.24000). Verma et al.
    (arXiv 2610.11670) denoise at every timestep below t with eta = 1, 500 times.
    """
    return [Cycle(t, noise, denoising_steps, eta)] * steps


def annealed(timesteps: Sequence[int]) -> list[Cycle]:
    """One denoising step without noise from each level in turn, from more to less noise.

    Mean shift with a falling bandwidth; falling levels are those of annealed Langevin dynamics
    (Song & Ermon, NeurIPS 2019).
    """
    return [Cycle(t) for t in timesteps]
