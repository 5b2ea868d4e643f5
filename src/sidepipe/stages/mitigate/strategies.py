"""The methods of mitigation, each with its settings, and its effect on prompts and the network.

A method applies to each image by itself, as if that image were requested alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from sidepipe.base.settings import require
from sidepipe.stages.detect.stage import load_thresholds

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int64
    from torch import Tensor

    from sidepipe.engine.stage import Stage
    from sidepipe.models.text.model import Embeddings
    from sidepipe.stages.mitigate.judging import Known
    from sidepipe.stages.mitigate.requests import Mitigated, Requests


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods.

    keeps_weights: whether the weights are those of the unchanged model, so that the loss on
    held-out images need not be measured. trains: whether it trains the weights, which are saved.
    takes_gradients: whether `embeddings` needs the memory of
    gradients. by_token: whether it differentiates by tokens, which all text encoders must share.
    by_attention: whether it changes a UNet with cross-attention.
    """

    name: str
    keeps_weights: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    takes_gradients: ClassVar[bool] = False
    by_token: ClassVar[bool] = False
    by_attention: ClassVar[bool] = False

    def check(self, upstream: Mapping[str, Stage]) -> None:
        """Raises ValueError where it cannot be made from `upstream`."""

    def build(self, mitigated: Mitigated, known: Known, inputs: Mapping[str, Path]) -> Mitigated:
        """The model with this method; it is called once, before the first request.

        known: the data. inputs: the artifacts that the stage reads.
        """
        return mitigated

    def embeddings(
        self, mitigated: Mitigated, asked: Requests
    ) -> tuple[Embeddings, Int64[Tensor, "n"]]:
        """The network's input for each request, and its network evaluations."""
        return mitigated.model.encode(asked.captions), mitigated.evaluations(asked, 0)

    def network(self, mitigated: Mitigated, asked: Requests) -> AbstractContextManager[None]:
        """The context in which the network is changed, for a batch of these requests."""
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """An attack that optimizes embeddings to recover images; num_steps, lr: of Adam.

    num_starts: embeddings per prompt, the method's own and random ones, of which the one that
    recovers the most counts.
    """

    num_steps: int
    lr: float
    num_starts: int = 1

    def __post_init__(self) -> None:
        where = "mitigate.adversary"
        for name in ("num_steps", "num_starts"):
            require(getattr(self, name) >= 1, f"{where}.{name}", ">= 1", getattr(self, name))
        require(self.lr > 0, f"{where}.lr", "> 0", self.lr)


@dataclass(frozen=True, kw_only=True)
class NoMethod(Method):
    """The model as it is: unchanged, or mitigated in training."""

    name: Literal["none"] = "none"
    keeps_weights: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class LoweredEmbedding(Method):
    """The prompt's embedding is optimized until || D_T || is small (Wen et al., 2024).

    lr, max_iterations: of AdamW. target: the norm to reach, None for the median of detect's
    calibration prompts.
    """

    name: Literal["embedding"] = "embedding"
    takes_gradients: ClassVar[bool] = True
    lr: float = 0.05
    max_iterations: int = 10
    target: float | None = None

    def __post_init__(self) -> None:
        where = "mitigate.method"
        require(self.lr > 0, f"{where}.lr", "> 0", self.lr)
        require(self.max_iterations >= 1, f"{where}.max_iterations", ">= 1", self.max_iterations)
        positive = self.target is None or self.target > 0
        require(positive, f"{where}.target", "> 0 or null", self.target)

    def build(self, mitigated: Mitigated, known: Known, inputs: Mapping[str, Path]) -> Mitigated:
        if self.target is not None:
            return mitigated
        median = load_thresholds(inputs["detect"])["median_first_step"]
        return replace(mitigated, method=replace(self, target=median))

    def embeddings(
        self, mitigated: Mitigated, asked: Requests
    ) -> tuple[Embeddings, Int64[Tensor, "n"]]:
        from sidepipe.models.text.trajectory import prompt_timesteps
        from sidepipe.stages.mitigate.methods import lowered

        assert self.target is not None
        model = mitigated.model
        return lowered(
            model,
            mitigated.noise(asked),
            prompt_timesteps(model, mitigated.num_inference_steps)[0],
            model.encode(asked.captions),
            model.encode([""]),
            target=self.target,
            lr=self.lr,
            max_iterations=self.max_iterations,
        )


