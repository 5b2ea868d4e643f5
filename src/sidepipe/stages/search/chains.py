"""Search over prompts of a fixed number of words, each an index into a list of words.

Both searches count the prompts that they evaluate; repeated prompts count again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

Prompts = Int64[np.ndarray, "q l"]
Score = Callable[[Prompts], Float[np.ndarray, "q"]]
# Words for one place of a prompt.
Propose = Callable[[Int64[np.ndarray, "l"], int], Int64[np.ndarray, "c"]]


@dataclass(frozen=True)
class Best:
    """The evaluated prompt with the highest score, and the number of evaluated prompts."""

    prompt: Int64[np.ndarray, "l"]
    score: float
    evaluated: int


def gibbs(
    energy: Score,
    start: Int64[np.ndarray, "l"],
    propose: Propose,
    num_iterations: int,
    temperature: float,
    rng: np.random.Generator,
) -> Best:
    """The best prompt of a chain on exp(energy / temperature) (MemBench, Hong et al., 2024).

    Each iteration draws one word from its candidates, the present one among them; places follow in
    order.
    """
    prompt = start.copy()
    best = Best(prompt, -np.inf, 0)
    for iteration in range(num_iterations):
        place = iteration % len(prompt)
        words = np.unique(np.append(propose(prompt, place), prompt[place]))
        options = np.repeat(prompt[None], len(words), axis=0)
        options[:, place] = words
        scores = energy(options)
        best = _better(best, options, scores)
        weights = np.exp((scores - scores.max()) / temperature)
        prompt = options[rng.choice(len(options), p=weights / weights.sum())]
    return best


def genetic(
    fitness: Score,
    population: Prompts,
    num_words: int,
    num_rounds: int,
    mutation_rate: float,
    rng: np.random.Generator,
) -> Best:
    """The best prompt of a genetic search that has nothing but the fitness.

    A round keeps the best quarter. Its children take each word from one of two of these parents,
    and with the mutation rate a random word.
    """
    kept = max(2, len(population) // 4)
    scores = fitness(population)
    best = _better(Best(population[0], -np.inf, 0), population, scores)
    for _ in range(num_rounds):
        order = np.argsort(-scores, kind="stable")[:kept]
        parents, kept_scores = population[order], scores[order]
        shape = (len(population) - kept, population.shape[1])
        pairs = rng.integers(kept, size=(2, shape[0]))
        children = np.where(rng.random(shape) < 0.5, parents[pairs[0]], parents[pairs[1]])
        random = rng.integers(num_words, size=shape)
        children = np.where(rng.random(shape) < mutation_rate, random, children)
        found = fitness(children)
        best = _better(best, children, found)
        population = np.concatenate([parents, children])
        scores = np.concatenate([kept_scores, found])
    return best


def _better(best: Best, prompts: Prompts, scores: Float[np.ndarray, "q"]) -> Best:
    evaluated = best.evaluated + len(prompts)
    first = int(scores.argmax())
    if scores[first] <= best.score:
        return Best(best.prompt, best.score, evaluated)
    return Best(prompts[first].copy(), float(scores[first]), evaluated)


def texts_of(prompts: Prompts, words: Sequence[str]) -> list[str]:
    """The text of each prompt."""
    return [" ".join([words[int(word)] for word in prompt]) for prompt in prompts]
