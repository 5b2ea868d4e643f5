"""The searches: with the model's predictions, and with its images alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.pretrained import folder_or_hub_id, one_line
from sidepipe.base.settings import require
from sidepipe.engine.stage import Runtime, Stage
from sidepipe.stages.search.chains import texts_of
from sidepipe.stages.search.stage import Search

if TYPE_CHECKING:
    from sidepipe.models.text.model import TextModel
    from sidepipe.stages.search.chains import Best

LANGUAGE_MODEL = "search.masked_language_model"
LATENTS = 700_000  # of the noise that a search looks at; no prompt of detect has this number


@dataclass(frozen=True, kw_only=True)
class GibbsSearch(Search):
    """Chains on exp(|| D_T || / K) at the first step (MemBench, Hong et al., 2024).

    num_iterations: draws of one word. num_candidates: words per draw. temperature: K, per mean
    energy of random prompts, which makes it independent of the latent's dimension. num_latents:
    over which || D_T || is averaged. masked_language_model: a folder or hub id of transformers that
    proposes words; None for random words of the tokenizer.
    """

    kind: ClassVar[str] = "gibbs"
    num_iterations: int
    num_candidates: int
    temperature: float
    num_latents: int
    masked_language_model: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_iterations", "num_candidates", "num_latents"):
            require(getattr(self, name) >= 1, f"search.{name}", ">= 1", getattr(self, name))
        require(self.temperature > 0, "search.temperature", "> 0", self.temperature)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check_parts(upstream, runtime)
        if self.masked_language_model is not None:
            self._read_language_model()

    @cached_property
    def _language_model(self) -> tuple[Any, Any]:
        """The language model and its tokenizer, read once for all runs."""
        return self._read_language_model()

    def _read_language_model(self) -> tuple[Any, Any]:
        """The language model and its tokenizer; FileNotFoundError or ValueError for another."""
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        name = str(folder_or_hub_id(LANGUAGE_MODEL, str(self.masked_language_model)))
        tokenizer = _read(AutoTokenizer, name)
        rule, remedy = "a model whose tokenizer has a mask token", "choose one such as BERT"
        require(tokenizer.mask_token is not None, LANGUAGE_MODEL, rule, name, remedy)
        options = {"use_safetensors": True, "output_loading_info": True}
        network, report = _read(AutoModelForMaskedLM, name, **options)
        # Missing ones would be random, and only logged.
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        rule = "a model with all its weights"
        require(not missing, LANGUAGE_MODEL, rule, f"none for {missing[:3]}")
        return network.eval(), tokenizer

    def words(self, model: TextModel) -> list[str]:
        from sidepipe.models.text.words import ordinary_words

        if self.masked_language_model is None:
            return super().words(model)
        return ordinary_words(self._language_model[1], [])

    def one_run(
        self, model: TextModel, words: Sequence[str], rng: np.random.Generator, batch_size: int
    ) -> tuple[Best, int]:
        from sidepipe.models.text.trajectory import prompt_noise
        from sidepipe.stages.search.chains import gibbs
        from sidepipe.stages.search.scores import first_step_energy

        x_T = prompt_noise(model, self.seed, [LATENTS], self.num_latents)
        scored = first_step_energy(model, x_T, self.num_inference_steps, batch_size)

        def energy(prompts: np.ndarray) -> np.ndarray:
            return scored(texts_of(prompts, words))

        random = rng.integers(len(words), size=(self.num_candidates, self.prompt_length))
        scale = float(energy(random).mean())
        best = gibbs(
            energy,
            random[0],
            self._proposals(words, rng),
            self.num_iterations,
            temperature=self.temperature * scale,
            rng=rng,
        )
        return best, (best.evaluated + len(random) + 1) * self.num_latents

    def _proposals(
        self, words: Sequence[str], rng: np.random.Generator
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        from sidepipe.stages.search.scores import masked_proposals

        most = min(self.num_candidates, len(words))
        if self.masked_language_model is None:
            return lambda prompt, place: rng.permutation(len(words))[:most]
        return masked_proposals(*self._language_model, words, most)


def _read(kind: Any, name: str, **options: Any) -> Any:
    """The part of the language model that `kind` reads; ValueError where it cannot."""
    try:
        return kind.from_pretrained(name, **options)
    except Exception as error:  # transformers has no common error class
        raise ValueError(f"{LANGUAGE_MODEL} cannot be read: {one_line(error)}") from None


@dataclass(frozen=True, kw_only=True)
class GeneticSearch(Search):
    """A genetic search that only has images: prompts whose images of several seeds are alike.

    population: prompts per round. num_rounds: after the first population. mutation_rate: share of
    words replaced by random ones. num_seeds: images per prompt, each a query of the model.
    """

    kind: ClassVar[str] = "genetic"
    population: int
    num_rounds: int
    mutation_rate: float
    num_seeds: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.population >= 4, "search.population", ">= 4", self.population)
        require(self.num_rounds >= 0, "search.num_rounds", ">= 0", self.num_rounds)
        rate = self.mutation_rate
        require(0 <= rate <= 1, "search.mutation_rate", "in [0, 1]", rate)
        require(self.num_seeds >= 2, "search.num_seeds", ">= 2, to compare images", self.num_seeds)

    def one_run(
        self, model: TextModel, words: Sequence[str], rng: np.random.Generator, batch_size: int
    ) -> tuple[Best, int]:
        from sidepipe.models.text.trajectory import prompt_noise
        from sidepipe.stages.search.chains import genetic
        from sidepipe.stages.search.scores import image_likeness

        x_T = prompt_noise(model, self.seed, [LATENTS], self.num_seeds)
        scored = image_likeness(
            model, x_T, self.guidance_scale, self.num_inference_steps, batch_size
        )
        best = genetic(
            lambda prompts: scored(texts_of(prompts, words)),
            rng.integers(len(words), size=(self.population, self.prompt_length)),
            len(words),
            self.num_rounds,
            self.mutation_rate,
            rng,
        )
        return best, best.evaluated * self.num_seeds * 2 * self.num_inference_steps
