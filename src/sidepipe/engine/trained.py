"""The settings that all trained stages share; `training.py` has their loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from sidepipe.base.settings import require
from sidepipe.engine.stage import Runtime, Stage


@dataclass(frozen=True, kw_only=True)
class Training(Stage):
    """The settings of a trained stage.

    batch_size: global, in images. lr_warmup_steps, max_steps, *_every_steps: in optimizer steps.
    gradient_clip_val: maximum gradient norm, 0 for none.
    """

    parallel: ClassVar[bool] = True
    max_steps: int
    batch_size: int
    lr: float
    weight_decay: float
    lr_warmup_steps: int
    gradient_clip_val: float
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    log_every_steps: int
    checkpoint_every_steps: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("max_steps", "batch_size", "log_every_steps", "checkpoint_every_steps"):
            require(getattr(self, field) >= 1, f"{self.name}.{field}", ">= 1", getattr(self, field))
        for field in ("weight_decay", "lr_warmup_steps", "gradient_clip_val"):
            require(getattr(self, field) >= 0, f"{self.name}.{field}", ">= 0", getattr(self, field))
        require(self.lr > 0, f"{self.name}.lr", "> 0", self.lr)
        require(0 <= self.seed < 2**32, f"{self.name}.seed", "in [0, 2**32)", self.seed)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        require(
            self.batch_size % runtime.num_processes == 0,
            f"{self.name}.batch_size",
            f"divisible by the number of devices, {runtime.num_processes}",
            self.batch_size,
        )
