"""Images of a mitigated model: the requests, and the images that it gives for them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Runtime
from sidepipe.models.text.memory import GRADIENT_SHARE, images_at_once
from sidepipe.models.text.model import Embeddings, Latents, TextModel
from sidepipe.models.text.trajectory import prompt_noise, sample
from sidepipe.stages.mitigate.pruning import Masks
from sidepipe.stages.mitigate.strategies import Method


@dataclass(frozen=True)
class Requests:
    """One image each: its caption, its prompt's number, and its place among the prompt's images.

    Number and place give the noise, so that each method starts from that of `detect`.
    """

    captions: list[str]
    numbers: list[int]
    places: list[int]

    def part(self, some: Sequence[int]) -> "Requests":
        """The requests with the indices `some`, in order."""
        return Requests(
            [self.captions[i] for i in some],
            [self.numbers[i] for i in some],
            [self.places[i] for i in some],
        )


def requests(captions: Sequence[str], numbers: Sequence[int], each: int) -> Requests:
    """`each` requests per prompt, prompt by prompt."""
    return Requests(
        [caption for caption in captions for _ in range(each)],
        [int(number) for number in numbers for _ in range(each)],
        [*range(each)] * len(captions),
    )


@dataclass(frozen=True, kw_only=True)
class Mitigated:
    """A model with one mitigation method; guidance, steps and seed are those of `Mitigate`.

    words: those that the method may add to a prompt. about: the making of the method, for the
    results; used: the numbers of the prompts that made it, or whose images were given back; masks:
    True for each weight that it set to 0, by layer. batch_size: the setting, None to choose.
    """

    model: TextModel
    method: Method
    guidance_scale: float
    num_inference_steps: int
    seed: int
    words: Sequence[str] = ()
    about: dict[str, Any] | None = None
    used: frozenset[int] = frozenset()
    masks: Masks | None = None
    batch_size: int | None = None

    def noise(self, asked: Requests) -> Latents:
        """x_T of each request."""
        each = max(asked.places) + 1
        every = prompt_noise(self.model, self.seed, asked.numbers, each)
        return every[[i * each + place for i, place in enumerate(asked.places)]]

    def evaluations(self, asked: Requests, each: int) -> Int64[Tensor, "n"]:
        """`each` network evaluations for every request."""
        return torch.full((len(asked.captions),), each, dtype=torch.int64, device=self.model.device)

    def embeddings(self, asked: Requests) -> tuple[Embeddings, Int64[Tensor, "n"]]:
        """The network's input for each request, and the evaluations that the method spent."""
        return self.method.embeddings(self, asked)

    def network(self, asked: Requests) -> AbstractContextManager[None]:
        """The context in which the method changes the network, for a batch of these requests."""
        return self.method.network(self, asked)

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
    """An image per request, and its network evaluations; in parts within `folder`."""

    def make(some: range) -> Arrays:
        part = asked.part(some)
        e, spent = mitigated.embeddings(part)
        # Guided sampling evaluates the network twice per step.
        spent = spent.cpu().numpy() + 2 * mitigated.num_inference_steps
        return {"images": mitigated.images(part, e), "evaluations": spent}

    share = GRADIENT_SHARE if mitigated.method.takes_gradients else 1.0
    size = images_at_once(mitigated.model, runtime.sampling_batch_size, share)
    every = runtime.progress_seconds
    found = in_parts(folder, len(asked.captions), size, make, "image", every)
    return found["images"], found["evaluations"]
