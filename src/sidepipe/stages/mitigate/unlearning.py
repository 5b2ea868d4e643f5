"""Unlearning of memorized images: fine-tuning after which noise on them leads elsewhere.

A memorized image is a fixed point: the model predicts it from its own x_t, with nearly any
embedding, and so an adversary finds an embedding that brings it back. Three kinds of examples
change this: ordinary pairs keep the model; memorized prompts get images of ordinary pairs with the
most similar captions; and x_t of a memorized image gets, with any embedding, such an image as its
target.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from sidepipe.diffusion.schedule import add_noise
from sidepipe.models.text.model import Embeddings, Latents, TextModel

if TYPE_CHECKING:
    from sidepipe.stages.mitigate.weights import Unlearning

log = logging.getLogger(__name__)

WARMUP = 0.1  # share of the steps
MOST_NOISE = 0.5  # on embeddings of memorized images, per deviation of their values


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """data, captions: all images, and their captions; the rest are rows of these, and prompts.

    ordinary: rows of pairs that stay. prompts: memorized ones. images: rows of memorized images.
    for_prompts, for_images: rows of ordinary pairs that take their place, each with several.
    given_back: rows of memorized images that an adversary trains on after unlearning.
    """

    data: UInt8[np.ndarray, "d h w c"]
    captions: list[str]
    ordinary: Int64[np.ndarray, "o"]
    prompts: list[str]
    images: Int64[np.ndarray, "m"]
    for_prompts: Int64[np.ndarray, "p k"]
    for_images: Int64[np.ndarray, "m k"]
    given_back: Int64[np.ndarray, "g"]


def closest(texts: Sequence[str], others: Sequence[str], count: int) -> Int64[np.ndarray, "n c"]:
    """Places of the `count` of `others` that share most words with each text, by cosine."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    bags = CountVectorizer(binary=True, token_pattern=r"\S+").fit([*texts, *others])
    similarity = cosine_similarity(bags.transform(texts), bags.transform(others))
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def unlearn(model: TextModel, lesson: Lesson, method: Unlearning, seed: int) -> float:
    """Trains the model's network in place, half on ordinary pairs; the last loss.

    A kind of examples that the method leaves out is replaced with ordinary pairs.
    """
    rng = np.random.default_rng(seed)
    prompts, images = (
        method.batch_size // 4 if kind in method.examples else 0 for kind in ("prompts", "images")
    )

    def errors() -> Float[Tensor, "n"]:
        rows = rng.choice(lesson.ordinary, method.batch_size - prompts - images)
        place = rng.integers(len(lesson.prompts), size=prompts)
        instead = np.concatenate([rows, _drawn(lesson.for_prompts, place, rng)])
        texts = [lesson.captions[row] for row in rows] + [lesson.prompts[i] for i in place]
        found = _errors(model, *_pairs(model, lesson, instead, texts, method, rng), rng)
        if not images:
            return found
        moved = _moved(model, lesson, images, rng)
        return torch.cat([found, _errors(model, *moved, rng)])

    loss = _train(model, errors, method.num_steps, method.lr)
    log.info("unlearned %d images in %d steps", len(lesson.images), method.num_steps)
    return loss


def relearn(model: TextModel, lesson: Lesson, method: Unlearning, seed: int) -> float:
    """Trains the unlearned network in place, as an adversary with training pairs; the last loss.

    It trains on ordinary pairs; where memorized images are given back, on half of each.
    """
    rng = np.random.default_rng([seed, 1])
    count = method.batch_size // 2 if len(lesson.given_back) else 0

    def errors() -> Float[Tensor, "n"]:
        rows = rng.choice(lesson.ordinary, method.batch_size - count)
        if count:
            rows = np.concatenate([rows, rng.choice(lesson.given_back, count)])
        texts = [lesson.captions[row] for row in rows]
        return _errors(model, *_pairs(model, lesson, rows, texts, method, rng), rng)

    loss = _train(model, errors, method.relearn_steps, method.lr)
    log.info("relearned in %d steps", method.relearn_steps)
    return loss