@dataclass(frozen=True, kw_only=True)
class RandomTokens(Method):
    """Random words are added to the prompt (Somepalli et al., 2023); num_tokens: how many."""

    name: Literal["random_tokens"] = "random_tokens"
    num_tokens: int = 4

    def __post_init__(self) -> None:
        require(self.num_tokens >= 1, "mitigate.method.num_tokens", ">= 1", self.num_tokens)

    def build(self, mitigated: Mitigated, known: Known, inputs: Mapping[str, Path]) -> Mitigated:
        from sidepipe.models.text.words import ordinary_words

        planted = [] if known.captions is None else known.captions["word"].unique().tolist()
        return replace(mitigated, words=ordinary_words(mitigated.model.tokenizer, planted))

    def embeddings(
        self, mitigated: Mitigated, asked: Requests
    ) -> tuple[Embeddings, Int64[Tensor, "n"]]:
        from sidepipe.diffusion.noise import generator
        from sidepipe.models.text.words import cut_off
        from sidepipe.stages.mitigate.methods import with_words

        # Far from the streams of the noise, which begin at the same numbers.
        streams = [
            generator(mitigated.seed, "prompts", number * 1_000_000 + 500_000 + place)
            for number, place in zip(asked.numbers, asked.places, strict=True)
        ]
        texts = [
            with_words(caption, self._drawn(mitigated, rng), rng)
            for caption, rng in zip(asked.captions, streams, strict=True)
        ]
        cut_off(mitigated.model, texts)
        return mitigated.model.encode(texts), mitigated.evaluations(asked, 0)

    def _drawn(self, mitigated: Mitigated, rng: np.random.Generator) -> Sequence[str]:
        """The words to add to a prompt."""
        return rng.choice(list(mitigated.words), self.num_tokens).tolist()


@dataclass(frozen=True, kw_only=True)
class RandomNumbers(RandomTokens):
    """Random numbers below a million are added to the prompt (Somepalli et al., 2023)."""

    name: Literal["random_numbers"] = "random_numbers"

    def _drawn(self, mitigated: Mitigated, rng: np.random.Generator) -> Sequence[str]:
        return [str(number) for number in rng.integers(1_000_000, size=self.num_tokens)]


@dataclass(frozen=True, kw_only=True)
class DroppedWord(Method):
    """The prompt without its most significant word (Wen et al., 2024).

    num_steps: the first steps of the trajectory, which give the significance.
    """

    name: Literal["drop_word"] = "drop_word"
    by_token: ClassVar[bool] = True
    takes_gradients: ClassVar[bool] = True
    num_steps: int = 25

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, "mitigate.method.num_steps", ">= 1", self.num_steps)

    def embeddings(
        self, mitigated: Mitigated, asked: Requests
    ) -> tuple[Embeddings, Int64[Tensor, "n"]]:
        from sidepipe.models.text.significance import EVALUATIONS_A_STEP

        texts = self._texts(mitigated, asked)
        spent = mitigated.evaluations(asked, EVALUATIONS_A_STEP * self.num_steps)
        return mitigated.model.encode(texts), spent

    def _texts(self, mitigated: Mitigated, asked: Requests) -> list[str]:
        """The captions without the word that is most significant on the request's trajectory."""
        from sidepipe.models.text.significance import token_significance
        from sidepipe.stages.mitigate.methods import without_word

        model = mitigated.model
        significance, _ = token_significance(
            model,
            mitigated.noise(asked),
            asked.captions,
            guidance_scale=mitigated.guidance_scale,
            num_inference_steps=mitigated.num_inference_steps,
            num_steps=self.num_steps,
        )
        texts = []
        for caption, values in zip(asked.captions, significance, strict=True):
            # Between the start token and the end token.
            ranked = values[1 : len(model.tokens(caption).words) - 1]
            texts.append(without_word(model.tokenizer, caption, 1 + int(ranked.argmax())))
        return texts


@dataclass(frozen=True, kw_only=True)
class AttentionScaling(Method):
    """Cross-attention is scaled (Ren et al., 2024); start_scale: of the start token's logits."""

    name: Literal["attention"] = "attention"
    by_attention: ClassVar[bool] = True
    start_scale: float = 1.25

    def __post_init__(self) -> None:
        require(self.start_scale > 0, "mitigate.method.start_scale", "> 0", self.start_scale)

    def network(self, mitigated: Mitigated, asked: Requests) -> AbstractContextManager[None]:
        from sidepipe.stages.mitigate.attention import attention_scaled

        model = mitigated.model
        lengths = [len(model.tokens(text).words) - 1 for text in asked.captions]
        return attention_scaled(model, lengths, self.start_scale)
