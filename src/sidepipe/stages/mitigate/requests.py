"""Images of a mitigated model: what is asked of it, and how each method answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from sidepipe.diffusion.noise import generator
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Runtime
from sidepipe.models.text.memory import GRADIENT_SHARE, images_at_once
from sidepipe.models.text.model import Embeddings, Latents, TextModel
from sidepipe.models.text.significance import EVALUATIONS_A_STEP, token_significance
from sidepipe.models.text.trajectory import prompt_noise, prompt_timesteps, sample
from sidepipe.stages.mitigate.adversary import recovering
from sidepipe.stages.mitigate.attention import attention_scaled
from sidepipe.stages.mitigate.methods import lowered, with_random_words, without_word
from sidepipe.stages.mitigate.stage import Method as Method


@dataclass(frozen=True)
class Requests:
    """One image each: its caption, its prompt's number, and its place among the prompt's images.

    Number and place decide the noise, so that every method starts from what `detect` did.
    """

    captions: list[str]
    numbers: list[int]
    places: list[int]

    def part(self, some: range) -> "Requests":
        """Those of `some`, in order."""
        return Requests(
            [self.captions[i] for i in some],
            [self.numbers[i] for i in some],
            [self.places[i] for i in some],
        )


def requests(captions: Sequence[str], numbers: Sequence[int], each: int) -> Requests:
    """`each` requests a prompt, prompt by prompt."""
    return Requests(
        [caption for caption in captions for _ in range(each)],
        [int(number) for number in numbers for _ in range(each)],
        [*range(each)] * len(captions),
    )


@dataclass(frozen=True, kw_only=True)
class Mitigated:
    """A model with one mitigation method. Fields as those of `Mitigate`; words: to add at random.

    target: the norm at which `embedding` stops.
    """

    model: TextModel
    method: Method
    guidance_scale: float
    num_inference_steps: int
    target: float
    lr: float
    max_iterations: int
    words: Sequence[str]
    num_random_tokens: int
    num_word_steps: int
    start_scale: float
    seed: int

    def noise(self, asked: Requests) -> Latents:
        """x_T of each request."""
        each = max(asked.places) + 1
        every = prompt_noise(self.model, self.seed, asked.numbers, each)
        return every[[i * each + place for i, place in enumerate(asked.places)]]

    def embeddings(self, asked: Requests) -> tuple[Embeddings, Int64[Tensor, "n"]]:
        """What the network is given for each request, and the evaluations that took."""
        spent = torch.zeros(len(asked.captions), dtype=torch.int64, device=self.model.device)
        if self.method == "random_tokens":
            return self.model.encode(self.with_words(asked)), spent
        if self.method == "drop_word":
            spent += EVALUATIONS_A_STEP * self.num_word_steps
            return self.model.encode(self.without_top_word(asked)), spent
        e = self.model.encode(asked.captions)
        if self.method != "embedding":
            return e, spent
        t = prompt_timesteps(self.model, self.num_inference_steps)[0]
        return lowered(
            self.model,
            self.noise(asked),
            t,
            e,
            self.model.encode([""]),
            target=self.target,
            lr=self.lr,
            max_iterations=self.max_iterations,
        )

    def with_words(self, asked: Requests) -> list[str]:
        """The captions with random words added, for each request others."""
        # Far from the streams of the noise, which begin at the same numbers.
        of = [
            generator(self.seed, "prompts", number * 1_000_000 + 500_000 + place)
            for number, place in zip(asked.numbers, asked.places, strict=True)
        ]
        return [
            with_random_words(caption, self.words, self.num_random_tokens, rng)
            for caption, rng in zip(asked.captions, of, strict=True)
        ]

    def without_top_word(self, asked: Requests) -> list[str]:
        """The captions without the word that is most significant on the request's trajectory."""
        significance, _ = token_significance(
            self.model,
            self.noise(asked),
            asked.captions,
            guidance_scale=self.guidance_scale,
            num_inference_steps=self.num_inference_steps,
            num_steps=self.num_word_steps,
        )
        texts = []
        for caption, values in zip(asked.captions, significance, strict=True):
            # Between the start token and the end token.
            ranked = values[1 : len(self.model.tokens(caption).words) - 1]
            top = 1 + int(ranked.argmax())
            texts.append(without_word(self.model.tokenizer, caption, top))
        return texts

    @contextmanager
    def network(self, asked: Requests) -> Iterator[None]:
        """Within it the network is as the method leaves it, for batches of these requests."""
        scaled = nullcontext()
        if self.method == "attention":
            lengths = [len(self.model.tokens(text).words) - 1 for text in asked.captions]
            scaled = attention_scaled(self.model, lengths, self.start_scale)
        with scaled:
            yield

    def images(self, asked: Requests, e: Embeddings) -> UInt8[np.ndarray, "n h w c"]:
        """An image for each request, sampled with its row of `e`."""
        with self.network(asked):
            images = sample(
                self.model,
                self.noise(asked),
                e,
                self.model.encode([""]),
                self.guidance_scale,
                self.num_inference_steps,
            )
        return images.cpu().numpy()


def generate(
    folder: Path, mitigated: Mitigated, asked: Requests, runtime: Runtime
) -> tuple[UInt8[np.ndarray, "n h w c"], Int64[np.ndarray, "n"]]:
    """An image for each request, and the network evaluations it took; in parts within `folder`."""

    def make(some: range) -> Arrays:
        part = asked.part(some)
        e, spent = mitigated.embeddings(part)
        # Guided sampling evaluates the network twice a step.
        spent = spent.cpu().numpy() + 2 * mitigated.num_inference_steps
        return {"images": mitigated.images(part, e), "evaluations": spent}

    share = GRADIENT_SHARE if mitigated.method in ("embedding", "drop_word") else 1.0
    size = images_at_once(mitigated.model, runtime.sampling_batch_size, share)
    every = runtime.progress_seconds
    found = in_parts(folder, len(asked.captions), size, make, "image", every)
    return found["images"], found["evaluations"]


def recover(
    folder: Path,
    mitigated: Mitigated,
    asked: Requests,
    wanted: UInt8[np.ndarray, "p h w c"],
    num_steps: int,
    lr: float,
    runtime: Runtime,
) -> UInt8[np.ndarray, "n h w c"]:
    """Images asked for by who wants one image a prompt back; in parts within `folder`.

    asked: prompt by prompt, equally many each. The embedding starts where the method leaves the
    prompt's first request, and is then led to `wanted`; the network stays as the method has it.
    """
    model, each = mitigated.model, len(asked.captions) // len(wanted)
    first = asked.part(range(0, len(asked.captions), each))

    def embed(some: range) -> Arrays:
        part = first.part(some)
        e, _ = mitigated.embeddings(part)
        x_0 = model.to_latents(torch.from_numpy(wanted[some.start : some.stop]))
        with mitigated.network(part):
            e = recovering(model, x_0, e, mitigated.seed, part.numbers, num_steps, lr)
        return {"e": e.cpu().numpy()}

    def make(some: range) -> Arrays:
        rows = torch.from_numpy(e[[i // each for i in some]]).to(model.device)
        return {"images": mitigated.images(asked.part(some), rows)}

    every, batch_size = runtime.progress_seconds, runtime.sampling_batch_size
    size = images_at_once(model, batch_size, GRADIENT_SHARE)
    e = in_parts(folder / "e", len(wanted), size, embed, "embedding", every)["e"]
    size = images_at_once(model, batch_size)
    return in_parts(folder / "images", len(asked.captions), size, make, "image", every)["images"]
