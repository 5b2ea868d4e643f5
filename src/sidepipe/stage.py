"""What every stage is: a frozen dataclass whose fields are its settings, and the runtime it gets.

A stage's settings can change its numbers and enter its key; `Runtime` says only where and how fast
and never does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from sidepipe.settings import require, require_known


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how fast: never part of a key.

    sampling_batch_size: per device, None for the size that measures fastest. compile: whether
    torch.compile makes the networks that sample; "auto" where a run is long enough. Images depend
    on neither beyond floating-point rounding.
    """

    outputs: str = "outputs"
    data_root: str = "datasets"
    accelerator: str = "auto"
    devices: int = 1
    num_threads: int | None = None
    sampling_batch_size: int | None = None
    compile: Literal["auto", True, False] = "auto"
    progress_seconds: float = 30.0

    def __post_init__(self) -> None:
        require_known(
            "runtime.accelerator", self.accelerator, ["auto", "cpu", "gpu", "cuda", "mps"]
        )
        require(self.devices >= 1, "runtime.devices", ">= 1", self.devices)
        if self.num_threads is not None:
            require(self.num_threads >= 1, "runtime.num_threads", ">= 1", self.num_threads)
        size = self.sampling_batch_size
        require(size is None or size >= 1, "runtime.sampling_batch_size", ">= 1 or null", size)

    def trainer_settings(self) -> dict[str, Any]:
        """Arguments for Lightning's Trainer.

        Several devices are started by spawning inside the stage, not by running the command
        again: the other processes then never see the graph, its locks or its manifests.
        """
        strategy = "ddp_spawn" if self.devices > 1 else "auto"
        return {"accelerator": self.accelerator, "devices": self.devices, "strategy": strategy}

    def torch_device(self) -> str:
        """The device for work outside Lightning: encoders."""
        import torch

        if self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            return "cuda"
        mps = self.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available()
        return "mps" if mps else "cpu"

    def limit_threads(self) -> None:
        """Sets this process's CPU threads where `num_threads` says how many."""
        if self.num_threads is not None:
            import torch

            torch.set_num_threads(self.num_threads)

    def device_name(self) -> str:
        """What the numbers were made on, for manifests."""
        import torch

        device = self.torch_device()
        name = torch.cuda.get_device_name() if device == "cuda" else device
        return f"{self.devices} x {name}, {torch.get_num_threads()} threads"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Base of all stages.

    name: the one word for package, config group, output folder and `stage=`.
    version: raised when the code's meaning changes, so that old artifacts are not mistaken for new.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Raises ValueError where a setting is out of its range."""

    def inputs(self) -> tuple[str, ...]:
        """Names of the stages whose artifacts this one reads."""
        return ()

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Those of `settings` that can change the result; all, unless a stage knows better."""
        return settings

    def check(self, upstream: Mapping[str, "Stage"], runtime: Runtime) -> None:
        """Raises ValueError or an OSError where these settings cannot work with `upstream`'s."""

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        """Why a finished artifact no longer matches what lies outside the outputs, or None."""
        return None

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        """Writes the artifact into `folder` (which may hold an unfinished one) from `inputs`.

        Returns a JSON-able summary for the manifest.
        """
        raise NotImplementedError