def _train(
    model: TextModel, errors: Callable[[], Float[Tensor, "n"]], num_steps: int, lr: float
) -> float:
    """Minimizes the mean of `errors`, new ones at each step, by AdamW; the last loss."""
    network = model.network.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, num_steps, pct_start=WARMUP, cycle_momentum=False
    )
    loss = torch.tensor(torch.nan)
    with torch.enable_grad():
        for _ in range(num_steps):
            loss = errors().mean()
            if not loss.isfinite():
                raise RuntimeError("the loss of unlearning is not finite; lower mitigate.method.lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.requires_grad_(False).eval()
    return float(loss.detach())


def _pairs(
    model: TextModel,
    lesson: Lesson,
    rows: Int64[np.ndarray, "b"],
    texts: list[str],
    method: Unlearning,
    rng: np.random.Generator,
) -> tuple[Latents, Latents, Embeddings]:
    """x_0 of the rows, the same as its target, and embeddings of the texts.

    Some texts are left out, as in training.
    """
    dropped = rng.random(len(texts)) < method.caption_dropout
    e = model.encode(["" if drop else text for text, drop in zip(texts, dropped, strict=True)])
    x_0 = _latents(model, lesson, rows)
    return x_0, x_0, e


def _moved(
    model: TextModel, lesson: Lesson, count: int, rng: np.random.Generator
) -> tuple[Latents, Latents, Embeddings]:
    """x_0 of memorized images, other images as their targets, and embeddings around their own.

    An embedding lies between that of the image's caption and that of a random one, with noise.
    """
    place = rng.integers(len(lesson.images), size=count)
    rows, instead = lesson.images[place], _drawn(lesson.for_images, place, rng)
    own = model.encode([lesson.captions[row] for row in rows])
    other = model.encode([lesson.captions[row] for row in rng.choice(lesson.ordinary, count)])
    share, size = (_tensor(rng.random((count, 1, 1)), model) for _ in range(2))
    noise = _tensor(rng.standard_normal(own.shape), model)
    e = torch.lerp(own, other, share) + MOST_NOISE * size * own.std() * noise
    return _latents(model, lesson, rows), _latents(model, lesson, instead), e


def _errors(
    model: TextModel, x_0: Latents, target: Latents, e: Embeddings, rng: np.random.Generator
) -> Float[Tensor, "n"]:
    """The squared error of each eps that leads from x_t of `x_0` to `target`, at a random t.

    Where the target is another image, the error is that of x_0 for t with little noise: eps that
    leads to another image grows there without bound.
    """
    t = torch.from_numpy(rng.integers(len(model.alphas_cumprod), size=len(x_0))).to(model.device)
    eps = _tensor(rng.standard_normal(x_0.shape), model)
    alpha_bar = model.alphas_cumprod[t]
    x_t = add_noise(x_0, eps, t, model.alphas_cumprod)
    to_eps = (alpha_bar / (1 - alpha_bar)).sqrt()
    wanted = eps + to_eps[:, None, None, None] * (x_0 - target)
    error = (model.eps(x_t, t, e) - wanted).square().flatten(1).mean(1)
    return error if target is x_0 else error * to_eps.square().reciprocal().clamp_max(1)


def _drawn(
    choices: Int64[np.ndarray, "n k"], place: Int64[np.ndarray, "b"], rng: np.random.Generator
) -> Int64[np.ndarray, "b"]:
    return choices[place, rng.integers(choices.shape[1], size=len(place))]


def _latents(model: TextModel, lesson: Lesson, rows: Int64[np.ndarray, "b"]) -> Latents:
    return model.to_latents(torch.from_numpy(lesson.data[rows]))


def _tensor(values: Float[np.ndarray, "*s"], model: TextModel) -> Float[Tensor, "*s"]:
    return torch.from_numpy(values).to(model.device, torch.float32)
