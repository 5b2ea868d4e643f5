"""Scores of prompts from what was seen of the most generations and steps, for fewer of either.

A higher score speaks for memorization, whatever the signal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Seen = Float[np.ndarray, "p n *rest"]
Observed = Mapping[str, np.ndarray]


def _mean(seen: Seen, n: int, steps: int) -> Float[np.ndarray, "p"]:
    return seen[:, :n].mean(1)


def _mean_of_steps(seen: Seen, n: int, steps: int) -> Float[np.ndarray, "p"]:
    return seen[:, :n, :steps].mean((1, 2))


def _closest_pair(seen: Seen, n: int, steps: int) -> Float[np.ndarray, "p"]:
    return seen[:, *np.triu_indices(n, 1)].max(1)


def _minus_mean_distance(seen: Seen, n: int, steps: int) -> Float[np.ndarray, "p"]:
    return -seen[:, *np.triu_indices(n, 1)].mean(1)


@dataclass(frozen=True)
class Signal:
    """score: of what was seen, for n generations and so many steps. evaluations: of the network an
    image, each step; steps: which it needs, None for those asked for. least: generations."""

    score: Callable[[Seen, int, int], Float[np.ndarray, "p"]]
    evaluations: int
    steps: str | None
    least: int


# The Hessian's product takes the difference once to have its direction, and then once with its
# derivative, which costs as much again. With a prompt alone, no guidance, one evaluation does.
SIGNALS = {
    "norm": Signal(_mean_of_steps, 2, None, 1),
    "hessian": Signal(_mean, 6, "first", 1),
    "entropy": Signal(_mean, 1, "first", 1),
    "ssim": Signal(_closest_pair, 1, "first", 2),
    "tile_l2": Signal(_minus_mean_distance, 2, "all", 2),
}


@dataclass(frozen=True)
class Variant:
    """A signal of so many generations and first steps. evaluations: of the network, an image."""

    signal: str
    generations: int
    steps: int
    evaluations: int

    def score(self, observed: Observed) -> Float[np.ndarray, "p"]:
        """Each prompt's score, float64."""
        seen = observed[self.signal].astype(np.float64)
        return SIGNALS[self.signal].score(seen, self.generations, self.steps)


def variants(
    signals: Sequence[str],
    generations: Sequence[int],
    steps: Sequence[int],
    num_inference_steps: int,
) -> list[Variant]:
    """Every combination that makes sense: what compares generations needs two of them."""
    found = []
    for name in signals:
        signal = SIGNALS[name]
        fixed = {"first": [1], "all": [num_inference_steps]}
        for n in generations:
            if n >= signal.least:
                for count in fixed.get(signal.steps or "", steps):
                    found.append(Variant(name, n, count, count * signal.evaluations))
    return found
