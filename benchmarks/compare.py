"""Seconds and memory of `sidepipe compare` on three folders of PNG files, from a shell.

Target for 2,000 images of 64 x 64 pixels in each folder on two cores: under 60 seconds.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(folder: Path, images: np.ndarray) -> None:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:06d}.png")


def smooth(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    large = [Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC) for x in small]
    return np.stack([np.asarray(image) for image in large])


def write_folders(root: Path, count: int, side: int) -> None:
    """Smooth random images; a twentieth of the generated ones are noisy copies of training images.

    Images of pure noise have nearly equal distances, unlike those of any source.
    """
    rng = np.random.default_rng(0)
    folders = ("generated", "train", "heldout")
    images = {name: smooth(rng, count, side) for name in folders}
    copies = images["train"][: count // 20].astype(int)
    noisy = np.clip(copies + rng.integers(-20, 21, copies.shape), 0, 255)
    images["generated"][: count // 20] = noisy.astype(np.uint8)
    for name in folders:
        write_folder(root / name, images[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folders(root, given.images, given.side)
        names = ["generated", "train=train", "heldout=heldout"]
        start = time.perf_counter()
        command = [sys.executable, "-m", "sidepipe", "compare", *names]
        subprocess.run(command, cwd=root, check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of CPU time, "
        f"{used.ru_maxrss * 1024 / 1e9:.2f} GB at most, on {os.cpu_count()} processors with a load "
        f"of {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
