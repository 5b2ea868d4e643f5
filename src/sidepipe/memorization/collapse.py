"""Collapse: the model repeats one image or a few, so that no count is a finding."""

from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

NEARLY_ALL = 0.9  # of the images
HANDFUL = 5  # different images at most, and each at least `REPEATS` times on average
REPEATS = 20


def collapse(
    images: UInt8[np.ndarray, "n h w c"], sizes: Int64[np.ndarray, "g"]
) -> dict[str, Any] | None:
    """How nearly all images are alike, or of a single color each; None if they are not.

    sizes: of the groups of near duplicates among the images, the largest first. `different`: the
    fewest groups that hold nearly all images; `images`: how many these hold, `of` how many.
    `said`: the same after "the model", such as `gives the same image 60 of 60 times: no finding`.
    """
    constant = int((images == images[:, :1, :1]).all(axis=(1, 2, 3)).sum())
    if constant >= NEARLY_ALL * len(images):
        return _named("constant", constant, len(images), None, "an image of a single color")
    held, total = np.cumsum(sizes), int(sizes.sum())
    different = int(np.searchsorted(held, NEARLY_ALL * total)) + 1
    if different > max(1, min(HANDFUL, total // REPEATS)):
        return None
    said = "the same image" if different == 1 else f"only {different} different images,"
    return _named("alike", int(held[different - 1]), total, different, said)


def _named(kind: str, images: int, of: int, different: int | None, said: str) -> dict[str, Any]:
    found = {"kind": kind, "images": images, "of": of, "different": different}
    return {**found, "said": f"gives {said} {images:,} of {of:,} times: no finding"}
