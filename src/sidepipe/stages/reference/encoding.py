"""Features of many images in one file that is filled block by block, and resumed."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from sidepipe.base.files import whole_file
from sidepipe.base.images import Images
from sidepipe.engine.logs import counting
from sidepipe.engine.resuming import keep
from sidepipe.engine.shards import check_disk
from sidepipe.engine.stage import Runtime
from sidepipe.features.encoders import Encoder
from sidepipe.features.pairs import blocks
from sidepipe.memorization.real import ENCODE_IMAGES, encode_rows


def encode_into(
    path: Path,
    encoder: Encoder,
    data: Images,
    rows: Int64[np.ndarray, "m"],
    runtime: Runtime,
) -> Float32[np.ndarray, "m d"]:
    """The features of the images in `rows`, memory-mapped from `path`, a .npy file.

    Blocks that a killed run has encoded are kept, so `path` must belong to these images alone.
    Raises OSError without room on the disk.
    """
    device = runtime.torch_device()
    if not keep(path, (len(rows), None), np.float32):
        dimensions = encoder.encode(data[rows[:1]], device=device).shape[1]
        _write_unknown(path, len(rows), dimensions)
    features = np.load(path, mmap_mode="r+")
    missing = [some for some in blocks(len(rows), ENCODE_IMAGES) if _is_unknown(features[some])]
    report = counting(len(rows), f"features in {path.name}", runtime.progress_seconds)
    for some in missing:
        features[some] = encode_rows(encoder, data, rows[some], device)
        report(some.stop)
    features.flush()
    return np.load(path, mmap_mode="r")


def _write_unknown(path: Path, count: int, dimensions: int) -> None:
    """An array of nan, by rename: a file that has its name has no row that only seems encoded.

    It is written and not mapped: where the disk is full that is an error, and not a crash.
    """
    check_disk(path.parent, 4 * count * dimensions, "the features")
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, dimensions)}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for some in blocks(count, ENCODE_IMAGES):
            np.full((some.stop - some.start, dimensions), np.nan, np.float32).tofile(file)


def _is_unknown(features: Float32[np.ndarray, "b d"]) -> bool:
    """Whether a block was not, or not wholly, written: a killed run stops anywhere."""
    return bool(np.isnan(features).any())
