"""Seconds and memory of `sidepipe compare` on three folders of PNG files, from a shell.

Target for 2,000 images of 64 x 64 pixels in each folder on two cores: under 60 seconds. Memory
is that without pages of mapped files, which the system takes back where it needs room. Linux only:
it is read from /proc.
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


def write_folders(root: Path, count: int, num_train: int, side: int) -> None:
    """Smooth random images; a twentieth of the generated ones are noisy copies of training images.

    Images of pure noise have nearly equal distances, unlike those of any source.
    """
    rng = np.random.default_rng(0)
    folders = ("generated", "train", "heldout")
    sizes = (count, num_train, count)
    images = {name: smooth(rng, n, side) for name, n in zip(folders, sizes, strict=True)}
    copies = images["train"][: count // 20].astype(int)
    noisy = np.clip(copies + rng.integers(-20, 21, copies.shape), 0, 255)
    images["generated"][: count // 20] = noisy.astype(np.uint8)
    for name in folders:
        write_folder(root / name, images[name])


def own_bytes(pid: int) -> int:
    """Memory of a process without pages of files; 0 after its end."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument(
        "--train", type=int, help="training images, as many as --images if not given"
    )
    parser.add_argument("--side", type=int, default=64)
    given, settings = parser.parse_known_args()
    num_train = given.train or given.images
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folders(root, given.images, num_train, given.side)
        names = ["generated", "train=train", "heldout=heldout"]
        start = time.perf_counter()
        command = [sys.executable, "-m", "sidepipe", "compare", *names, *settings]
        process, memory = subprocess.Popen(command, cwd=root), 0
        while process.poll() is None:
            memory = max(memory, own_bytes(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode != 0:
            sys.exit(process.returncode)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, mapped = used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss / 1e9
    each = 1000 * cpu / (2 * given.images + num_train)
    print(
        f"{seconds:.1f} s, {cpu:.1f} s of CPU time ({each:.1f} ms per image), "
        f"{memory / 1e9:.2f} GB at most ({mapped:.2f} GB with mapped files), "
        f"on {os.cpu_count()} processors with a load of {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
