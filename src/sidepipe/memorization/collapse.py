"""Generated images of which no count is a finding: one image again and again, or real images.

Also repeated files of one picture, which are no independent images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Int64

from sidepipe.base.images import Images
from sidepipe.features.search import Metric, closer
from sidepipe.memorization.comparison import Comparison

NEARLY_ALL = 0.9  # of the images
HANDFUL = 5  # different images at most, and each at least `REPEATS` times on average
REPEATS = 20
NO_FINDING = ": no finding"
NEARLY_EQUAL: dict[Metric, float] = {"cosine": 0.999, "l2": 0.001}  # gamma


def collapse(
    images: Images, sizes: Int64[np.ndarray, "g"], item: str = "image"
) -> dict[str, Any] | None:
    """How nearly all images are alike, or of a single color each; None if they are not.

    sizes: of the groups of near duplicates among the images, the largest first. `different`: the
    fewest groups that hold nearly all images; `images`: how many these hold, `of` how many.
    `said`: the same after "the model", such as `gives the same image 60 of 60 times: no finding`.
    item: what each is, in words.
    """
    constant = sum(map(_one_color, images))
    if constant >= NEARLY_ALL * len(images):
        return _named("constant", constant, len(images), None, "an image of a single color")
    held, total = np.cumsum(sizes), int(sizes.sum())
    different = int(np.searchsorted(held, NEARLY_ALL * total)) + 1
    if different > max(1, min(HANDFUL, total // REPEATS)):
        return None
    said = f"the same {item}" if different == 1 else f"only {different} different {item}s,"
    return _named("alike", int(held[different - 1]), total, different, said)


def exact_copies(c: Comparison, generated: Images, data: Images) -> dict[str, int]:
    """How many generated images are equal, pixel by pixel, to a training or a held-out image.

    data: the images that the rows of `c` are of. Only the nearest image of each set is compared.
    `train_alone`: those equal to a training image and to no held-out image, without images of a
    single color; `different`: the training images that these are.
    """
    masks = {}
    for name, sets in (("train", [c.train]), ("heldout", c.controls)):
        equal = np.zeros(len(generated), bool)
        for some in sets:
            rows = some.rows[some.index]
            for i in np.flatnonzero(closer(some.gamma, NEARLY_EQUAL[c.metric], c.metric)):
                equal[i] |= np.array_equal(generated[i], data[rows[i]])
        masks[name] = equal
    alone = [generated[i] for i in np.flatnonzero(masks["train"] & ~masks["heldout"])]
    alone = [image.tobytes() for image in alone if not _one_color(image)]
    found = {name: int(equal.sum()) for name, equal in masks.items()}
    return {**found, "train_alone": len(alone), "different": len(set(alone))}


def are_finding(copies: Mapping[str, int]) -> bool:
    """Whether exact copies of training images alone outnumber those of held-out images.

    Results of before version 7 of evaluate do not have the numbers.
    """
    return copies.get("train_alone", 0) > copies.get("heldout", 0)


def with_copies(found: dict[str, Any] | None, copies: Mapping[str, int]) -> dict[str, Any]:
    """`collapse` and `exact_copies`; it does not say "no finding" where the copies are one."""
    if found is not None and are_finding(copies):
        found = {**found, "said": found["said"].removesuffix(NO_FINDING)}
    return {"collapse": found, "exact_copies": dict(copies)}


def pictures(hashes: Sequence[str], names: Sequence[str]) -> Int64[np.ndarray, "n"]:
    """The number of the picture that each image shows: one for equal pixels, and for one name.

    hashes: `digests` of the images. names: files, of which `a.png` and `a.jpg` have one name.
    """
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    stems = [f"file {name.removesuffix(PurePath(name).suffix)}" for name in names]
    # A place in a file of several images, such as [3], is part of the name.
    files = [n if n.endswith("]") else stem for n, stem in zip(names, stems, strict=True)]
    known, nodes = np.unique([*hashes, *files], return_inverse=True)
    pixels, file = nodes.reshape(2, -1)
    links = coo_array((np.ones(len(names)), (pixels, file)), (len(known), len(known)))
    return connected_components(links, directed=False)[1].astype(np.int64)[pixels]


def with_pictures(
    c: Comparison, hashes: Sequence[str], names: Sequence[str] | None
) -> tuple[Comparison, str]:
    """The comparison, in which repeated images are one draw; a sentence on them, "" for none.

    hashes, names: as in `pictures`; None for images that the model made from independent noise.
    """
    if names is None:
        return c, ""
    numbers = pictures(hashes, names)
    different = len(np.unique(numbers))
    if different == len(numbers):
        return c, ""
    return replace(c, draws=numbers), (
        f"the {len(numbers):,} generated images are {different:,} different pictures; the others "
        "repeat them (equal pixels, or one file name with two endings): hits count them all, and "
        "the intervals count each picture once, so they are wider"
    )


def real_in_words(copies: Mapping[str, int], num_images: int) -> str:
    """A sentence where nearly all generated images are real ones; "" for others."""
    train, heldout = copies["train"], copies["heldout"]
    if train + heldout < NEARLY_ALL * num_images:
        return ""
    return (
        f"{train:,} of {num_images:,} generated images are exact copies of training images, and "
        f"{heldout:,} of held-out images: are the generated images real ones?"
    )


def _one_color(image: np.ndarray) -> bool:
    """Whether all pixels are equal; a row of a table is one pixel alone."""
    return image[..., 0].size > 1 and bool((image == image[:1, :1]).all())


def _named(kind: str, images: int, of: int, different: int | None, said: str) -> dict[str, Any]:
    found = {"kind": kind, "images": images, "of": of, "different": different}
    return {**found, "said": f"gives {said} {images:,} of {of:,} times{NO_FINDING}"}
