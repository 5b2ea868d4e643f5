"""The base class of stages, a frozen dataclass of settings, and the runtime that stages get.

The settings of a stage can change its numbers and enter its key. `Runtime`, where and how fast it
runs, never does.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sidepipe.base.settings import require, require_known
from sidepipe.engine import artifacts, ranks, threads
from sidepipe.engine.logs import quiet_libraries

if TYPE_CHECKING:
    import lightning as L

# The time of a stage is proportional to the product of these settings, where it has them.
AMOUNTS = ("max_steps", "batch_size", "num_images", "num_inference_steps")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how fast: never part of a key.

    sampling_batch_size: images per device, None for the fastest size, by timing. compile: whether
    sampling uses torch.compile; "auto" in runs that are long enough. Both change images only by
    floating-point rounding. attention_slicing: for text-conditional models, less memory and less
    speed. devices: number of processes, spawned to train or sample together; under srun the tasks
    of the step do so, and devices may stay 1. num_threads: CPU threads per process; "auto" compares
    all with one. slurm: the resources of jobs (see sidepipe.cli.sweep), None without a cluster.
    """

    outputs: str = "outputs"
    data_root: str = "datasets"
    accelerator: str = "auto"
    devices: int = 1
    num_threads: Literal["auto"] | int = "auto"
    sampling_batch_size: int | None = None
    attention_slicing: bool = False
    compile: Literal["auto", True, False] = "auto"
    progress_seconds: float = 30.0
    slurm: dict | None = None

    def __post_init__(self) -> None:
        outputs = self.outputs_folder
        there = next(path for path in [outputs, *outputs.parents] if path.exists())
        rule = f"a folder or a new name within one, and {there} is a file"
        require(there.is_dir(), "runtime.outputs", rule, self.outputs, "move that file")
        require_known(
            "runtime.accelerator", self.accelerator, ["auto", "cpu", "gpu", "cuda", "mps"]
        )
        require(self.devices >= 1, "runtime.devices", ">= 1", self.devices)
        if ranks.several():
            each = ranks.tasks_per_node()
            rule = f"1 or the tasks that srun starts on each node, {each}"
            remedy = "leave it at 1, or change srun --ntasks-per-node"
            require(self.devices in (1, each), "runtime.devices", rule, self.devices, remedy)
        if self.num_threads != "auto":
            rule = "auto or a whole number >= 1"
            require(self.num_threads >= 1, "runtime.num_threads", rule, self.num_threads)
        size = self.sampling_batch_size
        require(size is None or size >= 1, "runtime.sampling_batch_size", ">= 1 or null", size)

    @property
    def outputs_folder(self) -> Path:
        """`outputs` as an absolute path; ~ is the home folder."""
        return Path(self.outputs).expanduser().resolve()

    @property
    def num_processes(self) -> int:
        """Number of processes that train or sample together, here or in the jobs of a plan."""
        nodes, devices = self._layout()
        if nodes * devices == 1 and self.slurm is not None:
            return self.slurm.get("nodes", 1) * self.slurm.get("tasks_per_node", 1)
        return nodes * devices

    @property
    def spawns(self) -> bool:
        """Whether training and sampling run in spawned processes."""
        return self.devices > 1 and not ranks.several()

    def _layout(self) -> tuple[int, int]:
        """Number of nodes, and of processes per node, that train or sample together."""
        return (ranks.num_nodes(), ranks.tasks_per_node()) if ranks.several() else (1, self.devices)

    def trainer(self, plugins: Sequence[Any] = (), **settings: Any) -> "L.Trainer":
        """Lightning's Trainer, for a function that `ranks.together` runs.

        Processes for several devices are spawned inside fit or predict, without a second run of the
        command, so that they have no access to the graph, its locks or its manifests.
        """
        import lightning as L
        from lightning.fabric.plugins.environments import LightningEnvironment

        quiet_libraries()  # again: Lightning sets its log level when it is imported
        nodes, devices = self._layout()
        trainer = L.Trainer(
            accelerator=self.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy="ddp_spawn" if self.spawns else "ddp" if nodes * devices > 1 else "auto",
            # Lightning would guess it from variables that every shell within a Slurm job has.
            plugins=[LightningEnvironment(), *plugins],
            use_distributed_sampler=False,
            **settings,
        )
        size = trainer.world_size
        require(size == nodes * devices, "Lightning's processes", f"{nodes} x {devices}", size)
        # Lightning's SIGTERM handler waits for the other processes, which may wait for this one.
        trainer._signal_connector.register_signal_handlers = _leave_signals_alone
        return trainer

    def torch_device(self) -> str:
        """The device for work outside Lightning: encoders."""
        import torch

        if self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            return "cuda"
        mps = self.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available()
        return "mps" if mps else "cpu"

    def most_threads(self, processes: int = 1) -> int:
        """CPU threads of this process, or of each of `processes` that it spawns."""
        available = threads.available()  # before `limit_threads` changes torch's number
        return max(1, available // processes) if self.num_threads == "auto" else self.num_threads

    def require_accelerator(self) -> None:
        """Raises ValueError where `accelerator` or `devices` exceeds the hardware."""
        import torch

        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        there = [kind for kind, is_there in found.items() if is_there]
        usable = ["auto", "cpu", *there, *(["gpu"] if there else [])]
        rule = f"one that torch finds on this machine, {', '.join(usable)}"
        remedy = "set runtime.accelerator=auto for the best of them"
        require(self.accelerator in usable, "runtime.accelerator", rule, self.accelerator, remedy)
        if self.torch_device() == "cuda" and not ranks.several():
            count = torch.cuda.device_count()
            require(self.devices <= count, "runtime.devices", f"<= {count} GPUs", self.devices)

    def limit_threads(self) -> None:
        """Sets this process's CPU threads."""
        import torch

        torch.set_num_threads(self.most_threads())

    def device_name(self) -> str:
        """The device and the number of threads, for manifests."""
        import torch

        device = self.torch_device()
        name = torch.cuda.get_device_name() if device == "cuda" else device
        nodes, devices = self._layout()
        return f"{nodes * devices} x {name}, {self.most_threads()} threads"


def _leave_signals_alone() -> None:
    """Replaces the method that registers Lightning's signal handlers; picklable."""


@dataclass(frozen=True)
class Job:
    """One run of a stage: its folder, the folders of its inputs by stage, and the runtime."""

    folder: Path
    inputs: Mapping[str, Path]
    runtime: Runtime


class NoMaterial(ValueError):
    """The stage has no input to work on, such as no repeated images: a result, not a fault.

    `Stage.run` raises it; the report shows the message.
    """


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Base of all stages, and the facts that the engine, the sweep and tracking read.

    name: the name of its package, config group, output folder and `stage=`.
    version: increased when the code changes its results, so that old artifacts are not reused.
    takes_empty: whether it runs on an empty input, which `NoMaterial` left.
    needed_by: the settings that make an attack read it; "" where every attack does.
    takes: settings that it shares with another stage of the same row, as {"features":
    "evaluate.features"}.
    reported: whether the report reads its artifacts: one per row of the config group `rows`, or,
    where that is None, one of the unchanged config.
    compared: whether `rows` are the rows of the comparison: all stages are checked with them, and
    the report has them by their names alone.
    required: the meaning of settings without a default, and an example, as {"path": (...)}.
    is_attack: whether the rows that need it are named as attacks in tracking.
    checks_ahead: whether `check_data` of all missing stages downstream runs before it.
    accelerated, parallel: whether it uses an accelerator, and whether several processes share its
    work; otherwise a Slurm job requests no accelerator, and one process.
    checkpoints, pictures: patterns of the files of trained weights (of fnmatch, whose `*` holds
    slashes) and of sample grids (of glob).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    takes_empty: ClassVar[bool] = False
    needed_by: ClassVar[str] = ""
    takes: ClassVar[Mapping[str, str]] = {}
    reported: ClassVar[bool] = False
    rows: ClassVar[str | None] = None
    compared: ClassVar[bool] = False
    required: ClassVar[Mapping[str, tuple[str, str]]] = {}
    is_attack: ClassVar[bool] = False
    checks_ahead: ClassVar[bool] = False
    accelerated: ClassVar[bool] = True
    parallel: ClassVar[bool] = False
    checkpoints: ClassVar[str] = ""
    pictures: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raises ValueError where a setting is out of its range."""

    def inputs(self) -> tuple[str, ...]:
        """Names of the stages whose artifacts this one reads."""
        return ()

    def unused(self) -> tuple[str, ...]:
        """Names of the settings that cannot change the result, given the others."""
        return ()

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The `settings` that can change the result."""
        unused = self.unused()
        return {name: value for name, value in settings.items() if name not in unused}

    def check(self, upstream: Mapping[str, "Stage"], runtime: Runtime) -> None:
        """Raises ValueError or an OSError where these settings do not fit those of `upstream`."""

    def check_needed(self, upstream: Mapping[str, "Stage"]) -> None:
        """Raises ValueError like `check`, but only where a row of the report is made from it."""

    @classmethod
    def work(cls, settings: Mapping[str, Any]) -> float:
        """The number of images that a run with these settings processes, to estimate its time."""
        return math.prod(float(settings.get(name) or 1) for name in AMOUNTS)

    def num_bytes(self, upstream: Mapping[str, "Stage"]) -> int:
        """Bytes of the images that it writes, where the settings determine them, or 0."""
        return 0

    def check_parts(self, upstream: Mapping[str, "Stage"], runtime: Runtime) -> None:
        """Raises like `check` where a network, a schedule or an encoder cannot be built.

        The engine calls it for missing artifacts, after all settings are checked and before
        anything runs: it may import slow libraries, which `check` and status must not.
        """

    def check_sources(self, runtime: Runtime) -> None:
        """Raises ValueError or an OSError where its files outside the outputs are missing.

        The engine calls it before it submits jobs, each of which would fail alone.
        """

    def check_data(self, data: Path, upstream: Mapping[str, "Stage"], runtime: Runtime) -> None:
        """Raises ValueError where these settings do not fit the images of the artifact in `data`.

        The engine calls it before training and sampling, so that too few images or unknown
        partitions are an error before hours of work.
        """

    def check_artifact(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """Raises ValueError where these settings forbid the finished artifact in `folder`.

        Other settings with the same key may have allowed it.
        """

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        """Why a finished artifact no longer matches its files outside the outputs, or None."""
        return None

    def run(self, job: Job) -> dict[str, Any]:
        """Writes the artifact of `job`, whose folder may hold an unfinished one.

        Returns a summary for the manifest, which JSON can represent.
        """
        raise NotImplementedError

    def describe(self, folder: Path, title: str) -> str:
        """The result in the finished `folder` as text for a terminal, headed by `title`."""
        summary = (artifacts.read_manifest(folder) or {}).get("summary")
        return f"{title}: {folder}\n{json.dumps(summary, indent=2)}"

    @classmethod
    def point(cls, folder: Path) -> dict[str, float]:
        """The numbers by which tracking compares points of a sweep, by key."""
        return {}

    @classmethod
    def curves(cls, folder: Path) -> dict[str, list[dict[str, float]]]:
        """The curves of the finished `folder` for tracking, by x axis, as in `tracking.Content`."""
        return {}

    @classmethod
    def shown(cls, folder: Path) -> dict[str, list[Any]]:
        """Images, or image files, of the finished `folder` for tracking, by key."""
        files = sorted(folder.glob(cls.pictures)) if cls.pictures else []
        return {f"{cls.name}/pictures": files} if files else {}
