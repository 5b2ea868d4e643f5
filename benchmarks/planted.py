"""Coverage and width of the excess's interval where it is known how many images are copies.

8x8 digits of scikit-learn: 256 training images, up to 1,041 unseen ones, and 400 generated images
(2,000 for one image) which are real images of another pool of 500, but for the planted copies. The
split is another one in each repetition. Prints the table of docs/evaluation.md; a test runs it.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
from sklearn.datasets import load_digits

from sidepipe.memorization.comparison import Comparison, compare
from sidepipe.memorization.real import Encoded, real_images
from sidepipe.memorization.results import calibrated, duplicate_groups
from sidepipe.memorization.thresholds import threshold_at_false_positive_rate

NUM_TRAIN, NUM_UNSEEN, NUM_IMAGES = 256, 1041, 400
NOISE = 4.0  # standard deviation of a pixel of 255, about 0.01 RMS after clipping

Images = np.ndarray  # float, (n, 64), in 0 to 255


@dataclass(frozen=True)
class Split:
    """Digits of one repetition: those trained on, those the model never saw, and the pool."""

    train: Images
    unseen: Images
    pool: Images


Draw = Callable[[np.random.Generator, Split], Images]


@dataclass(frozen=True)
class Case:
    """One planted experiment. true: the share of images that are copies, less those of U.

    draw: the generated images. num_unseen: images that the model never saw. rate: false positives.
    """

    name: str
    true: float
    draw: Draw
    num_unseen: int = NUM_UNSEEN
    rate: float = 0.001


def noisy(rng: np.random.Generator, images: Images, noise: float = NOISE) -> Images:
    return (images + rng.normal(0, noise, images.shape)).clip(0, 255).round()


def at_distance(rng: np.random.Generator, images: Images, rms: float) -> Images:
    """The images moved by exactly this RMS, in [0, 1] units; pixels are not clipped."""
    step = rng.normal(size=images.shape)
    return images + 255 * rms * step / np.sqrt(np.square(step).mean(1, keepdims=True))


def copies(
    share: float,
    of: Callable[[np.random.Generator, Split, int], Images],
    number: int = NUM_IMAGES,
    made: Callable[..., Images] = noisy,
    **options: float,
) -> Draw:
    """Images of the pool of which each is a copy with probability `share`."""

    def draw(rng: np.random.Generator, split: Split) -> Images:
        images = split.pool[rng.choice(len(split.pool), number, replace=number > len(split.pool))]
        copied = np.flatnonzero(rng.random(number) < share)
        images[copied] = made(rng, of(rng, split, len(copied)), **options)
        return images

    return draw


def any_training_image(rng: np.random.Generator, split: Split, number: int) -> Images:
    return split.train[rng.integers(len(split.train), size=number)]


def first_training_images(count: int) -> Callable[[np.random.Generator, Split, int], Images]:
    return lambda rng, split, number: split.train[rng.integers(count, size=number)]


def zipf(rng: np.random.Generator, split: Split, number: int) -> Images:
    weight = 1 / np.arange(1, len(split.train) + 1)
    return split.train[rng.choice(len(weight), number, p=weight / weight.sum())]


def any_heldout_image(rng: np.random.Generator, split: Split, number: int) -> Images:
    return split.unseen[rng.integers(len(split.unseen), size=number)]


CASES = [
    Case("nothing", 0, copies(0, any_training_image)),
    Case("15 % of all", 0.15, copies(0.15, any_training_image)),
    Case("2 % of all", 0.02, copies(0.02, any_training_image)),
    Case("15 %, by Zipf's law", 0.15, copies(0.15, zipf)),
    Case("15 % of three images", 0.15, copies(0.15, first_training_images(3))),
    Case("half of 2,000 of one image", 0.5, copies(0.5, first_training_images(1), 2000)),
    Case("15 % at RMS 0.04", 0.15, copies(0.15, any_training_image, made=at_distance, rms=0.04)),
    Case(
        "15 % near misses at RMS 0.10",
        0,
        copies(0.15, any_training_image, made=at_distance, rms=0.1),
    ),
    Case("15 % of held-out images", -0.15 / 4.066, copies(0.15, any_heldout_image)),
    *(
        Case(f"15 % of all, {n} unseen", 0.15, copies(0.15, any_training_image), n, 0.02)
        for n in (1041, 300, 200, 100, 50)
    ),
    *(
        Case(f"nothing, {n} unseen", 0, copies(0, any_training_image), n, 0.02)
        for n in (1041, 200, 50)
    ),
]


@cache
def digits() -> Images:
    pixels: Any = load_digits()
    return pixels.data / 16 * 255


def split_digits(rng: np.random.Generator, num_unseen: int) -> Split:
    shuffled = rng.permutation(digits())
    train, unseen, pool = np.split(shuffled, [NUM_TRAIN, NUM_TRAIN + NUM_UNSEEN])
    return Split(train, unseen[:num_unseen], pool)


def measured(case: Case, seed: int) -> dict[str, float]:
    """Excess, its interval and hits of one repetition, by the stage's own functions."""
    rng = np.random.default_rng(seed)
    split = split_digits(rng, case.num_unseen)
    images = case.draw(rng, split)
    c = comparison(split, images)
    threshold = threshold_at_false_positive_rate(c.real_gamma, case.rate, "l2")
    [at] = calibrated(c, [case.rate], duplicate_groups(c.train, c.metric, threshold))
    low, high = at["excess"]["interval"]
    return {"excess": at["excess"]["share"], "low": low, "high": high}


def comparison(split: Split, images: Images) -> Comparison:
    train, unseen, queries = (features(x) for x in (split.train, split.unseen, images))
    sets = Encoded(np.arange(len(train)), train), Encoded(np.arange(len(unseen)), unseen)
    # The fifty nearest images are most of the work, and only Carlini et al.'s score needs them.
    with patch("sidepipe.memorization.comparison.AROUND", 1):
        return compare(queries, queries[:1], real_images(*sets, "l2"), "l2")


def features(images: Images) -> np.ndarray:
    """As PixelsL2 encodes them: gamma is the RMS difference in [0, 1] units."""
    return (images / 255 / np.sqrt(images.shape[1])).astype(np.float32)


def summary(case: Case, repetitions: int) -> dict[str, float]:
    rows = [measured(case, seed) for seed in range(repetitions)]
    of = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {
        "excess": float(of["excess"].mean()),
        "deviation": float(of["excess"].std(ddof=1)),
        "covers": float(np.mean((of["low"] <= case.true) & (case.true <= of["high"]))),
        "width": float(np.mean(of["high"] - of["low"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    repetitions = parser.parse_args().repetitions
    print("| planted | true | excess (deviation) | interval covers | mean width |")
    print("|---|---|---|---|---|")
    for case in CASES:
        s = summary(case, repetitions)
        # Rounding gives -0 for an excess just below zero.
        found = f"{round(s['excess'], 4) + 0.0:.4f} ({s['deviation']:.4f})"
        cells = [case.name, f"{case.true:.3g}", found, f"{s['covers']:.2f}", f"{s['width']:.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
