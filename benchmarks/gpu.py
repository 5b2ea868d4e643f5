"""Everything that needs an accelerator, in less than ten minutes: `make bench-gpu`.

A run of 64-pixel images through the command that users run: training, plain samples and refinement,
with images per second, the share of the measured bf16 rate and, where the driver states the power,
images per joule. Then the benchmarks of sampling and of training. Without an accelerator one line
says so.
"""

import sidepipe  # noqa: F401, before torch, as it says how torch's threads wait

# isort: split
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from sidepipe.base.settings import build

HERE = Path(__file__).parent
IMAGES, SAMPLING_STEPS, REFINEMENT_STEPS, TRAINING_STEPS = 4096, 50, 8, 500
MINUTES = {"the 64-pixel run": 1.5, "sampling.py": 2.5, "training.py": 2}
RUN = [
    "data=mixture",
    "data.size=64",
    "data.source.num_images=1024",
    "dpm=unet64",
    "dpm.num_train_images=256",
    f"dpm.max_steps={TRAINING_STEPS}",
    "dpm.lr_warmup_steps=50",
    "dpm.ema_start_step=100",
    "attacks=single",
    "extract=none",
    f"extract.num_images={IMAGES}",
    f"extract.num_inference_steps={SAMPLING_STEPS}",
]
REFINE = ["extract/refine=fixed_point", f"extract.refine.steps={REFINEMENT_STEPS}"]


def ends_in_time(command: list[str], name: str) -> bool:
    """Runs a command; whether it succeeded within its minutes, else a line that says why not."""
    try:
        subprocess.run([sys.executable, *command], check=True, timeout=60 * MINUTES[name])
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        print(f"{name}: not measured: {error}", flush=True)
        return False
    return True


class Power(threading.Thread):
    """Watts of the first GPU, read from its driver once per second until `stop` is set."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stop, self.watts = threading.Event(), []

    def run(self) -> None:
        command = [
            "nvidia-smi",
            "-i",
            "0",
            "--query-gpu=power.draw",
            "--format=csv,noheader,nounits",
        ]
        while not self.stop.wait(1):
            try:
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                self.watts.append(float(said))
            except (OSError, ValueError, subprocess.CalledProcessError):
                return  # no driver, or one that states no power


def unet_flops() -> int:
    """FLOPs of one evaluation of the 64-pixel network on one image."""
    data = {"data": {"size": 64, "channels": 1}}
    config = OmegaConf.merge(data, OmegaConf.load(HERE.parent / "conf/dpm/unet64.yaml"))
    unet = build(OmegaConf.to_container(config.unet, resolve=True)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.zeros(1, 1, 64, 64), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()


def seconds_of(outputs: Path, stage: str) -> float:
    """The duration of the stage's newest artifact, loading and compilation included."""
    newest = max(outputs.glob(f"{stage}/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())["seconds"]


def measure_run(outputs: Path, bf16_rate: float) -> None:
    """Prints the rates of training, of plain samples and of refined ones."""
    base = ["-m", "sidepipe", *RUN, f"runtime.outputs={outputs}"]
    print(f"64 pixels\n{'':20} {'images/s':>9} {'of bf16 rate':>13} {'images/J':>9}")
    flops, batch = unet_flops(), 128
    passes = {"plain samples": SAMPLING_STEPS, "refined samples": SAMPLING_STEPS + REFINEMENT_STEPS}
    for name, stage in (
        ("training", "dpm"),
        ("plain samples", "extract"),
        ("refined samples", "extract"),
    ):
        power = Power()
        power.start()
        refine = REFINE if name == "refined samples" else []
        if not ends_in_time([*base, f"stage={stage}", *refine], "the 64-pixel run"):
            return
        power.stop.set()
        count = TRAINING_STEPS * batch if stage == "dpm" else IMAGES
        # A forward and a backward pass, which costs two.
        rate, each = count / seconds_of(outputs, stage), flops * passes.get(name, 3)
        joule = f"{rate / statistics.mean(power.watts):9.2f}" if power.watts else "not known"
        print(f"{name:20} {rate:9.1f} {rate * each / bf16_rate:13.1%} {joule}", flush=True)


def main() -> None:
    if not torch.cuda.is_available():
        print("no accelerator at hand: nothing was measured on one")
        return
    sys.path.insert(0, str(HERE))
    from sampling import matmul_flops

    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    bf16_rate = matmul_flops(device)
    print(f"a bf16 matrix product reaches {bf16_rate / 1e12:.0f} TFLOP/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measure_run(Path(folder), bf16_rate)
    for name in ("sampling.py", "training.py"):
        ends_in_time([str(HERE / name)], name)


if __name__ == "__main__":
    main()
