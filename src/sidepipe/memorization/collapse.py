"""Generated images of which no count is a finding: one image again and again, or real images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from sidepipe.features.search import Metric, closer
from sidepipe.memorization.comparison import Comparison

NEARLY_ALL = 0.9  # of the images
HANDFUL = 5  # different images at most, and each at least `REPEATS` times on average
REPEATS = 20
NEARLY_EQUAL: dict[Metric, float] = {"cosine": 0.999, "l2": 0.001}  # gamma


def collapse(
    images: UInt8[np.ndarray, "n h w c"], sizes: Int64[np.ndarray, "g"]
) -> dict[str, Any] | None:
    """How nearly all images are alike, or of a single color each; None if they are not.

    sizes: of the groups of near duplicates among the images, the largest first. `different`: the
    fewest groups that hold nearly all images; `images`: how many these hold, `of` how many.
    `said`: the same after "the model", such as `gives the same image 60 of 60 times: no finding`.
    """
    constant = sum(bool((image == image[:1, :1]).all()) for image in images)
    if constant >= NEARLY_ALL * len(images):
        return _named("constant", constant, len(images), None, "an image of a single color")
    held, total = np.cumsum(sizes), int(sizes.sum())
    different = int(np.searchsorted(held, NEARLY_ALL * total)) + 1
    if different > max(1, min(HANDFUL, total // REPEATS)):
        return None
    said = "the same image" if different == 1 else f"only {different} different images,"
    return _named("alike", int(held[different - 1]), total, different, said)


def exact_copies(
    c: Comparison, generated: UInt8[np.ndarray, "n h w c"], data: UInt8[np.ndarray, "m h w c"]
) -> dict[str, int]:
    """How many generated images are equal, pixel by pixel, to a training or a held-out image.

    data: the images that the rows of `c` are of. Only the nearest image of each set is compared.
    """
    found = {}
    for name, sets in (("train", [c.train]), ("heldout", c.controls)):
        equal = np.zeros(len(generated), bool)
        for some in sets:
            rows = some.rows[some.index]
            for i in np.flatnonzero(closer(some.gamma, NEARLY_EQUAL[c.metric], c.metric)):
                equal[i] |= np.array_equal(generated[i], data[rows[i]])
        found[name] = int(equal.sum())
    return found


def real_in_words(copies: Mapping[str, int], num_images: int) -> str:
    """A sentence where nearly all generated images are real ones; "" for others."""
    train, heldout = copies["train"], copies["heldout"]
    if train + heldout < NEARLY_ALL * num_images:
        return ""
    return (
        f"{train:,} of {num_images:,} generated images are exact copies of training images, and "
        f"{heldout:,} of held-out images: are the generated images real ones?"
    )


def _named(kind: str, images: int, of: int, different: int | None, said: str) -> dict[str, Any]:
    found = {"kind": kind, "images": images, "of": of, "different": different}
    return {**found, "said": f"gives {said} {images:,} of {of:,} times: no finding"}
