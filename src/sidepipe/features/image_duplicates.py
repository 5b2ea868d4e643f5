"""Exact and near duplicates among images by their pixels, and among rows of a table.

The distance is the root mean square (RMS) pixel difference, where black to white is 1; of rows that
of their entries, which differ by at most 2. Two images
are exact duplicates if all pixels are equal, and near duplicates if they are at least `RATIO` times
closer than an image of the data typically is to the nearest other one. Mirrored copies count as
well, because many models are trained on flipped images.

Small images of block means find the candidates: their distance is never larger than that of the
images (Jensen's inequality), so the search misses nothing, and only candidates are compared pixel
by pixel. Memory is bounded except for the small images, which take 768 bytes each for RGB.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from sidepipe.base.images import Images
from sidepipe.features.pairs import TILE_QUERIES, blocks, candidates, distance, rounding
from sidepipe.features.search import Metric, nearest

# Yoon et al. (2023) call an image a copy if its nearest training image is three times closer than
# the second nearest.
RATIO = 3
SEARCH_SIDE = 8  # height and width in pixels of the small images that find candidates
TYPICAL_SIDE = 32  # the same, of those that the typical distance is measured on
TYPICAL = 256  # vectors whose nearest others give the typical distance
MAX_COPIES = 16  # copies of one vector that the typical distance skips
READ_IMAGES = 2048  # read from the data at once
VERIFIED_PIXELS = 20_000_000  # compared at once
SEED = 0  # of the choice of images that the typical distance is measured on

Rows = Int64[np.ndarray, "m"]


@dataclass(frozen=True)
class Duplicates:
    """One duplicate for each of m images.

    row: of the duplicate, -1 for none. distance: RMS, nan for none. mirrored: whether the duplicate
    is a mirror image.
    """

    row: Int64[np.ndarray, "m"]
    distance: Float64[np.ndarray, "m"]
    mirrored: Bool[np.ndarray, "m"]

    @property
    def found(self) -> Bool[np.ndarray, "m"]:
        """Which images have a duplicate."""
        return self.row >= 0

    @property
    def exact(self) -> Bool[np.ndarray, "m"]:
        """Which images have a duplicate with equal pixels, mirrored or not."""
        return self.distance == 0


def typical_distance(images: Images, rows: Rows) -> float:
    """`typical` of the images in `rows`, on block means of at most 32 x 32 pixels.

    Larger images have a larger distance than their block means.
    """
    return typical(lambda places: small(images[rows[places]], TYPICAL_SIDE), len(rows), "l2")


def typical(
    vectors: Callable[[Rows], Float32[np.ndarray, "p d"]], count: int, metric: Metric
) -> float:
    """The median distance from a vector to the nearest other one that is no copy.

    In ascending order, the distances up to the last step by more than `RATIO` are those of copies.
    Up to `MAX_COPIES` copies of each vector are skipped. The distances are from `TYPICAL` vectors
    to all others. 0.0 for fewer than two vectors, and for vectors that are all alike.

    vectors: those in the given places of `count`; unit vectors for "cosine", whose distance is the
    Euclidean one.
    """
    if count < 2:
        return 0.0
    number = min(count, TYPICAL)
    places = np.sort(np.random.default_rng(SEED).choice(count, number, replace=False))
    queries = vectors(places)
    closest = np.full((number, MAX_COPIES + 1), np.inf)
    for some in blocks(count, READ_IMAGES):
        database = vectors(np.arange(some.start, some.stop))
        gamma, index = nearest(queries, database, metric, k=min(MAX_COPIES + 2, len(database)))
        own = some.start + index == places[:, None]
        found = np.where(own, np.inf, distance(gamma, metric))
        closest = np.sort(np.concatenate([closest, found], axis=1), axis=1)[:, : MAX_COPIES + 1]
    others = _nearest_that_is_no_copy(closest)
    others = others[others > 0]
    return float(np.median(others)) if len(others) else 0.0


def _nearest_that_is_no_copy(distances: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q"]:
    """The first distance after the last step by more than `RATIO`, or the first of all.

    distances: ascending, inf where there is no image.
    """
    before, after = distances[:, :-1], distances[:, 1:]
    steps = (after > RATIO * before) & np.isfinite(after)
    last = steps.shape[1] - 1 - steps[:, ::-1].argmax(axis=1)
    place = np.where(steps.any(axis=1), last + 1, 0)
    return distances[np.arange(len(distances)), place]


def small(images: Images, side: int) -> Float32[np.ndarray, "n d"]:
    """Block means, at most `side` x `side`, scaled so that Euclidean distances are RMS distances.

    They are never larger than the RMS distances of the images themselves, and equal to these for
    images of at most `side` x `side` pixels.
    """
    sums, sizes = images.astype(np.float32), np.ones(1)
    for axis, length in ((1, images.shape[1]), (2, images.shape[2])):
        edges = np.round(np.linspace(0, length, min(side, length) + 1)).astype(np.int64)
        sums = np.add.reduceat(sums, edges[:-1], axis=axis)
        sizes = np.multiply.outer(sizes, np.diff(edges))
    scale = _white(images) * np.sqrt(sizes[0] * images[0].size)
    return (sums / scale[..., None]).reshape(len(images), -1).astype(np.float32)


def duplicates_across(
    images: Images, train: Rows, heldout: Rows, progress: Callable[[int], None] = lambda done: None
) -> tuple[float, Duplicates]:
    """The largest distance of a near duplicate, and the held-out images' duplicates in training."""
    limit = typical_distance(images, np.concatenate([train, heldout])) / RATIO
    return limit, duplicates(images, heldout, train, limit, progress)


