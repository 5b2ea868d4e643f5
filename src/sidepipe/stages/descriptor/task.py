"""A planted copy-detection task: which real image is this edited copy of?

Queries are edited copies of half of the images; the edits use Pillow and NumPy, not the code of a
descriptor's training. The database is all images: every query's original, its nearest other real
image, and images that were not copied.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageFilter
from sklearn.metrics import average_precision_score

from sidepipe.features.encoders import Encoder
from sidepipe.features.search import Metric, nearest

Pixels = UInt8[np.ndarray, "h w c"]
Edit = Callable[[Pixels, np.random.Generator], np.ndarray]

NOISE, JPEG_QUALITY, BRIGHTNESS = 0.08, 30, 0.2


def crop(image: Pixels, rng: np.random.Generator) -> np.ndarray:
    """A random part with three quarters of each side, resized to the full size."""
    size = len(image)
    left, top = rng.uniform(0, size / 4, 2)
    box = (left, top, left + 0.75 * size, top + 0.75 * size)
    return _array(_picture(image).resize((size, size), Image.Resampling.BILINEAR, box))


def blur(image: Pixels, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a deviation of a twentieth of the side."""
    return _array(_picture(image).filter(ImageFilter.GaussianBlur(len(image) / 20)))


def noise(image: Pixels, rng: np.random.Generator) -> np.ndarray:
    """Normal noise with a deviation of `NOISE` of the gray range."""
    return image.astype(float) + rng.normal(0, 255 * NOISE, image.shape)


def recompression(image: Pixels, rng: np.random.Generator) -> np.ndarray:
    """JPEG at `JPEG_QUALITY`, and back."""
    buffer = io.BytesIO()
    _picture(image).save(buffer, "jpeg", quality=JPEG_QUALITY)
    with Image.open(buffer) as picture:
        return _array(picture)


def brightness(image: Pixels, rng: np.random.Generator) -> np.ndarray:
    """Lighter or darker by `BRIGHTNESS` of the gray range, clipped."""
    return image.astype(float) + rng.choice([-1, 1]) * 255 * BRIGHTNESS


def shift(image: Pixels, rng: np.random.Generator) -> np.ndarray:
    """The image shifted by an eighth of the side in a random direction, its edge repeated."""
    step, size = max(1, len(image) // 8), len(image)
    padded = np.pad(image, [(step, step), (step, step), (0, 0)], mode="edge")
    top, left = [(0, step), (2 * step, step), (step, 0), (step, 2 * step)][rng.integers(4)]
    return padded[top : top + size, left : left + size]


EDITS: dict[str, Edit] = {
    edit.__name__: edit for edit in (crop, blur, noise, recompression, brightness, shift)
}


def copies(
    images: UInt8[np.ndarray, "n h w c"], edit: Edit, seed: int
) -> UInt8[np.ndarray, "n h w c"]:
    """An edited copy of each image; the randomness of image i depends on (seed, i) alone."""
    edits = [edit(image, np.random.default_rng([seed, i])) for i, image in enumerate(images)]
    return np.stack(edits).round().clip(0, 255).astype(np.uint8).reshape(images.shape)


def judge(
    encoders: Mapping[str, Encoder],
    images: UInt8[np.ndarray, "n h w c"],
    seed: int,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Rows of encoder, edit, queries, database, average_precision and before_neighbor.

    average_precision: the area under precision over recall of all pairs of a query and a database
    image, ranked by gamma, as in DISC and SSCD (micro-AP); one row per edit, then `all` for the
    queries of all edits. before_neighbor: the share of queries that are closer to their original
    than to the real image nearest to the original in pixels. images: none that an encoder was
    trained on.
    """
    queries = np.arange(len(images) // 2)
    neighbor = nearest_others(images)[queries]
    edited = {name: copies(images[queries], edit, seed) for name, edit in EDITS.items()}
    for encoder_name, encoder in encoders.items():
        database = encoder.encode(images, device=device)
        gammas = []
        for name, changed in edited.items():
            gammas.append(
                closeness(encoder.encode(changed, device=device), database, encoder.metric)
            )
            yield {"encoder": encoder_name, "edit": name, **_scores(gammas[-1], queries, neighbor)}
        times = len(gammas)
        scores = _scores(np.concatenate(gammas), np.tile(queries, times), np.tile(neighbor, times))
        yield {"encoder": encoder_name, "edit": "all", **scores}


def closeness(
    queries: Float[np.ndarray, "q d"], database: Float[np.ndarray, "n d"], metric: Metric
) -> Float[np.ndarray, "q n"]:
    """The cosine of every pair, or the negative squared distance: larger is closer."""
    a, b = queries.astype(np.float64), database.astype(np.float64)
    if metric == "cosine":
        return a @ b.T
    return 2 * a @ b.T - (a**2).sum(1)[:, None] - (b**2).sum(1)


def nearest_others(images: UInt8[np.ndarray, "n h w c"]) -> Int64[np.ndarray, "n"]:
    """The nearest other image of each image, in pixels."""
    pixels = images.reshape(len(images), -1) / 255
    found = nearest(pixels, pixels, "l2", k=2)[1]
    # For two equal images the other one may come first.
    return np.where(found[:, 0] == np.arange(len(images)), found[:, 1], found[:, 0])


def _scores(
    gamma: Float[np.ndarray, "q n"], original: np.ndarray, neighbor: np.ndarray
) -> dict[str, Any]:
    truth = original[:, None] == np.arange(gamma.shape[1])
    rows = np.arange(len(gamma))
    return {
        "queries": len(gamma),
        "database": gamma.shape[1],
        "average_precision": float(average_precision_score(truth.ravel(), gamma.ravel())),
        "before_neighbor": float((gamma[rows, original] > gamma[rows, neighbor]).mean()),
    }


def _picture(image: Pixels) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _array(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
