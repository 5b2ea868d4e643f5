"""Features of images on disk, by the content of the images: a killed comparison resumes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from sidepipe.engine.stage import Runtime
from sidepipe.features.encoders import Encoder
from sidepipe.stages.reference.encoding import encode_into

Encode = Callable[[UInt8[np.ndarray, "n h w c"]], Float32[np.ndarray, "n d"]]


def cached(encoder: Encoder, folder: Path, runtime: Runtime) -> Encode:
    """`encoder.encode`, whose features are kept in `folder` block by block, memory-mapped.

    A file is named by the encoder, with size and time of its weights, and by the pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    public = {name: value for name, value in vars(encoder).items() if not name.startswith("_")}
    known = f"{encoder.transform} {sorted(map(str, public.items()))} {_weights(public.get('path'))}"

    def encode(images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n d"]:
        content = hashlib.sha256(f"{known} {images.shape}".encode())
        for image in images:
            content.update(np.ascontiguousarray(image).data)
        path = folder / f"{content.hexdigest()[:32]}.npy"
        return encode_into(path, encoder, images, np.arange(len(images)), runtime)

    return encode


def _weights(path: object) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of an encoder's weights; [] for none, and for a hub id."""
    if path is None or not Path(str(path)).exists():
        return []
    place = Path(str(path))
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file())
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