def repeats(images: Images, rows: Rows, limit: float | None) -> Rows:
    """For each of `rows` the one that it duplicates and that stays; -1 for those that stay.

    The first row of each picture stays, and no two that stay are duplicates. limit: as in
    `duplicates`.
    """
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    stands, left = np.full(len(rows), -1), np.arange(len(rows))
    while True:
        found = duplicates(images, rows[left], rows[left], limit)
        if not found.found.any():
            return stands
        place = dict(zip(rows[left].tolist(), range(len(left)), strict=True))
        links = np.array([[i, place[int(found.row[i])]] for i in np.flatnonzero(found.found)]).T
        graph = coo_array((np.ones(links.shape[1]), tuple(links)), (len(left), len(left)))
        label = connected_components(graph, directed=False)[1]
        first = np.unique(label, return_index=True)[1]
        again = np.setdiff1d(np.arange(len(left)), first)
        stands[left[again]] = rows[left[first[label[again]]]]
        left = left[np.sort(first)]


def duplicates(
    images: Images,
    queries: Rows,
    database: Rows,
    limit: float | None,
    progress: Callable[[int], None] = lambda done: None,
) -> Duplicates:
    """For each row of `queries` a duplicate in another row, among `database`, exact ones first.

    limit: the largest RMS distance of a near duplicate; None for exact duplicates alone. progress:
    called with the number of finished queries.
    """
    found = Duplicates(
        np.full(len(queries), -1), np.full(len(queries), np.nan), np.zeros(len(queries), bool)
    )
    if len(queries) == 0 or len(database) == 0:
        return found
    for mirrored in (False, True):
        _note_exact(found, images, queries, database, mirrored)
    if limit is None:
        return found
    every = np.concatenate([small(part, SEARCH_SIDE) for part in _read(images, database)])
    for some in blocks(len(queries), TILE_QUERIES):
        for mirrored in (False, True):
            left = some.start + np.flatnonzero(~found.found[some])
            _note_near(found, images, queries, database, every, limit, left, mirrored)
        progress(some.stop)
    return found


def _read(images: Images, rows: Rows, mirrored: bool = False) -> Iterator[Images]:
    """The images in `rows`, some at a time."""
    for some in blocks(len(rows), READ_IMAGES):
        part = images[rows[some]]
        yield part[:, :, ::-1] if mirrored else part


def _note_exact(
    found: Duplicates, images: Images, queries: Rows, database: Rows, mirrored: bool
) -> None:
    """Notes the first other row of the database whose pixels are all equal."""
    rows_of: dict[bytes, list[int]] = {}
    for row, digest in zip(database.tolist(), _digests(_read(images, database)), strict=True):
        rows_of.setdefault(digest, []).append(row)
    for i, digest in enumerate(_digests(_read(images, queries, mirrored))):
        # The first two: one of them may be the image itself.
        others = [row for row in rows_of.get(digest, ())[:2] if row != queries[i]]
        if others and not found.found[i]:
            found.row[i], found.distance[i], found.mirrored[i] = others[0], 0.0, mirrored


def _digests(parts: Iterator[Images]) -> Iterator[bytes]:
    for part in parts:
        yield from (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part)


def _note_near(
    found: Duplicates,
    images: Images,
    queries: Rows,
    database: Rows,
    every: Float32[np.ndarray, "m d"],
    limit: float,
    left: Rows,
    mirrored: bool,
) -> None:
    """Notes a near duplicate of the queries in places `left`. every: the small database."""
    if len(left) == 0:
        return
    parts = [small(part, SEARCH_SIDE) for part in _read(images, queries[left], mirrored)]
    wanted = np.concatenate(parts)
    reach = limit**2 + rounding(wanted, every, "l2")
    for i, j in candidates(wanted, every, "l2", reach):
        i = left[i]
        keep = queries[i] != database[j]
        while keep.any():
            i, j = i[keep], j[keep]
            # One candidate for each image at a time: where many are near, one is enough.
            here, first = np.unique(i, return_index=True)
            there = database[j[first]]
            rms = _distances(images, queries[here], there, mirrored)
            near = rms <= limit
            found.row[here[near]] = there[near]
            found.distance[here[near]], found.mirrored[here[near]] = rms[near], mirrored
            keep = ~found.found[i]
            keep[first] = False


def _distances(
    images: Images, rows: Rows, others: Rows, mirrored: bool
) -> Float64[np.ndarray, "m"]:
    """The RMS distance of each image in `rows` to that in `others`, from exact sums."""
    turn = slice(None, None, -1 if mirrored else 1)
    means = np.empty(len(rows))
    for some in blocks(len(rows), max(1, VERIFIED_PIXELS // images[0].size)):
        difference = images[rows[some]][:, :, turn].astype(np.float64) - images[others[some]]
        means[some] = np.square(difference).mean(axis=(1, 2, 3))
    return np.sqrt(means) / _white(images)


def _white(images: Images) -> int:
    """The value from which distances are counted as 1: that of white, or 1 for rows."""
    return 255 if images.dtype == np.uint8 else 1
