"""Searches on scores with a known maximum."""

import numpy as np
import pytest

from sidepipe.stages.search.chains import genetic, gibbs

NUM_WORDS, LENGTH = 40, 6
TARGET = np.array([3, 17, 0, 39, 8, 8])


def agreement(prompts):
    """The number of right words: the maximum is TARGET, at LENGTH."""
    return (prompts == TARGET).sum(1).astype(float)


def every_word(prompt, place):
    return np.arange(NUM_WORDS)


def test_a_cold_chain_finds_the_maximum_in_one_sweep() -> None:
    rng = np.random.default_rng(0)
    start = rng.integers(NUM_WORDS, size=LENGTH)
    best = gibbs(agreement, start, every_word, LENGTH, temperature=0.01, rng=rng)
    assert best.prompt.tolist() == TARGET.tolist()
    assert best.score == LENGTH
    assert best.evaluated == LENGTH * NUM_WORDS


def test_a_chain_draws_from_the_distribution_of_the_energy() -> None:
    energy = np.log(np.array([1.0, 2.0, 5.0]))
    visits = np.zeros(3)

    def looked_at(prompts):
        return energy[prompts[:, 0]]

    def propose(prompt, place):
        visits[prompt[0]] += 1
        return np.arange(3)

    gibbs(looked_at, np.array([0]), propose, 8000, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(visits / visits.sum(), [1 / 8, 2 / 8, 5 / 8], atol=0.02)


def test_the_best_prompt_is_kept_though_a_hot_chain_leaves_it() -> None:
    rng = np.random.default_rng(1)
    best = gibbs(agreement, TARGET, every_word, 30, temperature=1000.0, rng=rng)
    assert best.score == LENGTH


def test_the_genetic_search_finds_the_maximum_and_counts_prompts() -> None:
    rng = np.random.default_rng(0)
    population = rng.integers(NUM_WORDS, size=(200, LENGTH))
    best = genetic(agreement, population, NUM_WORDS, 40, mutation_rate=0.1, rng=rng)
    assert best.prompt.tolist() == TARGET.tolist()
    assert best.evaluated == 200 + 40 * 150


@pytest.mark.parametrize("num_rounds", [0, 1])
def test_without_rounds_the_best_of_the_population_is_found(num_rounds) -> None:
    population = np.stack([TARGET - 1, TARGET, TARGET - 2, TARGET - 3])
    rng = np.random.default_rng(0)
    best = genetic(agreement, population, NUM_WORDS, num_rounds, 0.0, rng)
    assert best.prompt.tolist() == TARGET.tolist()
