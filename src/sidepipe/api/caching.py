"""Features of images and searches on disk, by their content: a killed comparison resumes."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from sidepipe.engine.resuming import in_parts
from sidepipe.engine.stage import Runtime
from sidepipe.features.encoders import Encoder
from sidepipe.features.search import EXACT_VECTORS, Metric
from sidepipe.memorization.comparison import Comparison, compare
from sidepipe.memorization.real import RealImages
from sidepipe.stages.reference.encoding import encode_into

QUERIES = 2048  # searched before they are kept
Images = UInt8[np.ndarray, "n h w c"]
Rows = Int64[np.ndarray, "m"]
# The features of the images in some rows.
Encode = Callable[[Images, Rows], Float32[np.ndarray, "m d"]]


def cached(encoder: Encoder, folder: Path, runtime: Runtime) -> Encode:
    """The features of an encoder, which are kept in `folder` block by block, memory-mapped.

    A file is named by the encoder, with size and time of its weights, and by the pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    public = {name: value for name, value in vars(encoder).items() if not name.startswith("_")}
    known = f"{encoder.transform} {sorted(map(str, public.items()))} {_weights(public.get('path'))}"

    def encode(data: Images, rows: Rows) -> Float32[np.ndarray, "m d"]:
        content = hashlib.sha256(f"{known} {(len(rows), *data.shape[1:])}".encode())
        for row in rows.tolist():
            content.update(np.ascontiguousarray(data[row]).data)
        path = folder / f"{content.hexdigest()[:32]}.npy"
        return encode_into(path, encoder, data, rows, runtime)

    return encode


def searched(
    queries: Float32[np.ndarray, "n d"],
    real: RealImages,
    metric: Metric,
    cache: Path,
    runtime: Runtime,
) -> Comparison:
    """The counts of `compare`, searched for some generated images at a time, which are kept.

    All features must be files of `cached`: their names stand for their content.
    """
    features = (queries, real.train.features, real.unseen.features)
    described = [
        "nearest image",
        metric,
        *(Path(str(getattr(some, "filename", ""))).name for some in features),
    ]
    key = hashlib.sha256(" ".join(described).encode())
    if real.unseen.groups is not None:
        key.update(real.unseen.groups.tobytes())

    def part(some: range) -> dict[str, np.ndarray]:
        own = queries[some.start : some.stop]
        return _found(compare(own, None, real, metric, counts_only=True))

    # An approximate search builds an index: once for all.
    size = QUERIES if len(real.train.rows) <= EXACT_VECTORS else len(queries)
    folder, unit = cache / f"search-{key.hexdigest()[:32]}", "nearest image"
    found = in_parts(folder, len(queries), size, part, unit, runtime.progress_seconds)
    one = compare(queries[:1], None, real, metric, counts_only=True)
    return _with(one, queries, found)


def _found(c: Comparison) -> dict[str, np.ndarray]:
    """The nearest images of each generated image, as arrays by name."""
    found = {}
    for name, some in c.sets.items():
        found |= {f"{name}_gamma": some.gamma, f"{name}_index": some.index}
    for i, some in enumerate(c.controls):
        found |= {f"{i}_gamma": some.gamma, f"{i}_index": some.index}
    return found


def _with(
    c: Comparison, queries: Float32[np.ndarray, "n d"], found: dict[str, np.ndarray]
) -> Comparison:
    """The comparison with other generated images, of which `found` is known."""
    sets = {
        name: replace(some, gamma=found[f"{name}_gamma"], index=found[f"{name}_index"])
        for name, some in c.sets.items()
    }
    controls = [
        replace(some, gamma=found[f"{i}_gamma"], index=found[f"{i}_index"])
        for i, some in enumerate(c.controls)
    ]
    return replace(c, queries=queries, sets=sets, controls=controls)


def _weights(path: object) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of an encoder's weights; [] for none, and for a hub id."""
    if path is None or not Path(str(path)).exists():
        return []
    place = Path(str(path))
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file())
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
