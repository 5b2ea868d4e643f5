"""The memory of long runs, and whether a killed run resumes with the same bytes.

Plain samples of a hardly trained 8-pixel model in four steps, through the command that users run,
each stage in a process of its own. It does not cover large images or models (a shard has 1,000
images), guidance, a GPU, several processes, or a full disk.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARD_SIZE = 1000


def command(outputs: Path, stage: str, num_images: int) -> list[str]:
    return [
        *(sys.executable, "-m", "sidepipe", "experiment=smoke", "attacks=single", "extract=none"),
        *(f"stage={stage}", f"extract.num_images={num_images}", f"extract.shard_size={SHARD_SIZE}"),
        # Images differ by rounding between compiled and eager runs, and between numbers of threads.
        *(f"runtime.outputs={outputs}", "runtime.compile=false"),
        f"runtime.num_threads={len(os.sched_getaffinity(0))}",
    ]


def run(outputs: Path, stage: str, num_images: int) -> float:
    """Runs a stage and its missing inputs; its peak memory in MB. Exits on errors."""
    with (outputs.parent / f"{stage}.log").open("a") as log:
        process = subprocess.Popen(command(outputs, stage, num_images), stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"stage={stage} failed: {Path(log.name).read_text()}")
    return usage.ru_maxrss * 1024 / 1e6


def kill_in_the_middle(outputs: Path, num_images: int) -> int:
    """Kills a run once it has half of its shards; the number of its shards."""
    with (outputs.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(command(outputs, "extract", num_images), stdout=log, stderr=log)
        while process.poll() is None and 2 * len(shards(outputs, num_images)) * SHARD_SIZE < (
            num_images
        ):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return len(shards(outputs, num_images))


def artifact(outputs: Path, stage: str, num_images: int) -> Path | None:
    """The folder of the stage's artifact with this many images; None before it starts."""
    for path in outputs.glob(f"{stage}/*/settings.json"):
        if json.loads(path.read_text())["settings"]["num_images"] == num_images:
            return path.parent
    return None


def shards(outputs: Path, num_images: int) -> list[Path]:
    folder = artifact(outputs, "extract", num_images)
    return [] if folder is None else sorted((folder / "shards").glob("*.npy"))


def measure(outputs: Path, num_images: int) -> tuple[float, float]:
    """Samples and evaluates images and prints a row; the peak memory of both stages in MB."""
    sampling, evaluating = [run(outputs, stage, num_images) for stage in ("extract", "evaluate")]
    files, folder = shards(outputs, num_images), artifact(outputs, "extract", num_images)
    assert folder is not None
    seconds = json.loads((folder / "manifest.json").read_text())["seconds"]
    on_disk = sum(path.stat().st_size for path in files) / 1e6
    print(
        f"{num_images:9,} {num_images / seconds:9.0f} {len(files):7,} {on_disk:8.1f}"
        f" {sampling:12.0f} {evaluating:14.0f}",
        flush=True,
    )
    return sampling, evaluating


def check_resuming(whole: Path, killed: Path, num_images: int) -> None:
    """Kills a run in the middle and resumes it; exits unless its shards are those of `whole`."""
    left = kill_in_the_middle(killed, num_images)
    run(killed, "extract", num_images)
    again, expected = [
        {path.name: path.read_bytes() for path in shards(folder, num_images)}
        for folder in (killed, whole)
    ]
    if not 0 < left < len(expected) or again != expected:
        sys.exit(f"killed with {left} of {len(expected)} shards, and other shards after it resumed")
    resumed = f"killed with {left} of {len(expected)} shards and resumed"
    print(f"{resumed}: all {len(again)} have the same bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000, help="of the large run")
    parser.add_argument(
        "--few", type=int, default=50_000, help="of the run that it is compared with"
    )
    parser.add_argument("--folder", type=Path, help="for everything; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        run(whole, "reference", arguments.few)
        run(whole, "generate", arguments.few)
        shutil.copytree(whole, killed)
        print("   images  images/s  shards  MB disk  MB sampling  MB evaluating", flush=True)
        few = measure(whole, arguments.few)
        check_resuming(whole, killed, arguments.few)
        if arguments.images > arguments.few:
            many = measure(whole, arguments.images)
            sampling, evaluating = many[0] - few[0], many[1] - few[1]
            print(f"more at the peak: sampling {sampling:+.0f} MB, evaluating {evaluating:+.0f} MB")


if __name__ == "__main__":
    main()
